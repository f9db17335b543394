"""What leaves when the cache is full."""

import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.catalog import Catalog
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.evict import (
    ABANDONED_SECONDS,
    KEEP_SECONDS,
    LOW_WATER,
    NOTE_SECONDS,
    Sweeper,
    Swept,
    Used,
    choose,
)
from mitm_cache.cache.index import Index
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.links import Links
from mitm_cache.cache.pins import Pins
from mitm_cache.demo.content import Memory
from mitm_cache.demo.image import KIB, Layer, assemble, generate, layer
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository, Tag
from tests.stored import DAY, HOUR, REGISTRY, Stored

NOW = 1_000_000.0
HUB = "docker.io"
APP = Repository("team/app")


def used(name: str, size: int, age: float) -> Used:
    return Used(Digest.of(name.encode()), size, NOW - age)


YOUNG, OLD, OLDER = used("young", 40, 10), used("old", 40, 1000), used("older", 40, 2000)
FAR = used("far", 9, -9e6)
BIG, SMALL = used("big", 90, 1000), used("small", 5, 1000)


@pytest.mark.parametrize(
    ("blobs", "limit", "leaving"),
    [
        pytest.param([], 0, [], id="nothing there"),
        pytest.param([OLD, OLDER], 80, [], id="at the limit"),
        pytest.param([OLD, OLDER], 79, [OLDER], id="a byte over"),
        pytest.param([OLD, OLDER, YOUNG], 100, [OLDER], id="least recently used first"),
        pytest.param([OLD, OLDER, YOUNG], 85, [OLDER, OLD], id="down to the low-water mark"),
        pytest.param([YOUNG, OLD], 1, [OLD], id="young ones stay, even over the limit"),
        pytest.param([used("edge", 9, KEEP_SECONDS)], 1, [], id="just young enough"),
        pytest.param([used("future", 9, -50)], 1, [], id="used in the near future"),
        pytest.param([FAR], 1, [FAR], id="used when the clock was wrong"),
        pytest.param([BIG, SMALL], 94, [SMALL, BIG], id="of the same age the smaller first"),
    ],
)
def test_choose(blobs: list[Used], limit: int, leaving: list[Used]) -> None:
    """None leave while the limit holds; then the least recently used, until there is room again."""
    assert choose(blobs, limit=limit, now=NOW) == leaving


@pytest.mark.parametrize(
    ("limit", "room", "leaving"),
    [
        pytest.param(200, 1, [OLDER], id="room though the limit holds"),
        pytest.param(200, 40, [OLDER], id="no more than is needed"),
        pytest.param(200, 41, [OLDER, OLD], id="a byte more"),
        pytest.param(200, 1000, [OLDER, OLD], id="young ones stay all the same"),
        pytest.param(85, 1, [OLDER, OLD], id="the limit wants more"),
    ],
)
def test_choose_for_room(limit: int, room: int, leaving: list[Used]) -> None:
    """So many bytes leave in any case, the least recently used first."""
    assert choose([OLD, OLDER, YOUNG], limit=limit, now=NOW, room=room) == leaving


blobs_of_any_age = st.lists(
    st.builds(used, st.uuids().map(str), st.integers(0, 100), st.floats(-100, 10 * KEEP_SECONDS)), max_size=20
)


@given(blobs_of_any_age, st.integers(0, 1000))
def test_choose_rules(blobs: list[Used], limit: int) -> None:
    """Whatever there is: no young one leaves, none leaves for nothing, and enough leave where enough are old."""
    leaving = choose(blobs, limit=limit, now=NOW)
    total, gone = sum(blob.size for blob in blobs), sum(blob.size for blob in leaving)
    old = [blob for blob in blobs if abs(NOW - blob.used) > KEEP_SECONDS]
    assert set(leaving) <= set(old)
    assert len(leaving) == len(set(leaving))
    if total <= limit:
        assert not leaving
    else:
        assert total - gone <= limit * LOW_WATER or len(leaving) == len(old)
        assert not leaving or total - gone + leaving[-1].size > limit * LOW_WATER
    assert max((blob.used for blob in leaving), default=0) <= min(
        (blob.used for blob in old if blob not in leaving), default=NOW
    )


