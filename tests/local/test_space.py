"""The room of the local registry: promised once, given back whatever happens, and never waited for by the loop."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.evict import Swept
from mitm_cache.cache.layout import open_layout
from mitm_cache.cache.removal import Remover
from mitm_cache.cache.room import Room
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.local.account import Account
from mitm_cache.local.collection import Collection
from mitm_cache.local.manifests import read
from mitm_cache.local.space import Space, measure
from mitm_cache.local.store import Store
from mitm_cache.local.threads import Threads
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_MANIFEST
from mitm_cache.oci.reference import Repository, Tag
from tests.local.registry import CONFIG, OCTETS, Local, digest_of, manifest

LIMIT = 1000


class Clock:
    """A time that passes when it is told to, and by so many seconds at each look: what takes none may be done again at
    once."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 1000.0
        self._tick = tick

    def __call__(self) -> float:
        self.now += self._tick
        return self.now


def space_of(
    tmp_path: Path, collect: Callable[[int], int] = lambda _: 0, *, clock: Clock | None = None, limit: int = LIMIT
) -> Space:
    """One of 1000 bytes."""
    layout = open_layout(tmp_path / "data")
    layout.uploads.mkdir(exist_ok=True)
    room = Room(layout.spool, least=lambda _: 0, sweep=lambda _: None)
    return Space(layout, limit=lambda: limit, room=room, collect=collect, clock=clock or Clock())


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

    def sweep(wanted: int) -> Swept:
        swept.append(wanted)
        return Swept(total=0, freed=0, removed=0)

    layout = open_layout(tmp_path / "data")
    layout.uploads.mkdir()
    room = Room(layout.spool, least=lambda _: 0, sweep=sweep)
    space = Space(layout, limit=lambda: LIMIT, room=room, collect=lambda _: 0)
    with pytest.raises(ClientError, match="the local registry is full"):
        space.take(10**18)
    assert swept == []
    full = Room(layout.spool, least=lambda size: 2 * size, sweep=sweep)
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
    clock = Clock()
    space = space_of(tmp_path, clock=clock)
    space.take(1).close()
    account = Account(tmp_path / "data" / "run" / "space")
    with account.opened() as sums:
        due = sums.due
    for _ in range(19):
        space.take(50).settle(50)  # which nobody finds on the disk
    with account.opened() as sums:
        assert (sums.used, sums.due) == (950, due)
    clock.now += 1
    assert space.take(51).room == 51
    with account.opened() as sums:
        assert (sums.used, sums.due > due) == (0, True)
    account.close()


class Collecting:
    """What takes its time to find nothing, or a little."""

    def __init__(self, clock: Clock, seconds: float, found: int = 0) -> None:
        self._clock, self._seconds, self._found = clock, seconds, found
        self.asked: list[int] = []

    def __call__(self, wanted: int) -> int:
        self.asked.append(wanted)
        self._clock.now += self._seconds
        return self._found


def refuse(*spaces: Space) -> None:
    for space in spaces:
        with pytest.raises(ClientError, match="the local registry is full"):
            space.take(LIMIT)


def test_who_is_refused_again_and_again(tmp_path: Path) -> None:
    """What was looked for in vain is looked for again after ten times as long as that took, by all processes together,
    and after a minute at most."""
    clock = Clock()
    collecting = Collecting(clock, 2.0)
    one, other = (space_of(tmp_path, collecting, clock=clock) for _ in range(2))
    one.take(1)
    for _ in range(5):
        refuse(one, other)
    assert len(collecting.asked) == 1
    clock.now += 10 * 2.0 - 0.1
    refuse(one, other)
    assert len(collecting.asked) == 1
    clock.now += 0.1
    refuse(one, other)
    assert len(collecting.asked) == 2
    slow = space_of(tmp_path, Collecting(clock, 1000.0), clock=clock)
    clock.now += 60
    refuse(slow, one)
    assert len(collecting.asked) == 2
    clock.now += 60
    refuse(one)
    assert len(collecting.asked) == 3


@pytest.mark.parametrize("by", ["a client", "the collection", "a command", "an end"])
def test_who_is_refused_no_longer(tmp_path: Path, by: str) -> None:
    """What was deleted, and what a process that was killed had been promised, is given at once."""
    clock, repository, layer = Clock(tick=1.0), Repository("a"), b"x" * 6000
    space = space_of(tmp_path, Collecting(clock, 5.0), clock=clock, limit=10_000)
    killed = space_of(tmp_path, clock=clock, limit=10_000)
    layout = open_layout(tmp_path / "data")
    store = Store(layout, Blobs(layout.blobs))
    for content in (layer, CONFIG):
        path = layout.uploads / "x"
        path.write_bytes(content)
        store.adopt(repository, Digest.of(content), path, path.stat().st_ino, len(content))
    if by == "a command":
        store.put_manifest(repository, Tag("1"), read(manifest(layer), OCI_MANIFEST, Tag("1")))
    killed.take(3000)
    for _ in range(2):
        with pytest.raises(ClientError, match="the local registry is full"):
            space.take(2000)
    match by:
        case "a client":
            link = store.held(repository, Digest.of(layer))
            assert link is not None
            store.delete(repository, link)
        case "the collection":
            Collection(store, clock=lambda: time.time() + 7200).collect()
        case "a command":
            Remover(layout, clock=lambda: time.time() + 60).remove(lambda catalog: catalog.images)
        case _:
            killed.close()
    assert space.take(2000).room == 2000


def test_a_little_more_is_collected(tmp_path: Path) -> None:
    """Of a full registry a hundredth: the next pushes find it free, and who needs more gets more."""
    collecting = Collecting(Clock(), 0)
    space = space_of(tmp_path, collecting)
    space.take(LIMIT)
    for wanted in (1, 9, 20):
        with pytest.raises(ClientError):
            space.take(wanted)
    assert collecting.asked == [LIMIT // 100, LIMIT // 100, 20]


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
