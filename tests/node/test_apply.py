"""Steps, undoing, and files that can only be written in place."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mitm_cache.errors import ConfigError
from mitm_cache.node.apply import Edit, Work, run, undone
from mitm_cache.node.files import Local
from mitm_cache.node.model import Order, Step, reload, restart
from mitm_cache.node.state import Record, State
from tests.needs import needs_root, needs_tool


def test_restarts_wait_to_be_asked_for() -> None:
    """The store is made anew at once; the rest is left to the reader, or run in order with --restart."""
    store, units, daemon = (Step(order, ("true", order.name)) for order in Order)
    assert run([store, units, daemon], restart=False) == [units, daemon]
    assert run([store, units, daemon], restart=True) == []


@pytest.mark.parametrize("command", [("false",), ("/nowhere/at-all",)])
def test_a_step_that_fails_is_told(command: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"the files are written, but `{command[0]}` failed"):
        run([Step(Order.STORE, command)], restart=False)


def test_a_restart_makes_a_reload_needless() -> None:
    steps = (reload("docker"), restart("docker"), reload("crio"))
    work = Work(edits=[Edit("/x", None, "y", steps), Edit("/y", None, "y", steps)])
    assert sorted(map(str, work.steps)) == ["systemctl reload crio", "systemctl restart docker"]


def test_a_file_that_was_never_written() -> None:
    """The record is made first; where the writing did not come to pass there is nothing to take out."""
    assert undone("/x", "before", "after", "before") == "before"
    assert undone("/etc/docker/daemon.json", None, "{}", "{}") is None


def test_a_file_of_ours_with_more_in_it_stays() -> None:
    assert undone("/x", None, "ours\n", "ours\ntheirs\n") == "theirs\n"
    assert undone("/x", None, "ours\n", "ours\n\n") is None


def test_folders_of_others_stay(tmp_path: Path) -> None:
    place = Local(tmp_path)
    place.write("/a/b/c", "x")
    assert place.missing_folders("/a/d/e/f") == ["/a/d", "/a/d/e"]
    place.remove_folder("/a/b")
    assert place.read("/a/b/c") == "x"


def test_an_undoing_that_is_killed_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no manifest then that speaks of backups that are gone, upon which nothing could be set up or undone."""
    state = State(tmp_path)
    state.records["/x"] = Record(["docker"], "after", state.keep("before", None))
    state.save()
    assert State(tmp_path).before(State(tmp_path).records["/x"]) == "before"
    remove = shutil.rmtree

    def die(*arguments: Any, **options: Any) -> None:
        remove(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    state.records.clear()
    with pytest.raises(KeyboardInterrupt):
        state.save()
    assert State(tmp_path).records == {}
    monkeypatch.undo()
    State(tmp_path).save()
    assert not state.folder.exists()


def test_a_record_outside_the_root(tmp_path: Path) -> None:
    """A link in an image is not followed to the machine that makes the image."""
    (tmp_path / "image/var").mkdir(parents=True)
    (tmp_path / "machine").mkdir()
    (tmp_path / "image/var/lib").symlink_to(tmp_path / "machine")
    with pytest.raises(ConfigError, match="/var/lib/mitm-cache-setup is a link that leads out of"):
        State(tmp_path / "image")


def test_no_record_leaves_no_folder(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.save()
    assert list(tmp_path.iterdir()) == []


_BUSY = """
mount --bind "$1/real" "$1/root/etc/hosts"
"$2" -m mitm_cache setup hosts --cache 10.0.0.5 --ca "$3" --root "$1/root" && grep -q '10.0.0.5 quay.io' "$1/real" &&
    "$2" -m mitm_cache setup --undo --root "$1/root"
"""


@needs_root()
@needs_tool("unshare", package="util-linux")
def test_a_file_that_is_mounted(tmp_path: Path, certificate: Path) -> None:
    """In a container /etc/hosts cannot be replaced: it is written in place, and put back."""
    for name in ("root/etc/hosts", "root/usr/sbin/update-ca-certificates"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "real").write_text("127.0.0.1 localhost\n")
    command = ["unshare", "--mount", "sh", "-ec", _BUSY, "sh", str(tmp_path), sys.executable, str(certificate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "real").read_text() == "127.0.0.1 localhost\n"
    assert sorted(path.name for path in (tmp_path / "root/etc").iterdir()) == ["hosts"]


@needs_root()
@needs_tool("unshare", package="util-linux")
def test_a_read_only_disk(tmp_path: Path) -> None:
    """Root is not told to be root."""
    code = "import pathlib, sys, mitm_cache.node.files as f; f.Local(pathlib.Path(sys.argv[1])).writable('/etc/x')"
    mount = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, tmp_path, sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"/etc/x cannot be written: {tmp_path} is on a file system that is read-only" in done.stderr