@dataclass
class Tree:
    """A data directory with a sweeper of `limit` bytes."""

    root: Path
    blobs: Blobs
    links: Links
    index: Index
    limit: int = 1 << 40

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def lock(self) -> Path:
        return self.root / "run" / "evict.lock"

    def put(self, name: str, size: int, *, age: float) -> Digest:
        digest = Digest.of(name.encode())
        draft = self.root / "draft"
        draft.write_bytes(b"x" * size)
        os.utime(draft, (time.time() - age, time.time() - age))
        self.blobs.adopt(digest, draft)
        self.links.hold(HUB, APP, Link(digest, "a/b", size))
        return digest

    def spooled(self, name: str, *, age: float) -> Path:
        path = self.spool / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    def sweep(self) -> Swept | None:
        layout = Layout(self.root, "")
        swept = Sweeper(layout=layout, blobs=self.blobs, links=self.links, limit=lambda _: self.limit).sweep()
        self.index.put("barrier", "x")  # the index is written in one thread: what came before is done
        return swept


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    for name in ("blobs", "links", "spool", "run"):
        (tmp_path / name).mkdir()
    index = Index(tmp_path / "index")
    yield Tree(tmp_path, Blobs(tmp_path / "blobs"), Links(tmp_path / "links", index), index)
    index.close()


def test_sweep(tree: Tree) -> None:
    """The least recently used leave with their links, counted to the byte; the others stay with theirs."""
    older, old = tree.put("older", 1001, age=7000), tree.put("old", 500, age=6000)
    recent, young = tree.put("recent", 300, age=5000), tree.put("young", 200, age=1)
    tree.limit = 1000
    assert tree.sweep() == Swept(total=2001, freed=1501, removed=2)
    assert [tree.blobs.has(digest) for digest in (older, old, recent, young)] == [False, False, True, True]
    held = [tree.links.holds(HUB, APP, digest) is not None for digest in (older, old, recent, young)]
    assert held == [False, False, True, True]
    assert tree.sweep() == Swept(total=500, freed=0, removed=0)


def test_within_the_limit(tree: Tree) -> None:
    """Nothing leaves at the limit, to the byte."""
    digest = tree.put("a", 1000, age=9000)
    tree.limit = 1000
    assert tree.sweep() == Swept(total=1000, freed=0, removed=0)
    tree.limit = 999
    assert tree.sweep() == Swept(total=1000, freed=1000, removed=1)
    assert not tree.blobs.has(digest)


def test_young_ones_stay(tree: Tree) -> None:
    """What somebody is pulling now stays, however full the cache is."""
    digest = tree.put("a", 1000, age=KEEP_SECONDS - 60)
    tree.limit = 1
    assert tree.sweep() == Swept(total=1000, freed=0, removed=0)
    assert tree.links.holds(HUB, APP, digest) is not None


def test_what_is_used_while_it_is_chosen(tree: Tree) -> None:
    """An import that finds a content here counts on it from then on: the sweep that has begun leaves it."""
    used, other = tree.put("used", 1000, age=9000), tree.put("other", 1000, age=8000)

    def limit(_: int) -> int:
        assert tree.blobs.renew(used)  # it is asked for when all blobs have been looked at
        return 1

    swept = Sweeper(layout=Layout(tree.root, ""), blobs=tree.blobs, links=tree.links, limit=limit).sweep()
    assert swept == Swept(total=2000, freed=1000, removed=1)
    assert [tree.blobs.has(digest) for digest in (used, other)] == [True, False]
    assert tree.links.holds(HUB, APP, used) is not None


def test_readers_read_on(tree: Tree) -> None:
    """A blob that is being delivered can be removed: its readers keep the file."""
    digest = tree.put("a", 1000, age=3000)
    blob = tree.blobs.open(digest)  # within the hour: not marked as used again
    assert blob is not None
    tree.limit = 1
    assert tree.sweep() == Swept(total=1000, freed=1000, removed=1)
    assert os.pread(blob.fileno(), 2000, 0) == b"x" * 1000
    blob.close()


def test_drafts_of_links(tree: Tree) -> None:
    """What was to become a link when its process was killed is removed, unless it may still become one."""
    digest = tree.put("a", 10, age=10)
    folder = tree.root / "links" / HUB / str(APP) / "_digests"
    old, new = folder / ".sha256-00.123-456", folder / ".sha256-11.123-456"
    for path, age in ((old, 2 * NOTE_SECONDS), (new, 0)):
        path.write_text("{")
        os.utime(path, (time.time() - age, time.time() - age))
    tree.sweep()
    assert (old.exists(), new.exists()) == (False, True)
    assert tree.links.holds(HUB, APP, digest) is not None


