"""`serve --user`: root binds the ports and is given up for good, seen from outside in a real process."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.process import wait_until
from tests.needs import needs_root
from tests.serving import ROOT

PROGRAM = (sys.executable, "-m", "mitm_cache")
USER = "nobody"
NONE = "0000000000000000"
QUIET = {f"MITM_CACHE_LISTEN_{name}": "" for name in ("TLS", "CLEAR", "CONNECT", "ADMIN")}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the user may look into: pytest's own are root's alone, and any pytest that starts closes them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


OPENED = """
set -e
number=0
for tree in $TREES; do number=$((number + 1)); mkdir "$KEPT/$number"; mount --bind "$tree" "$KEPT/$number"; done
for closed in $CLOSED; do mount -t tmpfs -o mode=755 none "$closed"; done
number=0
for tree in $TREES; do number=$((number + 1)); mkdir -p "$tree"; mount --bind "$KEPT/$number" "$tree"; done
exec "$@"
"""


def within_reach(folder: Path) -> list[str]:
    """What makes a command see Python and the checkout where other users may go, in mounts of its own: a developer's
    are often below a home directory that is closed."""
    trees = list(dict.fromkeys(map(str, (sys.base_prefix, sys.prefix, ROOT))))
    above = {parent for tree in trees for parent in Path(tree).parents if not parent.stat().st_mode & 0o001}
    closed = [str(each) for each in above if not above & set(each.parents)]
    if not closed:
        return []
    kept = folder / f"kept-{time.monotonic_ns()}"
    kept.mkdir()
    variables = [f"TREES={' '.join(trees)}", f"CLOSED={' '.join(closed)}", f"KEPT={kept}"]
    return ["unshare", "--mount", "env", *variables, "sh", "-c", OPENED, "sh"]


def command(folder: Path, *more: str) -> list[str]:
    return [*within_reach(folder), *PROGRAM, "--data-dir", str(folder / "data"), "serve", *more]


@contextmanager
def served(folder: Path, *more: str) -> Iterator["tuple[subprocess.Popen[str], str]"]:
    """The process, once it is ready, and what it has said."""
    environ = os.environ | QUIET | {"MITM_CACHE_LISTEN_MIRROR": "127.0.0.1:0"}
    with subprocess.Popen(
        command(folder, *more), cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = ""
        try:
            for line in process.stderr:
                said += line
                if line == "Ready.\n":
                    break
            else:
                raise AssertionError(said)
            # What it says later must not hold it up.
            reader = threading.Thread(target=process.stderr.read)
            reader.start()
            yield process, said
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, 1)
            if "reader" in locals():
                reader.join()


def fails(folder: Path, *more: str, become: Sequence[str] = ()) -> str:
    """What a start that is refused says."""
    environ = os.environ | QUIET | {"MITM_CACHE_LISTEN_MIRROR": "127.0.0.1:0"}
    start = [*within_reach(folder), *become, *PROGRAM, "--data-dir", str(folder / "data"), "serve", *more]
    done = subprocess.run(start, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def processes(process: "subprocess.Popen[str]") -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [process.pid, *map(int, children)]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@needs_root()
@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_right_of_root_s_is_left(folder: Path, workers: str) -> None:
    """Every process: user, group and groups are the user's, no capability is there or can be had again."""
    user = pwd.getpwnam(USER)
    with served(folder, "--user", USER, "--workers", workers) as (process, said):
        assert "running as root" not in said
        found = processes(process)
        assert len(found) > int(workers)
        for pid in found:
            facts = status(pid)
            assert set(facts["Uid"].split()) == {str(user.pw_uid)}
            assert set(facts["Gid"].split()) == {str(user.pw_gid)}
            assert set(facts["Groups"].split()) <= {str(user.pw_gid)}
            assert {facts[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {NONE}
            assert facts["NoNewPrivs"] == "1"
        for path in (folder / "data").rglob("*"):
            assert path.lstat().st_uid == user.pw_uid, path


@needs_root()
def test_a_worker_can_be_replaced_without_root(folder: Path) -> None:
    """Nothing of what a replacement needs is root's."""
    with served(folder, "--user", USER) as (process, said):
        port = int(said.split("mirror ")[1].split()[0].rpartition(":")[2])
        (worker,) = processes(process)[1:]
        os.kill(worker, signal.SIGKILL)
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: worker not in processes(process), "the replacement")
        assert status(processes(process)[1])["CapEff"] == NONE


@needs_root()
def test_a_reload_without_root(folder: Path) -> None:
    """The command works as root and as the user, and reads the default data directory's place as before."""
    with served(folder, "--user", USER):
        reload = [*PROGRAM, "--data-dir", str(folder / "data"), "reload"]
        for user in ("root", USER):
            become = [*within_reach(folder), "setpriv", f"--reuid={user}", "--clear-groups"]
            done = subprocess.run([*become, *reload], capture_output=True, text=True, timeout=60, check=False, cwd="/")
            assert (done.returncode, done.stdout) == (0, "reloaded: 1 worker serves by it\n"), done.stderr


@needs_root()
def test_root_without_a_user_is_warned(folder: Path) -> None:
    """One line."""
    with served(folder) as (_, said):
        assert said.count("running as root") == 1


@needs_root()
def test_a_folder_of_another_is_refused_with_the_cure(folder: Path) -> None:
    """What lies in it counts too: it would fail much later."""
    (folder / "data").mkdir(mode=0o700)
    assert f"run: chown -R {USER}: {folder / 'data'}" in fails(folder, "--user", USER)
    os.chown(folder / "data", pwd.getpwnam(USER).pw_uid, -1)
    (folder / "data" / "blobs").mkdir()
    said = fails(folder, "--user", USER)
    assert f"{folder / 'data' / 'blobs'} belongs to another; run: chown -R {USER}: {folder / 'data'}" in said


@needs_root()
@pytest.mark.parametrize(
    ("name", "words"), [("no-such-user", "there is no such user"), ("root", "that is root"), ("a:b", "no such user")]
)
def test_a_user_that_cannot_be(folder: Path, name: str, words: str) -> None:
    """The message says what would do; nothing was made."""
    assert words in fails(folder, "--user", name)
    assert not (folder / "data").exists()


@needs_root()
def test_only_root_becomes_another(folder: Path) -> None:
    """Anybody else is told so."""
    said = fails(folder, "--user", "daemon", become=["setpriv", f"--reuid={USER}", "--clear-groups"])
    assert "only root can become another user" in said
