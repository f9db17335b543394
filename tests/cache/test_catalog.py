"""Which images there are, by the files alone, and what each of them needs."""

import json
import time
from pathlib import Path

import pytest

from mitm_cache.cache.catalog import Catalog
from mitm_cache.cache.confirmed import Confirmed
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.pins import Pins
from mitm_cache.cache.tree import count_tags, read_names
from mitm_cache.demo.content import Memory
from mitm_cache.demo.image import KIB, Image, Layer, Manifest, assemble, generate, layer
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_INDEX
from mitm_cache.oci.reference import Repository, Tag
from tests.stored import ACCEPT, DAY, HOUR, REGISTRY, Stored

AMD, ARM = "linux/amd64", "linux/arm64"
ONE = generate(sizes=[KIB, 2 * KIB], seed="one")
TWO = generate(sizes=[KIB], seed="two")
APP = Repository("team/app")


def digest(image: Image) -> Digest:
    return Digest.parse(image.index.digest)


def test_nothing(tmp_path: Path) -> None:
    """Of a directory that is not there nothing is known, and it is not made."""
    assert Catalog(tmp_path / "none").images == []
    assert list(tmp_path.iterdir()) == []


def test_names(stored: Stored) -> None:
    """Tags are images, and so is what is held without one; what an index lists is not one more."""
    stored.put("team/app", "1", ONE)
    stored.put("team/app", "latest", ONE)
    stored.put("team/app", None, TWO)
    stored.put("library/app", "1", TWO, registry="docker.io")
    names = [
        "docker.io/library/app:1",
        f"quay.io/team/app@{digest(TWO)}",
        "quay.io/team/app:1",
        "quay.io/team/app:latest",
    ]
    assert stored.names() == names


def test_sizes(stored: Stored) -> None:
    """What another image needs too is shared, by another tag of the same as by another image with the same layer."""
    base, left, right = layer("base", 5 * KIB), layer("left", 2 * KIB), layer("right", KIB)
    stored.put("team/app", "left", assemble({AMD: [base, left]}))
    stored.put("team/app", "right", assemble({AMD: [base, right]}))
    catalog = Catalog(stored.root)
    own, shared = catalog.sizes(stored.find("quay.io/team/app:left"))
    assert shared == base.content.size
    total = sum(kept.size for kept in catalog.blobs.values())
    other, _ = catalog.sizes(stored.find("quay.io/team/app:right"))
    assert own + other + shared == total == stored.size()
    stored.put("team/app", "again", assemble({AMD: [base, left]}))
    assert Catalog(stored.root).sizes(stored.find("quay.io/team/app:left")) == (0, own + shared)


def test_platforms(stored: Stored) -> None:
    """What is here of each platform is counted, and one that was never pulled makes nothing incomplete."""
    stored.put("team/app", "1", ONE, platforms=[AMD])
    image, catalog = stored.find("quay.io/team/app:1"), Catalog(stored.root)
    assert [(catalog.platform(part), part.here, part.blobs) for part in catalog.parts(image)] == [
        (AMD, 3, 3),
        (ARM, 0, None),
    ]
    assert catalog.is_complete(image)
    stored.blobs.remove(Digest.parse(json.loads(ONE.platforms[AMD].body)["layers"][0]["digest"]))
    catalog = Catalog(stored.root)
    assert [part.here for part in catalog.parts(image)] == [2, 0]
    assert not catalog.is_complete(image)


def test_platform_of_a_plain_manifest(stored: Stored) -> None:
    """Where no index tells the platform the configuration does, if it is here."""
    plain = Image(ONE.platforms[ARM], {}, ONE.blobs)
    stored.put("team/app", "1", plain)
    catalog = Catalog(stored.root)
    [part] = catalog.parts(catalog.images[0])
    assert catalog.platform(part) == ARM
    config = json.loads(plain.index.body)["config"]["digest"]
    stored.blobs.remove(Digest.parse(config))
    catalog = Catalog(stored.root)
    [part] = catalog.parts(catalog.images[0])
    assert (catalog.platform(part), part.complete) == ("", False)


def test_used(stored: Stored) -> None:
    """An image is used when one of its manifests is: clients ask for an index, or for a platform's."""
    top = stored.put("team/app", "1", ONE, age=9 * DAY)
    image = stored.find("quay.io/team/app:1")
    assert time.time() - (Catalog(stored.root).used(image) or 0) == pytest.approx(9 * DAY, abs=60)
    stored.use(Digest.parse(ONE.platforms[AMD].digest), HOUR)
    assert time.time() - (Catalog(stored.root).used(image) or 0) == pytest.approx(HOUR, abs=60)
    assert top == image.digest


def test_moved(stored: Stored) -> None:
    """A tag is what upstream said last, if that is here; without the index it is what was served last."""
    stored.put("team/app", "1", ONE)
    stored.put("team/app", None, TWO)
    confirmed = Confirmed(stored.index)
    confirmed.keep(REGISTRY, APP, Tag("1"), ACCEPT, Link(digest(TWO), OCI_INDEX, 3), time.time())
    stored.index.put("barrier", "x")
    assert {(str(each), each.digest) for each in Catalog(stored.root).images} == {
        ("quay.io/team/app:1", digest(TWO)),
        (f"quay.io/team/app@{digest(ONE)}", digest(ONE)),
    }
    stored.lose_index()
    assert stored.find("quay.io/team/app:1").digest == digest(ONE)


