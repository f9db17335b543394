"""What is kept of manifests: enough to do without them, and never believed where it is damaged."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mitm_cache.cache.catalog import Catalog
from mitm_cache.cache.outlines import FILE, WORTH, Outline, Outlines
from mitm_cache.cache.survey import Survey
from mitm_cache.demo.image import KIB, generate
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_MANIFEST
from tests.needs import needs_root
from tests.stored import Stored

AMD, ARM = "linux/amd64", "linux/arm64"
CONFIG = "application/vnd.oci.image.config.v1+json"


def manifests(stored: Stored, count: int) -> list[Digest]:
    """Manifests, each with a configuration that is here and a layer that is not."""
    found = []
    for number in range(count):
        config = stored.keep(json.dumps({"os": "linux", "architecture": "arm64", "number": number}).encode())
        layer = Digest.of(str(number).encode())
        document = {
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": CONFIG, "digest": str(config), "size": 9},
            "layers": [{"digest": str(layer), "size": 1}],
        }
        found.append(stored.keep(json.dumps(document).encode()))
    return found


def outlines(stored: Stored) -> Outlines:
    return Outlines(stored.layout.index, Survey(stored.root))


def look(stored: Stored, digests: list[Digest]) -> tuple[Outlines, list[Outline | None]]:
    """Everything that can be told of these manifests."""
    read = outlines(stored)
    found = [read.of(digest) for digest in digests]
    for each in found:
        if each is not None:
            read.platform(each)
    return read, found


def test_without_the_manifests(stored: Stored) -> None:
    """What was saved tells the same when manifests and configurations cannot be read any more."""
    digests = manifests(stored, WORTH)
    index = {"manifests": [{"digest": str(digests[0]), "platform": {"os": "linux", "architecture": "amd64"}},
                           {"digest": str(digests[1])}]}  # fmt: skip
    digests.append(stored.keep(json.dumps(index).encode()))
    read, found = look(stored, digests)
    last = found[-1]
    assert last is not None
    assert last.children == ((digests[0], AMD), (digests[1], ""))
    assert found[0] is not None
    assert (found[0].platform, len(found[0].blobs)) == (ARM, 2)
    read.save(set(digests))
    for path in stored.layout.blobs.glob("*/*/*"):
        path.write_bytes(b"")
    assert look(stored, digests)[1] == found


def test_what_has_left(stored: Stored) -> None:
    """Of manifests that are not here nothing is kept, and nothing is told."""
    digests = manifests(stored, WORTH)
    read, _ = look(stored, digests)
    read.save(set(digests[1:]))
    stored.blobs.remove(digests[0])
    found = look(stored, digests)[1]
    assert found[0] is None
    assert None not in found[1:]


def test_few_are_not_worth_it(stored: Stored) -> None:
    """A file is written for many, so that who looks at a small cache leaves no trace."""
    digests = manifests(stored, 3)
    look(stored, digests)[0].save(set(digests))
    assert not (stored.layout.index / FILE).exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"arm64", b"amd64", 1)),
        lambda path: path.write_bytes(b""),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["torn", "changed", "empty", "a folder"],
)
def test_damaged(stored: Stored, damage: Callable[[Path], object]) -> None:
    """It is not believed then, and the manifests are read."""
    digests = manifests(stored, WORTH)
    read, found = look(stored, digests)
    read.save(set(digests))
    damage(stored.layout.index / FILE)
    read, again = look(stored, digests)
    assert again == found
    read.save(set(digests))  # and made anew where that may be done
    assert [path.name for path in stored.layout.index.glob(f"{FILE}.*")] == []


def test_rows_of_another_kind(stored: Stored) -> None:
    """A row that is not understood is as good as none."""
    digests = manifests(stored, WORTH)
    read, found = look(stored, digests)
    read.save(set(digests))
    path = stored.layout.index / FILE
    for row in ("[]", '[[["x","y"]],[],"",null]', "7", '[[],["sha256:1"],"",null]'):
        body = json.dumps({str(digest): json.loads(row) for digest in digests}).encode()
        head = path.read_bytes().partition(b"\n")[0].rpartition(b" ")[0].decode()
        path.write_text(f"{head} {Digest.of(body).hex}\n{body.decode()}")
        assert look(stored, digests)[1] == found


@needs_root()
def test_root_leaves_no_file(stored: Stored) -> None:
    """Who is not the owner writes nothing there: the service could not replace it."""
    digests = manifests(stored, WORTH)
    os.chown(stored.layout.index, 65534, 65534)
    look(stored, digests)[0].save(set(digests))
    assert not (stored.layout.index / FILE).exists()


def test_by_a_catalog(stored: Stored) -> None:
    """A catalog saves what it has read, and the next one tells the same by it."""
    for number in range(WORTH // 2):
        stored.put("team/app", str(number), generate(sizes=[1], seed=str(number), platforms=[AMD]))
    first = Catalog(stored.root)
    first.save()
    assert (stored.layout.index / FILE).exists()
    before = {image: (first.needs(image.digest), first.parts(image)) for image in first.images}
    for digest in first.manifests():
        stored.blobs.path(digest).write_bytes(b"")
        stored.use(digest, 3600)
    second = Catalog(stored.root)
    assert {image: (second.needs(image.digest), second.parts(image)) for image in second.images} == before
    stored.put("team/web", "1", generate(sizes=[KIB], seed="web"))
    assert Catalog(stored.root).is_complete(stored.find("quay.io/team/web:1"))
