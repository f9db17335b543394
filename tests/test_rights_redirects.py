"""A redirect is no proof: a registry that sends every question on has said nothing about who may have what."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.access import Access
from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.demo.message import Answer, Incoming, Proceed, text
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Reply, Threaded, in_thread

PRIVATE, OPEN = "team/private", "open.demo"
USERS = {"ann": "anns-password"}
ANN = "Basic " + base64.b64encode(b"ann:anns-password").decode()


@pytest.fixture(scope="session")
def image() -> Image:
    return generate(sizes=[40 * KIB], platforms=["linux/amd64"], seed="redirects")


@pytest.fixture
def upstream(tmp_path: Path, image: Image) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path, access=Access(scheme="basic", users=dict(USERS), private={PRIVATE: {"ann"}})) as it:
        it.registry.put(PRIVATE, image, "1")
        yield it


@pytest.fixture
def other(tmp_path: Path) -> Iterator[LyingUpstream]:
    """Another registry, which has nothing of the image and wants no credential."""
    folder = tmp_path / "other"
    folder.mkdir()
    with LyingUpstream(folder, name=OPEN) as it:
        yield it


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream, other: LyingUpstream) -> Iterator[Threaded]:
    with in_thread(tmp_path / "data", upstream, other) as cache:
        yield cache


def layer(image: Image) -> tuple[str, bytes]:
    digest, content = max(image.blobs.items(), key=lambda item: item[1].size)
    return str(digest), b"".join(content.chunks(0, content.size))


def ask(cache: Threaded, target: str, *, name: str = "", authorization: str = "", method: str = "GET") -> Reply:
    headers = {"Accept": "*/*"} | ({"Authorization": authorization} if authorization else {})
    with cache.client(name=name or None) as client:
        return client.ask(method, target, headers)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("room", ["blobs", "manifests"])
def test_a_registry_that_sends_all_questions_on(
    cache: Threaded, upstream: LyingUpstream, other: LyingUpstream, image: Image, room: str, method: str
) -> None:
    """As registry.k8s.io does: every manifest and blob is redirected to a registry elsewhere, which has none of it."""
    digest = layer(image)[0] if room == "blobs" else image.index.digest
    assert ask(cache, f"/v2/{PRIVATE}/{room}/{digest}", authorization=ANN).status == 200

    def elsewhere(incoming: Incoming) -> str:
        return other.storage.url(f"/v2/mirrored{incoming.path.removeprefix('/v2')}", name="127.0.0.1")

    for kind in ("blob", "manifest"):
        other.lie(kind, faults.redirect_to(elsewhere))
    other.lie("object", faults.refuse(404, "NAME_UNKNOWN"))
    reply = ask(cache, f"/v2/any/thing/{room}/{digest}", name=OPEN, method=method)
    assert (reply.status, reply.outcome) == (404, "REFUSED")
    again = ask(cache, f"/v2/any/thing/{room}/{digest}", name=OPEN, method=method)
    assert again.status == 404


def strangers_log_in(page: str) -> faults.Fault:
    """As a proxy before a registry does: who has no credential is sent to a page for people."""

    def fault(incoming: Incoming, proceed: Proceed) -> Answer:
        known = incoming.headers.get("authorization") == ANN
        return proceed(incoming) if known else faults.redirect_to(page, 302)(incoming, proceed)

    return fault


@pytest.mark.parametrize("found", [True, False], ids=["a page", "nothing there"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_registry_behind_a_login_page(
    cache: Threaded, upstream: LyingUpstream, other: LyingUpstream, image: Image, method: str, found: bool
) -> None:
    """A redirect to log in is no yes: not to a stranger, and not for strangers when somebody else asks."""
    digest, data = layer(image)
    target = f"/v2/{PRIVATE}/blobs/{digest}"
    assert ask(cache, target, authorization=ANN).body == data
    upstream.lie("blob", strangers_log_in(other.storage.url("/login", name="127.0.0.1")))
    other.lie("object", login_page if found else faults.refuse(404, "UNKNOWN"))
    for _ in range(2):
        reply = ask(cache, target, method=method)
        assert reply.status >= 400
        assert data[:64] not in reply.body
        assert ask(cache, target, authorization=ANN).outcome == "HIT"


def login_page(incoming: Incoming, proceed: Proceed) -> Answer:
    """A page for people, whatever is asked for."""
    return text(200, "<html>Please log in", "text/html")


def test_storage_that_refuses_head_is_a_yes(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """Where HEAD is redirected to an address that is signed for GET, one byte of it is the proof."""
    digest, data = layer(image)
    target = f"/v2/{PRIVATE}/blobs/{digest}"
    assert ask(cache, target, authorization=ANN).body == data
    signed = upstream.storage.sign(upstream.storage.put(digest, image.blobs[digest]), name="127.0.0.1")
    upstream.lie("blob", faults.redirect_to(signed), method="HEAD")
    upstream.registry.access.users["eve"] = "eves-password"
    upstream.registry.access.private[PRIVATE] = {"ann", "eve"}
    upstream.requests.clear()
    for _ in range(3):
        reply = ask(cache, target, authorization="Basic " + base64.b64encode(b"eve:eves-password").decode())
        assert (reply.body, reply.outcome) == (data, "HIT")
    [proof] = upstream.requests.select(kind="object")
    assert (proof.method, proof.status, proof.headers["range"]) == ("GET", 206, "bytes=0-0")


def test_trouble_with_strangers_is_not_the_owners(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """A registry that answers strangers 429 says nothing about a client with a right of its own."""
    digest, data = layer(image)
    target = f"/v2/{PRIVATE}/blobs/{digest}"
    assert ask(cache, target, authorization=ANN).body == data
    upstream.registry.access.users["eve"] = "eves-password"
    upstream.registry.access.private[PRIVATE] = {"ann", "eve"}

    def limited(incoming: Incoming, proceed: Proceed) -> Answer:
        busy = faults.refuse(429, "TOOMANYREQUESTS")
        return proceed(incoming) if "authorization" in incoming.headers else busy(incoming, proceed)

    upstream.lie("blob", limited)
    reply = ask(cache, target, authorization="Basic " + base64.b64encode(b"eve:eves-password").decode())
    assert (reply.status, reply.outcome) == (200, "HIT")
    assert reply.body == data