def test_known_but_not_here(stored: Stored) -> None:
    """A tag that was only asked for is no image; a pinned one is, and it is not complete."""
    stored.links.tag(REGISTRY, APP, Tag("1"), ACCEPT, Link(digest(ONE), OCI_INDEX, 3))
    assert stored.names() == []
    Pins(stored.layout.links).add(REGISTRY, APP, Tag("1"), digest(ONE))
    catalog = Catalog(stored.root)
    [image] = catalog.images
    assert (str(image), image.pinned) == ("quay.io/team/app:1", True)
    assert (catalog.is_complete(image), catalog.used(image), catalog.sizes(image)) == (False, None, (0, 0))


def test_pins(stored: Stored) -> None:
    """A tag that is pinned stays so when it moves; a digest is pinned by whatever name."""
    pins = Pins(stored.layout.links)
    stored.put("team/app", "1", ONE)
    stored.put("team/app", "2", TWO)
    assert pins.add(REGISTRY, APP, Tag("1"), digest(ONE))
    assert not pins.add(REGISTRY, APP, Tag("1"), digest(ONE))
    assert [str(image) for image in Catalog(stored.root).images if image.pinned] == ["quay.io/team/app:1"]
    stored.put("team/app", "1", TWO)
    assert {(str(each), each.pinned) for each in Catalog(stored.root).images} == {
        ("quay.io/team/app:1", True),
        ("quay.io/team/app:2", False),
        (f"quay.io/team/app@{digest(ONE)}", False),
    }
    pins.add(REGISTRY, APP, digest(TWO), digest(TWO))
    assert stored.find("quay.io/team/app:2").pinned
    assert pins.remove(REGISTRY, APP, digest(TWO))
    assert not pins.remove(REGISTRY, APP, digest(TWO))
    assert not stored.find("quay.io/team/app:2").pinned


def test_pins_that_are_damaged(stored: Stored) -> None:
    """A pin is a file's existence: what is torn in it changes nothing."""
    stored.put("team/app", "1", ONE)
    Pins(stored.layout.links).add(REGISTRY, APP, Tag("1"), digest(ONE))
    folder = stored.layout.links / REGISTRY / "team/app/_pins"
    (folder / "tags" / "1").write_text("")
    (folder / "tags" / ".draft").touch()
    (folder / "digests").mkdir()
    (folder / "digests" / "README").touch()
    assert stored.find("quay.io/team/app:1").pinned
    stored.links.forget({digest(TWO)})
    assert stored.find("quay.io/team/app:1").pinned


def test_origin(stored: Stored) -> None:
    """How an image came is told by the repository's own link too: a tag that was confirmed since says less."""
    stored.put("team/app", "1", ONE, origin=Origin.IMPORTED)
    stored.links.tag(REGISTRY, APP, Tag("1"), ACCEPT, Link(digest(ONE), OCI_INDEX, len(ONE.index.body)))
    assert stored.find("quay.io/team/app:1").origin is Origin.IMPORTED


def test_strange_content(stored: Stored) -> None:
    """Content is what its digest says, and may be anything; files that are no links are passed over."""
    nothing = Image(Manifest(OCI_INDEX, b"[]"), {}, {})
    itself = Layer(Memory(b"x"), "")
    stored.put("team/app", "1", nothing)
    stored.put("team/app", "2", assemble({AMD: [itself, itself]}))
    folder = stored.layout.links / REGISTRY
    (folder / "team/app/_digests/README").touch()
    (folder / "team/app/_tags/1/ffff").write_text("{nonsense")
    (folder / "team/app/_tags/-bad").mkdir()
    (folder / "Team/_tags/1").mkdir(parents=True)
    assert stored.names() == ["quay.io/team/app:1", "quay.io/team/app:2"]


def test_names_by_prefix(stored: Stored) -> None:
    """Names for a shell, without a file that is opened."""
    stored.put("team/app", "1", ONE)
    stored.put("team/app", "1.5", ONE)
    stored.put("team/apple", "1", ONE)
    links = stored.layout.links
    assert list(read_names(links, "quay.io/team/app:1")) == ["quay.io/team/app:1", "quay.io/team/app:1.5"]
    assert len(list(read_names(links, "quay.io/te"))) == 3
    assert list(read_names(links, "quay.io/other")) == []
    assert list(read_names(links / "none", "")) == []


def test_count(stored: Stored) -> None:
    """Tags are counted by how they came, those that have something here; none where there is no time."""
    stored.put("team/app", "1", ONE)
    stored.put("team/app", "2", TWO, origin=Origin.SYNCED)
    stored.links.tag(REGISTRY, APP, Tag("3"), ACCEPT, Link(Digest.of(b"away"), OCI_INDEX, 3))
    Pins(stored.layout.links).add(REGISTRY, APP, Tag("1"), digest(ONE))
    tally = count_tags(stored.root, seconds=60)
    assert tally is not None
    assert (dict(tally.origins), tally.pinned) == ({Origin.PULLED: 1, Origin.SYNCED: 1}, 1)
    assert count_tags(stored.root, seconds=-1) is None