def test_folders_of_tags_that_left(tree: Tree) -> None:
    """A tag of which nothing is known any more leaves no folder, and can be known again."""
    digest = tree.put("a", 10, age=10)
    link = tree.links.holds(HUB, APP, digest)
    assert link is not None
    one, other = Tag.parse("1"), Tag.parse("2")
    for tag in (one, other):
        tree.links.give(HUB, APP, tag, link)
    tree.links.untag(HUB, APP, one)
    folder = tree.root / "links" / HUB / str(APP) / "_tags"
    (folder / "1").mkdir(exist_ok=True)
    tree.sweep()
    assert [path.name for path in folder.iterdir()] == ["2"]
    tree.links.give(HUB, APP, one, link)
    assert tree.links.tags(HUB, APP) == ["1", "2"]


def test_one_sweeper(tree: Tree) -> None:
    """While another process sweeps, nothing happens; afterwards it does."""
    digest = tree.put("a", 1000, age=9000)
    tree.limit = 1
    with tree.lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert tree.sweep() is None
        assert tree.blobs.has(digest)
    assert tree.sweep() == Swept(total=1000, freed=1000, removed=1)


def test_the_limit_is_asked_for_this_disk(tree: Tree) -> None:
    """A limit that is a part of the disk gets the size of the one that the cache is on."""
    asked: list[int] = []

    def limit(size: int) -> int:
        asked.append(size)
        return size

    Sweeper(layout=Layout(tree.root, ""), blobs=tree.blobs, links=tree.links, limit=limit).sweep()
    status = os.statvfs(tree.spool)
    assert asked == [status.f_frsize * status.f_blocks]


def test_spool(tree: Tree) -> None:
    """Downloads that ended or were given up are cleared away; what is being written, or may be resumed, stays."""
    written = tree.spooled("sha256-1.part", age=ABANDONED_SECONDS + 60)
    tree.spooled("sha256-2.part", age=ABANDONED_SECONDS + 60)
    tree.spooled("sha256-3.part", age=ABANDONED_SECONDS - 60)
    tree.spooled("sha256-3.json", age=ABANDONED_SECONDS - 60)
    tree.spooled("sha256-4.json", age=NOTE_SECONDS + 60)
    tree.spooled("sha256-5.json", age=NOTE_SECONDS - 30)
    tree.spooled("sha256-6.12-34.tmp", age=NOTE_SECONDS + 60)
    with written.open("r+") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        tree.sweep()
        left = sorted(path.name for path in tree.spool.iterdir())
    assert left == ["sha256-1.part", "sha256-3.json", "sha256-3.part", "sha256-5.json"]


def test_stray_files(tree: Tree) -> None:
    """A file or folder that is none of the cache's does not keep it from being swept."""
    tree.put("a", 1000, age=9000)
    (tree.root / "blobs" / "README").touch()
    (tree.root / "links" / "README").write_bytes(b"\xff")
    (tree.root / "quarantine").mkdir()
    for folder in ("spool/lost+found", "spool/a.part", "quarantine/lost+found"):
        (tree.root / folder).mkdir()
        os.utime(tree.root / folder, (0, 0))
    tree.limit = 1
    assert tree.sweep() == Swept(total=1000, freed=1000, removed=1)


def test_choose_keeps() -> None:
    """What is kept counts and stays, even over the limit; what is late leaves when nothing else is left."""
    assert choose([OLD, OLDER], limit=60, now=NOW, keep={OLDER.digest}) == [OLD]
    assert choose([OLD, OLDER], limit=1, now=NOW, keep={OLDER.digest, OLD.digest}) == []
    late = replace(OLDER, late=True)
    assert choose([late, OLD], limit=79, now=NOW) == [OLD]
    assert choose([late, OLD], limit=30, now=NOW) == [OLD, late]
    first, second = replace(SMALL, rank=2), replace(BIG, rank=1)
    assert choose([first, second], limit=94, now=NOW) == [second]


ONE, TWO, THREE = (generate(sizes=[4 * KIB], platforms=["linux/amd64"], seed=name) for name in ("1", "2", "3"))


def sweep_to(stored: Stored, limit: int, room: int = 0, *, whole: bool = False) -> Swept | None:
    sweeper = Sweeper(layout=stored.layout, blobs=stored.blobs, links=stored.links, limit=lambda _: limit)
    return sweeper.sweep(room, whole=whole)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    with Stored(tmp_path / "stored") as stored:
        yield stored


