"""Signatures and SBOMs come along: by the registry's list of referrers, and by the tags that stand in for it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.content import Memory
from mitm_cache.demo.image import INDEX, KIB, MANIFEST, Manifest, generate
from tests.fakes.faults import body
from tests.fakes.registry import LyingUpstream
from tests.filling.test_run import HOST, NAME, Cache
from tests.serving import in_thread

IMAGE = generate(sizes=[40 * KIB], platforms=["linux/amd64"], seed="signed")
EMPTY = Memory(b"{}")
LETTERS = Memory(b"a signature")


def signature(subject: Manifest) -> Manifest:
    """A manifest that says something about another."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": EMPTY.digest, "size": EMPTY.size},
        "layers": [{"mediaType": "application/vnd.example", "digest": LETTERS.digest, "size": LETTERS.size}],
        "subject": subject.descriptor(),
    }
    return Manifest(MANIFEST, json.dumps(document).encode())


SIGNATURE = signature(IMAGE.index)


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put(NAME, IMAGE, "1")
        here = upstream.registry.repositories[NAME]
        here.manifests[SIGNATURE.digest] = SIGNATURE
        for content in (EMPTY, LETTERS):
            here.blobs[content.digest] = content
        yield upstream


def test_by_the_list(cache: Cache, upstream: LyingUpstream) -> None:
    """What the registry lists comes, and is listed while upstream is away."""
    listed = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [SIGNATURE.descriptor()]}
    empty = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    upstream.lie(f"/v2/{NAME}/referrers/{IMAGE.index.digest}", body(json.dumps(listed).encode(), INDEX))
    upstream.lie(f"/v2/{NAME}/referrers/*", body(json.dumps(empty).encode(), INDEX))
    cache.report("pull", f"{HOST}/{NAME}:1", "--no-referrers")
    assert SIGNATURE.digest not in cache.blobs()
    cache.report("pull", f"{HOST}/{NAME}:1")
    assert {SIGNATURE.digest, EMPTY.digest, LETTERS.digest} <= cache.blobs()
    upstream.stop()
    with in_thread(cache.data, upstream) as served, served.client() as client:
        told = client.get(f"/v2/{NAME}/referrers/{IMAGE.index.digest}")
        assert [one["digest"] for one in json.loads(told.body)["manifests"]] == [SIGNATURE.digest]
        assert client.get(f"/v2/{NAME}/manifests/{SIGNATURE.digest}", {"Accept": MANIFEST}).body == SIGNATURE.body
    upstream.start()


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_by_tags(cache: Cache, upstream: LyingUpstream, suffix: str) -> None:
    """Registries without such lists have tags instead; the tag is known then too."""
    tag = f"{IMAGE.index.digest.replace(':', '-')}{suffix}"
    index = Manifest(INDEX, json.dumps({"schemaVersion": 2, "manifests": [SIGNATURE.descriptor()]}).encode())
    here = upstream.registry.repositories[NAME]
    pointed = SIGNATURE if suffix else index
    here.manifests[pointed.digest] = pointed
    here.tags[tag] = pointed.digest
    cache.report("pull", f"{HOST}/{NAME}:1")
    assert {pointed.digest, SIGNATURE.digest, LETTERS.digest} <= cache.blobs()
    assert (cache.data / "links" / HOST / NAME / "_tags" / tag).is_dir()
