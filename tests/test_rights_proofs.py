"""What is learned from a question about rights: no more than was said, and nothing that ends the service."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.cache.verify import Verification
from mitm_cache.demo.access import Access
from mitm_cache.demo.image import KIB, Image, generate
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Threaded, in_thread

ONE, OTHER = "team/one", "team/other"
USERS = {"ann": "anns-password"}
ANN = {"Authorization": "Basic " + base64.b64encode(b"ann:anns-password").decode()}


@pytest.fixture(scope="session")
def image() -> Image:
    return generate(sizes=[40 * KIB], platforms=["linux/amd64"], seed="proofs")


@pytest.fixture
def upstream(tmp_path: Path, image: Image) -> Iterator[LyingUpstream]:
    private = {ONE: {"ann"}}
    with LyingUpstream(tmp_path, access=Access(scheme="basic", users=dict(USERS), private=private)) as it:
        for name in (ONE, OTHER):
            it.registry.put(name, image, "1")
        yield it


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Iterator[Threaded]:
    with in_thread(tmp_path / "data", upstream) as cache:
        yield cache


def layer(image: Image) -> str:
    return str(max(image.blobs.items(), key=lambda item: item[1].size)[0])


@pytest.mark.parametrize("location", ["https://[x/", "https://[::1/v2/x", "//[", "http://[/v2/", "\u00e9", ""])
def test_a_redirect_to_nonsense(cache: Threaded, upstream: LyingUpstream, image: Image, location: str) -> None:
    """A registry may answer a question about strangers, which is asked beside a pull, as it likes: the pulls go on."""
    nonsense = upstream.lie("blob", faults.redirect_to(location), method="HEAD")
    target = f"/v2/{ONE}/blobs/{layer(image)}"
    with cache.client() as client:
        assert client.get(target, ANN).status == 200
        while not nonsense.told:
            assert client.get(target, ANN).status == 200
        reply = client.get(target)
        assert reply.status in (401, 502)
        if reply.status == 502:
            assert "redirects" in reply.message
        assert client.get(target, ANN).outcome == "HIT"
    assert "internal error" not in cache.log.text


def test_the_size_that_is_learned(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """Where a repository's right is proven by one byte, what it holds has the size of the whole."""
    digest = layer(image)
    signed = upstream.storage.sign(upstream.storage.put(digest, image.blobs[digest]), name="127.0.0.1")
    upstream.lie("blob", faults.redirect_to(signed), method="HEAD")
    with cache.client() as client:
        for name in (ONE, OTHER):
            assert client.get(f"/v2/{name}/blobs/{digest}", ANN).status == 200
    [*_, proof] = upstream.requests.select(kind="object")
    assert (proof.status, proof.headers["range"]) == (206, "bytes=0-0")
    assert Verification(cache.data).run().flaws == []