def test_manifests_leave_first(stored: Stored) -> None:
    """Layers leave after their manifests, however long ago they were read: nodes that have them ask for no more."""
    image = assemble({"linux/amd64": [Layer(Memory(b"x"), ""), layer("1", 4 * KIB)]})  # one layer is the smallest file
    top = stored.put("team/app", "1", image, age=HOUR)
    for digest in Catalog(stored.root).needs(top)[1:]:
        stored.use(digest, 9 * DAY)
    while stored.size():
        sweep_to(stored, 1 << 40, room=1)  # one file
        here = [stored.blobs.has(digest) for digest in (top, Digest.parse(image.platforms["linux/amd64"].digest))]
        layers = [stored.blobs.has(Digest.parse(digest)) for digest in image.blobs]
        assert here[0] <= here[1] <= min(layers, default=True) or not any(here)
        catalog = Catalog(stored.root)
        assert all(catalog.is_complete(image) for image in catalog.images)


def test_room_is_made_whole(stored: Stored) -> None:
    """Whoever says that it has an exabyte does not empty the cache: what there could be no room for evicts nothing, but
    what is over the limit leaves all the same."""
    stored.put("team/app", "1", ONE, age=9 * DAY)
    stored.put("team/app", "2", TWO, age=3 * DAY)
    size = stored.size()
    for room in (10**18, size + 1):
        assert sweep_to(stored, 1 << 40, room, whole=True) == Swept(total=size, freed=0, removed=0)
    swept = sweep_to(stored, size - 1, 10**18, whole=True)
    assert swept is not None
    assert 0 < swept.freed < size
    assert stored.names() == ["quay.io/team/app:2"]
    left = stored.size()
    assert sweep_to(stored, 1 << 40, left, whole=True) == Swept(left, left, swept.removed)


def test_whole_images_leave(stored: Stored) -> None:
    """The image that was pulled longest ago leaves; those that stay are whole, whatever they share."""
    stored.put("team/app", "1", ONE, age=9 * DAY)
    stored.put("team/app", "2", TWO, age=3 * DAY)
    stored.put("team/app", "3", THREE, age=HOUR)
    sweep_to(stored, stored.size() - 1)
    assert stored.names() == ["quay.io/team/app:2", "quay.io/team/app:3"]
    catalog = Catalog(stored.root)
    assert all(catalog.is_complete(image) for image in catalog.images)


def test_an_image_that_is_used_while_it_is_chosen(stored: Stored) -> None:
    """Of an image whose manifest is asked for meanwhile the layers stay too: nodes that have them ask for no more."""
    top = stored.put("team/app", "1", ONE, age=9 * DAY)
    stored.put("team/app", "2", TWO, age=9 * DAY)

    def limit(_: int) -> int:
        stored.use(top, 0)
        return 1

    Sweeper(layout=stored.layout, blobs=stored.blobs, links=stored.links, limit=limit).sweep()
    catalog = Catalog(stored.root)
    assert set(catalog.blobs) == set(catalog.needs(top))
    assert stored.names() == ["quay.io/team/app:1"]


def test_what_never_leaves(stored: Stored) -> None:
    """Pinned and imported images stay whatever room is needed; synced ones leave when no others are left."""
    stored.put("team/pinned", "1", ONE, age=90 * DAY)
    stored.put("team/synced", "1", TWO, age=80 * DAY, origin=Origin.SYNCED)
    stored.put("team/pulled", "1", THREE, age=HOUR)
    four = generate(sizes=[4 * KIB], platforms=["linux/amd64"], seed="4")
    stored.put("team/imported", "1", four, age=99 * DAY, origin=Origin.IMPORTED)
    Pins(stored.layout.links).add(REGISTRY, Repository("team/pinned"), Tag("1"), Digest.parse(ONE.index.digest))
    stored.lose_index()
    sweep_to(stored, stored.size() - 1)
    kept = ["quay.io/team/imported:1", "quay.io/team/pinned:1", "quay.io/team/synced:1"]
    assert stored.names() == kept
    sweep_to(stored, 1)
    assert stored.names() == kept[:2]
    catalog = Catalog(stored.root)
    assert all(catalog.is_complete(image) for image in catalog.images)
    assert set(catalog.blobs) == catalog.needed_by(catalog.images)
