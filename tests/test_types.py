"""A manifest's Content-Type is its own, however it came here: clients read it by that."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.image import Image
from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Threaded

ONE, OTHER = "team/one", "team/other"
DOCKER = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"}
ANYTHING = {"Accept": "*/*"}


@pytest.fixture
def upstream(tmp_path: Path, image: Image) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as it:
        for name in (ONE, OTHER):
            it.registry.put(name, image, "1")
        yield it


@pytest.mark.parametrize("accept", [DOCKER, ANYTHING], ids=["these types", "any"])
@pytest.mark.parametrize("which", ["index", "manifest"])
def test_asked_for_as_a_blob_before(
    cache: Threaded, upstream: LyingUpstream, image: Image, which: str, accept: dict[str, str]
) -> None:
    """Registries that keep manifests among their blobs give them as such: that does not make them blobs here."""
    manifest = image.index if which == "index" else image.platforms["linux/amd64"]
    blob = f"/v2/{ONE}/blobs/{manifest.digest}"
    upstream.lie(blob, faults.body(manifest.body))
    target = f"/v2/{ONE}/manifests/{manifest.digest}"
    with cache.client() as client:
        assert client.get(blob).body == manifest.body
        for _ in range(2):
            reply = client.get(target, accept)
            assert (reply.outcome, reply.headers["Content-Type"]) == ("HIT", manifest.media_type)
            head = client.head(target, accept)
            assert (head.outcome, head.headers["Content-Type"]) == ("HIT", manifest.media_type)


def test_a_disk_that_takes_no_link(cache: Threaded, image: Image) -> None:
    """What another repository has brought is what it is, where nothing more can be written down of it."""
    (cache.data / "links" / cache.registry / "team").mkdir(parents=True)
    (cache.data / "links" / cache.registry / OTHER).write_bytes(b"")  # no folder
    with cache.client() as client:
        assert client.get(f"/v2/{ONE}/manifests/1", DOCKER).status == 200
        for target in (f"/v2/{OTHER}/manifests/{image.index.digest}", f"/v2/{OTHER}/manifests/1"):
            for method in ("HEAD", "GET"):
                reply = client.ask(method, target, DOCKER)
                assert (reply.status, reply.headers["Content-Type"]) == (200, OCI_INDEX)
