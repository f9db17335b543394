"""`mitm-cache ls`, `rm`, `prune`, `pin` and `unpin`, over a data directory as pulls leave it."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitm_cache.cache.entry import Origin
from mitm_cache.cli import main
from mitm_cache.cli.ls import table
from mitm_cache.demo.image import KIB, generate
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.units import size
from tests.needs import needs_root
from tests.stored import ACCEPT, DAY, HOUR, REGISTRY, Stored

AMD, ARM = "linux/amd64", "linux/arm64"
APP, WEB, OLD = (generate(sizes=[KIB, 2 * KIB], seed=seed) for seed in ("app", "web", "old"))


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    with Stored(tmp_path / "data") as stored:
        stored.put("team/app", "1", APP, platforms=[AMD])
        stored.put("team/app", "2", WEB)
        stored.put("team/app", None, OLD, age=40 * DAY)
        stored.put("library/alpine", "latest", OLD, age=40 * DAY, registry="docker.io")
        yield stored


def run(stored: Stored | Path, *arguments: str) -> Result:
    root = stored.root if isinstance(stored, Stored) else stored
    return CliRunner().invoke(main, ["--config", "/dev/null", "--data-dir", str(root), *arguments])


def document(stored: Stored | Path, *arguments: str) -> dict[str, Any]:
    result = run(stored, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def listed(stored: Stored, *arguments: str) -> list[str]:
    return [row["image"] for row in document(stored, "ls", *arguments)["images"]]


OLD_NAME = f"quay.io/team/app@{OLD.index.digest}"


def test_ls(stored: Stored) -> None:
    """It tells of each image what there is to tell, and changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in stored.root.rglob("*")}
    rows = document(stored, "ls")["images"]
    assert {path: path.stat().st_mtime_ns for path in stored.root.rglob("*")} == before
    assert [row["image"] for row in rows] == [
        "docker.io/library/alpine:latest",
        OLD_NAME,
        "quay.io/team/app:1",
        "quay.io/team/app:2",
    ]
    app = rows[2]
    assert app.pop("last_pull") > "2020"
    assert app.pop("own") == app.pop("size")
    assert app == {
        "image": "quay.io/team/app:1",
        "registry": "quay.io",
        "repository": "team/app",
        "tag": "1",
        "digest": APP.index.digest,
        "shared": 0,
        "platforms": [{"platform": AMD, "blobs": 3, "blobs_cached": 3, "complete": True}],
        "not_cached": [ARM],
        "complete": True,
        "pinned": False,
        "origin": "pulled",
    }
    assert (rows[0]["own"], rows[1]["own"], rows[1]["tag"]) == (0, 0, None)


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        ("team/app", 3),
        ("quay.io/*:1", 1),
        ("*:latest", 1),
        ("alpine", 1),
        ("team/app:?", 2),
        ("nothing", 0),
        ("registry-1.docker.io/library/alp", 1),
    ],
)
def test_patterns(stored: Stored, pattern: str, number: int) -> None:
    """Part of a name, or all of it where there are wildcards."""
    assert len(listed(stored, pattern)) == number
    result = run(stored, "ls", pattern)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, number)


def test_plain(stored: Stored) -> None:
    """Where nobody looks there are tabs, bytes and whole digests."""
    line = run(stored, "ls", "app:1").stdout.rstrip("\n").split("\t")
    [row] = document(stored, "ls", "app:1")["images"]
    used = row["last_pull"]
    assert line == ["quay.io/team/app:1", APP.index.digest, str(row["size"]), str(row["own"]), used, AMD, "-"]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_table(stored: Stored, width: int) -> None:
    """On a terminal no line is wider than it is, and of a long name the tag stays."""
    stored.put("a-long-name/of-a-team/with-a-longer-name-of-an-application", "v1.2.3-rc.4", APP)
    stored.blobs.remove(Digest.parse(list(WEB.blobs)[1]))
    lines = list(table(document(stored, "ls")["images"], width))
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("IMAGE ")
    assert sum("v1.2.3-rc.4" in line for line in lines) == 1
    assert [line.endswith("incomplete") for line in lines].count(True) == 1


