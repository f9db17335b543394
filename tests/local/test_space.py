"""The room of the local registry: promised once, given back whatever happens, and never waited for by the loop."""

import asyncio
import threading
from pathlib import Path

import pytest

from mitm_cache.cache.layout import open_layout
from mitm_cache.cache.room import Room
from mitm_cache.errors import ClientError
from mitm_cache.local.space import Space
from mitm_cache.local.threads import Threads
from tests.local.registry import CONFIG, OCTETS, Local, manifest

LIMIT = 1000


def space_of(tmp_path: Path, collect: object = None) -> Space:
    """One of 1000 bytes."""
    layout = open_layout(tmp_path / "data")
    layout.uploads.mkdir()
    room = Room(layout.spool, least=lambda _: 0, sweep=lambda _: None)
    collecting = collect if callable(collect) else lambda _: None
    return Space(layout, limit=lambda: LIMIT, room=room, collect=collecting)


def test_a_share_is_given_back(tmp_path: Path) -> None:
    """What was promised and not written is there again; what was written counts."""
    space = space_of(tmp_path)
    share = space.take(800)
    with pytest.raises(ClientError, match="200 are left, and this needs 300 more"):
        space.take(300)
    share.close(100)
    share.close(100)
    space.take(900).close()
    unknown = space.take(None)
    assert unknown.room == LIMIT  # nothing of the 100 bytes is on the disk
    with pytest.raises(ClientError):
        space.take(None)
    unknown.close()
    assert space.take(LIMIT).room == LIMIT


def test_an_end_does_not_wait(tmp_path: Path) -> None:
    """While one push waits for a collection another one ends: the event loop does that."""
    collecting, go_on = threading.Event(), threading.Event()

    def collect(_: int) -> None:
        collecting.set()
        assert go_on.wait(20)

    space = space_of(tmp_path, collect)
    share = space.take(800)
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(space.take(800)))
    waiting.start()
    assert collecting.wait(20)
    ending = threading.Thread(target=share.close)
    ending.start()
    ending.join(5)
    ended = not ending.is_alive()
    go_on.set()
    ending.join()
    waiting.join()
    assert ended
    assert [one.room for one in taken] == [800]


async def test_who_is_cancelled_gives_it_back(tmp_path: Path) -> None:
    """A client that leaves while its room is being made takes none of it along."""
    collecting, go_on = threading.Event(), threading.Event()

    def collect(_: int) -> None:
        collecting.set()
        assert go_on.wait(20)

    space, threads = space_of(tmp_path, collect), Threads()
    share = space.take(800)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(threads.open(lambda: space.take(800)))
        assert await asyncio.to_thread(collecting.wait, 20)
        waiting.cancel()
    share.close()
    go_on.set()
    await asyncio.to_thread(threads.close)
    assert space.take(LIMIT).room == LIMIT


def test_min_free(tmp_path: Path) -> None:
    """Of the disk `cache.min_free` stays free, whatever is pushed: a layer without a length too, and manifests."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            await local.push_blob("a", CONFIG)
        more = '[cache]\nmin_free = "100%"\n'
        async with Local(tmp_path, more=more) as local:
            for method, target in (("PATCH", place), ("PUT", "/v2/a/manifests/1")):
                for size in (None, 100):
                    kind = OCTETS if method == "PATCH" else {}
                    reply = await local.ask(method, target, kind, manifest(), size=size)
                    assert (reply.status, "min_free" in reply.message) == (503, True), (method, size)

    asyncio.run(run())
