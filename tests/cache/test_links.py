"""Links: a tree of small files, and an index that can be thrown away."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.index import Index
from mitm_cache.cache.links import BATCH, MAX_ACCEPTS, Links
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST, Accept
from mitm_cache.oci.reference import Repository, Tag

HUB = "docker.io"
APP = Repository("team/app")
ONE = Link(Digest.of(b"one"), OCI_MANIFEST, 3)
TWO = Link(Digest.of(b"two"), OCI_INDEX, 3)
ANY = Accept("*/*")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "links"
    folder.mkdir()
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path / "index")
    yield index
    index.close()


@pytest.fixture
def links(tree: Path, index: Index) -> Links:
    return Links(tree, index)


@pytest.fixture
def emptied(tree: Path, tmp_path: Path) -> Iterator[Links]:
    """The same tree after the index was thrown away."""
    index = Index(tmp_path / "another")
    yield Links(tree, index)
    index.close()


def test_holds(links: Links, emptied: Links) -> None:
    """A content is held by the repository it was seen in and by no other, with and without the index."""
    links.hold(HUB, APP, ONE)
    for found in (links, emptied, emptied):
        assert found.holds(HUB, APP, ONE.digest) == ONE
        assert found.holds(HUB, APP, TWO.digest) is None
        assert found.holds("quay.io", APP, ONE.digest) is None
        for name in ("team", "team/app/app", "app", "team/other"):
            assert found.holds(HUB, Repository(name), ONE.digest) is None


def test_tagged(links: Links, emptied: Links) -> None:
    """A tag is what it was last seen to be, for clients that take the same types, however they say so."""
    index_first, manifests = Accept(f"{OCI_INDEX}, {OCI_MANIFEST}"), Accept(OCI_MANIFEST)
    links.tag(HUB, APP, Tag("1"), index_first, ONE)
    links.tag(HUB, APP, Tag("1"), index_first, TWO)
    links.tag(HUB, APP, Tag("1"), manifests, ONE)
    for found in (links, emptied, emptied):
        assert found.tagged(HUB, APP, Tag("1"), Accept(OCI_MANIFEST, OCI_INDEX)) == TWO
        assert found.tagged(HUB, APP, Tag("1"), manifests) == ONE
        assert found.tagged(HUB, APP, Tag("1"), ANY) is None
        assert found.tagged(HUB, APP, Tag("2"), manifests) is None
        assert found.tagged("quay.io", APP, Tag("1"), manifests) is None


def test_a_tag_is_no_content(links: Links) -> None:
    """To have seen a tag is not to hold what it means."""
    links.tag(HUB, APP, Tag("1"), ANY, ONE)
    assert links.holds(HUB, APP, ONE.digest) is None


def test_names_do_not_meet(links: Links, tree: Path) -> None:
    """A repository below another, a registry with a port and the longest names keep apart and fit on disk."""
    long = Repository("a" * 255)
    for registry, repository in [(HUB, Repository("team")), (HUB, APP), ("h.example:5000", APP), (HUB, long)]:
        links.hold(registry, repository, ONE)
        links.tag(registry, repository, Tag("x" * 128), ANY, ONE)
    assert links.holds(HUB, long, ONE.digest) == ONE
    assert links.holds("h.example", APP, ONE.digest) is None
    assert len([path for path in tree.rglob("*") if path.is_file()]) == 8


def test_written_once(links: Links, tree: Path) -> None:
    """A link that says the same is not written again, and no draft is left."""
    links.hold(HUB, APP, ONE)
    [file] = [path for path in tree.rglob("*") if path.is_file()]
    before = file.stat()
    links.hold(HUB, APP, ONE)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    links.hold(HUB, APP, Link(ONE.digest, "a/b", 3))
    assert [path for path in tree.rglob("*") if path.is_file()] == [file]
    assert Link.from_json(file.read_text()).media_type == "a/b"


def test_forget(links: Links, emptied: Links) -> None:
    """Every link to content that is gone goes too, in the tree and in the index; the others stay."""
    links.hold(HUB, APP, ONE)
    links.hold(HUB, APP, TWO)
    links.hold("quay.io", APP, ONE)
    links.tag(HUB, APP, Tag("1"), ANY, ONE)
    links.tag(HUB, APP, Tag("2"), ANY, TWO)
    links.forget({ONE.digest})
    links.hold(HUB, Repository("barrier"), TWO)  # the index is written in one thread: what came before is done
    for found in (links, emptied):
        assert found.holds(HUB, APP, ONE.digest) is None
        assert found.holds("quay.io", APP, ONE.digest) is None
        assert found.tagged(HUB, APP, Tag("1"), ANY) is None
        assert found.holds(HUB, APP, TWO.digest) == TWO
        assert found.tagged(HUB, APP, Tag("2"), ANY) == TWO


def test_index_ahead_of_the_tree(links: Links, emptied: Links, tree: Path) -> None:
    """A link whose file is gone is written again, whatever the index still says of it."""
    links.hold(HUB, APP, ONE)
    [file] = [path for path in tree.rglob("*") if path.is_file()]
    file.unlink()
    links.hold(HUB, APP, ONE)
    assert emptied.holds(HUB, APP, ONE.digest) == ONE


def test_index_behind_the_tree(links: Links, emptied: Links) -> None:
    """An index that missed a change, by a crash between the two writes, learns it with the next write."""
    links.tag(HUB, APP, Tag("1"), ANY, ONE)
    emptied.tag(HUB, APP, Tag("1"), ANY, TWO)
    links.tag(HUB, APP, Tag("1"), ANY, TWO)
    assert links.tagged(HUB, APP, Tag("1"), ANY) == TWO


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"x" * 5000], ids=["empty", "cut", "no text", "long"])
def test_damaged(links: Links, emptied: Links, tree: Path, damage: bytes) -> None:
    """A damaged link is not known, it does not keep the others from being forgotten, and writing it heals it."""
    links.hold(HUB, APP, ONE)
    [file] = [path for path in tree.rglob("*") if path.is_file()]
    file.write_bytes(damage)
    links.hold(HUB, APP, TWO)
    assert emptied.holds(HUB, APP, ONE.digest) is None
    emptied.forget({TWO.digest})
    assert [path for path in tree.rglob("*") if path.is_file()] == [file]
    emptied.hold(HUB, APP, ONE)
    assert emptied.holds(HUB, APP, ONE.digest) == ONE
    assert file.read_text() == ONE.to_json()


def test_unwritable(links: Links, tree: Path) -> None:
    """Where the disk refuses, the error is the store's and the index does not claim what is not on disk."""
    shutil.rmtree(tree)
    tree.write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        links.hold(HUB, APP, ONE)
    assert links.holds(HUB, APP, ONE.digest) is None