def test_no_directory(tmp_path: Path) -> None:
    """Where there is no cache nothing is listed, and nothing is made."""
    result = run(tmp_path / "none", "ls")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no image is cached\n")
    for command in (["rm", "a"], ["pin", "a"], ["prune", "--unused"]):
        result = run(tmp_path / "none", *command)
        assert result.exit_code == 1
        assert "is not there, or no data directory of mitm-cache" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_rm(stored: Stored) -> None:
    """An image leaves with what only it needs; a dry run tells the same and changes nothing."""
    before = stored.size()
    dry = document(stored, "rm", "--dry-run", "quay.io/team/app:1")
    assert (dry["dry_run"], stored.size(), len(listed(stored))) == (True, before, 4)
    done = document(stored, "rm", "quay.io/team/app:1")
    assert done == {**dry, "dry_run": False}
    assert before - stored.size() == done["freed"] > 0
    assert done["removed"] == [{"image": "quay.io/team/app:1", "digest": APP.index.digest}]
    result = run(stored, "rm", "alpine")
    assert result.stdout.splitlines() == ["removed docker.io/library/alpine:latest", "freed 0 B in 0 files"]
    result = run(stored, "rm", f"quay.io/team/app@{OLD.index.digest[:19]}")
    left = size(before - done["freed"] - stored.size())
    assert result.stdout.splitlines()[1].startswith(f"freed {left} in ")
    assert listed(stored) == ["quay.io/team/app:2"]


def test_rm_by_digest_and_whole(stored: Stored) -> None:
    """A digest goes with its tags, and a repository with everything in it."""
    stored.put("team/app", "3", WEB)
    run(stored, "rm", f"quay.io/team/app@{WEB.index.digest}")
    assert listed(stored) == ["docker.io/library/alpine:latest", OLD_NAME, "quay.io/team/app:1"]
    run(stored, "rm", "--all-tags", "quay.io/team/app")
    assert listed(stored) == ["docker.io/library/alpine:latest"]
    assert list(stored.links.repositories()) == [
        ("docker.io", stored.find("docker.io/library/alpine:latest").repository)
    ]
    result = run(stored, "rm", "--all-tags", "alpine:latest")
    assert result.exit_code == 2
    assert "is to be a repository, without a tag or a digest" in result.stderr


def test_rm_of_what_is_not_there(stored: Stored) -> None:
    """Names like it are told, and nothing leaves, what is there beside it neither."""
    result = run(stored, "rm", "quay.io/team/app:1", "quay.io/taem/app:2")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: quay.io/taem/app:2 is not cached; these are: quay.io/team/app:2, ")
    assert len(listed(stored)) == 4
    assert run(stored, "rm", "xyz").stderr == "Error: xyz is not cached\n"
    assert "is not the name of an image" in run(stored, "rm", "https://quay.io/a").stderr


def test_pin(stored: Stored) -> None:
    """A pin shows, is told once, keeps its image from rm and prune, and can be undone."""
    pinned = document(stored, "pin", "quay.io/team/app:1")["pinned"]
    assert [(row["image"], row["changed"], row["missing"]) for row in pinned] == [
        ("quay.io/team/app:1", True, [f"{ARM} is not cached"])
    ]
    assert run(stored, "pin", "quay.io/team/app:1").stdout == "quay.io/team/app:1 was already pinned\n"
    assert [row["image"] for row in document(stored, "ls")["images"] if row["pinned"]] == ["quay.io/team/app:1"]
    assert run(stored, "ls", "app:1").stdout.endswith("\tpinned\n")
    result = run(stored, "rm", "quay.io/team/app:1")
    assert result.exit_code == 1
    assert "quay.io/team/app:1 is pinned; 'mitm-cache unpin quay.io/team/app:1' comes first" in result.stderr
    run(stored, "pin", f"quay.io/team/app@{OLD.index.digest}")
    assert document(stored, "prune", "--older-than", "30d")["removed"] == [
        {"image": "docker.io/library/alpine:latest", "digest": OLD.index.digest}
    ]
    assert run(stored, "unpin", "quay.io/team/app:1", OLD_NAME).stdout.count("unpinned ") == 2
    assert "was not pinned" in run(stored, "unpin", "quay.io/team/app:1").stdout
    assert not any(row["pinned"] for row in document(stored, "ls")["images"])


def test_pin_of_a_part(stored: Stored) -> None:
    """What of a pinned image is not here is said, by pin and by ls."""
    stored.blobs.remove(Digest.parse(list(WEB.blobs)[1]))
    result = run(stored, "pin", "quay.io/team/app:2")
    assert "not all of it is here: linux/amd64 has 2 of 3 blobs; a pull brings the rest" in result.stderr
    assert run(stored, "ls", "app:2").stdout.endswith(f"\t{AMD}(2/3),{ARM}\tincomplete,pinned\n")
    assert run(stored, "pin", "quay.io/team/none").exit_code == 1


