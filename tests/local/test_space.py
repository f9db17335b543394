"""The room of the local registry: promised once, given back whatever happens, and never waited for by the loop."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mitm_cache.cache.layout import open_layout
from mitm_cache.cache.room import Room
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.local.account import Account
from mitm_cache.local.space import Space, measure
from mitm_cache.local.threads import Threads
from tests.local.registry import CONFIG, OCTETS, Local, digest_of, manifest

LIMIT = 1000


def space_of(tmp_path: Path, collect: Callable[[int], int] = lambda _: 0) -> Space:
    """One of 1000 bytes."""
    layout = open_layout(tmp_path / "data")
    layout.uploads.mkdir(exist_ok=True)
    room = Room(layout.spool, least=lambda _: 0, sweep=lambda _: None)
    return Space(layout, limit=lambda: LIMIT, room=room, collect=collect)


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
    assert unknown.room == 900
    unknown.grow(100)  # nothing of what was written is on the disk
    assert unknown.room == LIMIT
    with pytest.raises(ClientError):
        space.take(None)
    unknown.close()
    assert space.take(LIMIT).room == LIMIT


def test_what_is_refused_evicts_nothing(tmp_path: Path) -> None:
    """Room on the disk is made for what the registry takes: a head that promises an exabyte would empty the cache."""
    swept: list[int] = []
    layout = open_layout(tmp_path / "data")
    layout.uploads.mkdir()
    room = Room(layout.spool, least=lambda _: 0, sweep=swept.append)
    space = Space(layout, limit=lambda: LIMIT, room=room, collect=lambda _: 0)
    with pytest.raises(ClientError, match="the local registry is full"):
        space.take(10**18)
    assert swept == []
    full = Room(layout.spool, least=lambda size: 2 * size, sweep=swept.append)
    other = Space(layout, limit=lambda: LIMIT, room=full, collect=lambda _: 0)
    for size in (LIMIT, None):
        with pytest.raises(StoreError, match="min_free"):
            other.take(size)
    assert len(swept) == 1
    other.close()
    assert space.take(LIMIT).room == LIMIT  # what could not be written is not promised any more


def test_an_end_does_not_wait(tmp_path: Path) -> None:
    """While one push waits for a collection another one ends: the event loop does that."""
    collecting, go_on = threading.Event(), threading.Event()

    def collect(_: int) -> int:
        collecting.set()
        assert go_on.wait(20)
        return 0

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

    def collect(_: int) -> int:
        collecting.set()
        assert go_on.wait(20)
        return 0

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


def test_an_end_waits_for_no_other_process(tmp_path: Path) -> None:
    """Neither while another one has the account open: it is told afterwards."""
    space = space_of(tmp_path)
    share = space.take(LIMIT)
    with Account(tmp_path / "data" / "run" / "space").opened() as sums:
        assert sums.promised == LIMIT
        ending = threading.Thread(target=share.close)
        ending.start()
        ending.join(5)
        assert not ending.is_alive()
    assert space.take(LIMIT).room == LIMIT


def test_two_processes(tmp_path: Path) -> None:
    """What one has promised the other has not; what one gives back the other has, and so what it leaves at its end."""
    one, other = space_of(tmp_path), space_of(tmp_path)
    first, second = one.take(400), other.take(600)
    for space in (one, other):
        with pytest.raises(ClientError, match="0 are left"):
            space.take(1)
    first.settle()
    third = other.take(400)
    with pytest.raises(ClientError, match="0 are left"):
        one.take(1)
    other.close()
    assert one.take(LIMIT).room == LIMIT
    assert (second.room, third.room) == (600, 400)


def test_near_the_limit_little_is_measured(tmp_path: Path) -> None:
    """Nor is what has left, before somebody would be refused."""
    space = space_of(tmp_path)
    space.take(1).close()
    account = Account(tmp_path / "data" / "run" / "space")
    with account.opened() as sums:
        due = sums.due
    for _ in range(19):
        space.take(50).settle(50)  # which nobody finds on the disk
    with account.opened() as sums:
        assert (sums.used, sums.due) == (950, due)
    assert space.take(51).room == 51
    with account.opened() as sums:
        assert (sums.used, sums.due > due) == (0, True)
    account.close()


def test_the_account_is_what_is_there(tmp_path: Path) -> None:
    """To the byte, whatever way content comes; and what some repository holds already takes no room."""
    layer, other = b"layer" * 200, b"other" * 200

    async def run() -> None:
        async with Local(tmp_path, size="3600") as local:
            account = Account(local.layout.run / "space")

            async def push(repository: str, content: bytes) -> None:
                target = f"/v2/{repository}/blobs/uploads/?digest={digest_of(content)}"
                assert (await local.ask("POST", target, OCTETS, content)).status == 201
                check()

            def check() -> None:
                with account.opened() as sums:
                    assert (sums.used, sums.promised) == (measure(local.layout), 0)

            await push("a", layer)
            await push("a", layer)
            await push("b", layer)
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            assert (await local.ask("PATCH", place, OCTETS, other[:600], size=None)).status == 202
            check()
            assert (await local.ask("PUT", f"{place}?digest={digest_of(other)}", OCTETS, other[600:])).status == 201
            check()
            await push("a", CONFIG)
            body = manifest(layer, other)
            for tag in ("1", "2"):
                assert (await local.push_manifest("a", tag, body)).status == 201
                check()
            with pytest.raises(AssertionError):
                await push("a", b"new" * 400)
            mounted = await local.ask("POST", f"/v2/c/blobs/uploads/?mount={digest_of(other)}&from=a")
            assert mounted.status == 201
            assert (await local.ask("HEAD", f"/v2/d/blobs/{digest_of(layer)}")).status == 200
            check()
            account.close()

    asyncio.run(run())


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
