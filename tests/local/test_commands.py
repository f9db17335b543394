"""The commands about images, of those that were pushed to a local name."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mitm_cache.cli import main
from tests.local.registry import CONFIG, Local, descriptor, digest_of, index, manifest

HOUR = 3600.0
LAYER, OTHER = b"a layer" * 1000, b"another" * 500
type Work = Callable[[Local], Coroutine[Any, Any, None]]


def beside(tmp_path: Path, work: Work) -> None:
    """Do something with the registry, and let go of it."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            await work(local)

    asyncio.run(run())


def command(tmp_path: Path, *arguments: str, code: int = 0) -> Any:
    """A command's document, or what it says where it fails."""
    result = CliRunner().invoke(main, ["--config", str(tmp_path / "local.toml"), *arguments])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.output


async def fill(local: Local) -> None:
    """Two tags, a signature of one of them, and a manifest without a name; all of it two hours old."""
    await local.push("team/app", "1", LAYER)
    await local.push("team/app", "2", OTHER)
    about = manifest(subject=descriptor(manifest(LAYER)))
    lonely = manifest(OTHER, LAYER)
    listing = index(lonely)
    for each in (about, lonely, listing):
        assert (await local.push_manifest("team/app", digest_of(each), each)).status == 201
    local.age(2 * HOUR)


def names(tmp_path: Path) -> set[str]:
    """The images that are listed."""
    return {row["image"] for row in command(tmp_path, "ls", "--json")["images"]}


LONELY = f"local/team/app@{digest_of(index(manifest(OTHER, LAYER)))}"
ABOUT = f"local/team/app@{digest_of(manifest(subject=descriptor(manifest(LAYER))))}"
ALL = {"local/team/app:1", "local/team/app:2", LONELY, ABOUT}


def test_ls(tmp_path: Path) -> None:
    """They are listed under the one name of all local names, with how they came."""
    beside(tmp_path, fill)
    rows = {row["image"]: row for row in command(tmp_path, "ls", "--json")["images"]}
    assert rows.keys() == ALL
    assert rows["local/team/app:1"]["origin"] == "local"
    assert rows["local/team/app:1"]["complete"]
    status = json.loads(CliRunner().invoke(main, ["--config", str(tmp_path / "local.toml"), "status", "--json"]).stdout)
    assert status["images"]["origins"] == {"local": 2}
    held = sum(path.stat().st_size for path in (tmp_path / "data/blobs").glob("*/*/*"))
    assert status["local"] == {"bytes": held, "limit": 1 << 30}


@pytest.mark.parametrize("name", ["local/team/app:1", "localhost:5000/team/app:1"])
def test_rm(tmp_path: Path, name: str) -> None:
    """By any name; what only it needs leaves, and what others need stays."""
    beside(tmp_path, fill)
    removed = command(tmp_path, "rm", name, "--json")
    assert [row["image"] for row in removed["removed"]] == ["local/team/app:1"]
    assert names(tmp_path) == ALL - {"local/team/app:1"}

    async def look(local: Local) -> None:
        assert (await local.ask("GET", "/v2/team/app/manifests/1")).status == 404
        assert (await local.ask("GET", "/v2/team/app/manifests/2")).status == 200
        assert (await local.ask("GET", "/v2/team/app/tags/list")).json["tags"] == ["2"]
        for content in (CONFIG, OTHER, LAYER):  # of which the nameless one needs the last
            assert (await local.ask("GET", f"/v2/team/app/blobs/{digest_of(content)}")).status == 200

    beside(tmp_path, look)


def test_rm_of_all_tags(tmp_path: Path) -> None:
    """A whole repository leaves, and can be pushed anew."""
    beside(tmp_path, fill)
    command(tmp_path, "rm", "--all-tags", "local/team/app", "--json")
    assert names(tmp_path) == set()

    async def look(local: Local) -> None:
        assert local.blobs() == set()
        await local.registry.collect()
        assert (await local.ask("GET", "/v2/_catalog")).json == {"repositories": []}
        await local.push("team/app", "1", LAYER)
        assert (await local.ask("GET", "/v2/team/app/manifests/1")).status == 200

    beside(tmp_path, look)


def test_prune(tmp_path: Path) -> None:
    """Only what has no name leaves, and only by `--unused`; what is about a tag's image has one."""
    beside(tmp_path, fill)
    assert command(tmp_path, "prune", "--older-than", "1h", "--json")["removed"] == []
    preview = command(tmp_path, "prune", "--unused", "--dry-run", "--json")
    assert [row["image"] for row in preview["removed"]] == [LONELY]
    assert names(tmp_path) == ALL
    command(tmp_path, "prune", "--unused", "--json")
    assert names(tmp_path) == ALL - {LONELY}

    async def look(local: Local) -> None:
        for tag in "12":
            assert (await local.ask("GET", f"/v2/team/app/manifests/{tag}")).status == 200
        for content in (CONFIG, OTHER, LAYER):
            assert (await local.ask("GET", f"/v2/team/app/blobs/{digest_of(content)}")).status == 200

    beside(tmp_path, look)


def test_prune_leaves_what_is_being_pushed(tmp_path: Path) -> None:
    """A blob whose manifest is on its way is nobody's stray, and a manifest of this hour may get a name."""

    async def half(local: Local) -> None:
        await local.push_blob("team/app", LAYER)
        await local.push_blob("team/app", CONFIG)
        child = manifest(LAYER)
        await local.push_manifest("team/app", digest_of(child), child)
        local.age(HOUR / 2)

    async def rest(local: Local) -> None:
        assert (await local.push_manifest("team/app", "1", index(manifest(LAYER)))).status == 201

    beside(tmp_path, half)
    assert command(tmp_path, "prune", "--unused", "--json")["removed"] == []
    beside(tmp_path, rest)


def test_pin(tmp_path: Path) -> None:
    """What is pinned cannot be deleted, nor removed."""
    beside(tmp_path, fill)
    assert "pinned local/team/app:1" in command(tmp_path, "pin", "localhost:5000/team/app:1")
    assert "unpin" in command(tmp_path, "rm", "local/team/app:1", code=1)

    async def look(local: Local) -> None:
        assert (await local.ask("DELETE", "/v2/team/app/manifests/1")).code == "DENIED"

    beside(tmp_path, look)
    command(tmp_path, "unpin", "local/team/app:1")

    async def delete(local: Local) -> None:
        assert (await local.ask("DELETE", "/v2/team/app/manifests/1")).status == 202

    beside(tmp_path, delete)


def test_why(tmp_path: Path) -> None:
    """It tells whether it was pushed, and speaks of no upstream."""
    beside(tmp_path, fill)
    said = command(tmp_path, "why", "local/team/app:1")
    assert "served: it was pushed to the local registry" in said
    assert "https://" not in said
    assert "nobody has pushed local/team/app:3" in command(tmp_path, "why", "localhost:5000/team/app:3", code=1)


def test_nothing_is_pulled_into_it(tmp_path: Path) -> None:
    """There is no upstream to fetch from."""
    beside(tmp_path, fill)
    said = command(tmp_path, "pull", "localhost:5000/team/app:1", code=1)
    assert "Error: images of the local registry are pushed to it" in said