def test_prune(stored: Stored) -> None:
    """By age, by having no tag, or by both; what is pinned, imported or synced stays."""
    stored.put("team/kept", "1", APP, age=99 * DAY, origin=Origin.IMPORTED)
    stored.put("team/app", None, generate(sizes=[KIB], seed="new"), age=HOUR)
    aged, untagged, both = (
        {each["image"] for each in document(stored, "prune", "--dry-run", *options)["removed"]}
        for options in (["--older-than", "30d"], ["--unused"], ["--older-than", "30d", "--unused"])
    )
    assert aged == {"docker.io/library/alpine:latest", OLD_NAME, "quay.io/team/app:1"}
    assert len(untagged) == 2
    assert both == {OLD_NAME}
    before = stored.size()
    done = document(stored, "prune", "--older-than", "30d")
    assert before - stored.size() == done["freed"] > 0
    assert "quay.io/team/kept:1" in listed(stored)
    assert document(stored, "ls", "kept")["images"][0]["complete"]


def test_prune_wants_to_be_told(stored: Stored) -> None:
    """Nothing is removed by accident."""
    result = run(stored, "prune")
    assert result.exit_code == 2
    assert "say what is to leave: --older-than AGE, --unused, or both" in result.stderr
    result = run(stored, "prune", "--older-than", "a while")
    assert result.exit_code == 2
    assert "'a while' is not a length of time such as 90s, 30m, 12h, 3d or 2w" in result.stderr


def test_status(stored: Stored) -> None:
    """Tags are counted by how they came."""
    run(stored, "pin", "quay.io/team/app:1")
    stored.put("team/kept", "1", APP, origin=Origin.IMPORTED)
    result = run(stored, "status", "--json")
    assert json.loads(result.stdout)["images"] == {
        "count": 4,
        "pinned": 1,
        "origins": {"imported": 1, "pulled": 3},
    }
    assert "images       4 tags (1 imported, 3 pulled), 1 pinned" in run(stored, "status").stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.may_skip("the rule is about root beside a service that has a user of its own")
def test_somebody_elses(stored: Stored) -> None:
    """Root reads, but makes no file that the service could not change."""
    os.chown(stored.root, 1, 1)
    try:
        assert run(stored, "ls").exit_code == 0
        for command in (["rm", "quay.io/team/app:1"], ["pin", "quay.io/team/app:1"], ["prune", "--unused"]):
            result = run(stored, *command)
            assert result.exit_code == 1
            assert f"{command[0]} writes files that the service must own" in result.stderr
    finally:
        os.chown(stored.root, os.geteuid(), os.getegid())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@needs_root()
def test_a_disk_that_is_full(small: Path) -> None:
    """Images leave where there is no room for anything else: who comes to make some is not sent away."""
    with Stored(small / "data") as stored:
        for tag in ("1", "2"):
            stored.put("team/app", tag, generate(sizes=[400 * KIB], seed=tag))
    with suppress(OSError), (small / "fill").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    freed = document(small / "data", "rm", "quay.io/team/app:1")["freed"]
    assert freed > 400 * KIB
    assert document(small / "data", "prune", "--older-than", "1m")["freed"] > 400 * KIB
    assert document(small / "data", "ls")["images"] == []
    with Stored(small / "data") as stored:
        assert stored.links.tagged(REGISTRY, Repository("team/app"), Tag("1"), ACCEPT) is None


@needs_root()
def test_a_disk_that_is_read_only(small: Path) -> None:
    """What changes something says why it cannot, and what only reads does so."""
    with Stored(small / "data") as stored:
        stored.put("team/app", "1", APP)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    for command in (["rm", "quay.io/team/app:1"], ["pin", "quay.io/team/app:1"], ["prune", "--older-than", "1m"]):
        result = run(small / "data", *command)
        assert isinstance(result.exception, SystemExit)
        assert result.stderr == f"Error: data_dir {small / 'data'} cannot be changed: Read-only file system\n"
    assert len(document(small / "data", "ls")["images"]) == 1
    assert len(document(small / "data", "rm", "--dry-run", "quay.io/team/app:1")["removed"]) == 1