def test_many(links: Links, emptied: Links, tree: Path) -> None:
    """Many at once are held as each would be, more than are written at a time too, and no draft is left."""
    mine = Link(ONE.digest, OCI_MANIFEST, 3, Origin.IMPORTED)
    links.hold(HUB, APP, mine)
    others = [Link(Digest.of(str(number).encode()), "a/b", number) for number in range(BATCH + 3)]
    links.hold_all(HUB, APP, [ONE, TWO, *others])
    links.hold_all(HUB, APP, [])
    for found in (links, emptied):
        assert [found.holds(HUB, APP, link.digest) for link in [TWO, *others]] == [TWO, *others]
        assert found.holds(HUB, APP, ONE.digest) == mine
    assert sum(path.is_file() for path in tree.rglob("*")) == len(others) + 2


def test_many_that_cannot_be_written(links: Links, tree: Path) -> None:
    """The error is the store's, and the index does not claim what is not on disk."""
    (tree / HUB / str(APP) / "_digests" / TWO.digest.filename / "in the way").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be written"):
        links.hold_all(HUB, APP, [ONE, TWO])
    shutil.rmtree(tree)
    tree.write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        links.hold_all(HUB, APP, [TWO])
    assert links.holds(HUB, APP, TWO.digest) is None


def test_tags_beside_a_stray_file(links: Links, tree: Path) -> None:
    """What is no folder of a tag is none, and neither is an empty one; the others are listed all the same."""
    links.tag(HUB, APP, Tag("1"), ANY, ONE)
    (tree / HUB / "team/app/_tags/README").write_bytes(b"")
    (tree / HUB / "team/app/_tags/empty").mkdir()
    assert links.tags(HUB, APP) == ["1"]


def test_unreadable(links: Links, tree: Path) -> None:
    """What cannot be read is no miss."""
    links.hold(HUB, APP, ONE)
    name = f"{HUB}/{APP}/_digests/{TWO.digest.filename}"
    (tree / name).mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        links.holds(HUB, APP, TWO.digest)


def test_as_many_kinds_of_clients_as_there_are(links: Links, index: Index, emptied: Links, tree: Path) -> None:
    """Anybody may send any Accept: of what a tag was for each the latest few are kept, and what was given."""
    one = Tag("1")
    links.give(HUB, APP, one, TWO)
    kinds = [Accept(OCI_MANIFEST, f"application/x-{number}") for number in range(MAX_ACCEPTS + 5)]
    folder = tree / HUB / str(APP) / "_tags" / "1"
    for number, accept in enumerate(kinds):
        links.tag(HUB, APP, one, accept, ONE)
        os.utime(folder / accept.key, (number, number))
    assert {path.name for path in folder.iterdir()} == {"any", *(accept.key for accept in kinds[5:])}
    index.drop_all([])  # returns once all before it is written
    for found in (links, emptied):
        assert [found.tagged(HUB, APP, one, accept) for accept in (kinds[4], kinds[5], kinds[-1])] == [None, ONE, ONE]


def test_a_kind_that_leaves(links: Links, tree: Path) -> None:
    """Where one is removed while they are looked at, by another process, the others are known all the same."""
    one = Tag("1")
    links.tag(HUB, APP, one, Accept(OCI_MANIFEST), ONE)
    (tree / HUB / str(APP) / "_tags" / "1" / "gone").symlink_to("nowhere")  # listed, and not there
    assert list(links.told(HUB, APP, one)) == [ONE]
