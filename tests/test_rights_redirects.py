"""A redirect is no proof: a registry that sends every question on has said nothing about who may have what."""

import base64
import http.client
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mitm_cache.demo.access import Access
from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.demo.message import Answer, Incoming, Proceed, text
from mitm_cache.oci.digest import Digest
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Reply, Threaded, in_thread

ABSENT = f"sha256:{'0' * 64}"
PAGE = "<html>Please log in"
OF_PAGE = Digest.of(PAGE.encode())
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


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "target",
    [
        f"/v2/{PRIVATE}/blobs/{ABSENT}",
        f"/v2/{PRIVATE}/blobs/{OF_PAGE}",
        f"/v2/{PRIVATE}/manifests/{ABSENT}",
        f"/v2/{PRIVATE}/manifests/{OF_PAGE}",
        f"/v2/{PRIVATE}/manifests/1",
        f"/v2/{PRIVATE}/manifests/none",
        f"/v2/{PRIVATE}/tags/list",
    ],
)
def test_a_page_for_people_lets_nobody_in(
    cache: Threaded, upstream: LyingUpstream, other: LyingUpstream, image: Image, target: str, method: str
) -> None:
    """Whatever a stranger asks for first, a page to log in is neither that nor a yes to all that is cached."""
    digest, data = layer(image)
    assert ask(cache, f"/v2/{PRIVATE}/blobs/{digest}", authorization=ANN).body == data
    upstream.lie("/*", strangers_log_in(other.storage.url("/login", name="127.0.0.1")))
    other.lie("object", login_page)
    with suppress(http.client.IncompleteRead):
        ask(cache, target, method=method)
    reply = ask(cache, f"/v2/{PRIVATE}/blobs/{digest}")
    assert reply.status >= 400
    assert data[:64] not in reply.body
    upstream.stop()
    assert ask(cache, f"/v2/{PRIVATE}/blobs/{digest}").status == 403


@pytest.mark.parametrize(
    "first",
    ["", *(f"{way} /v2/{PRIVATE}/{room}/{ABSENT}" for way in ("HEAD", "GET") for room in ("blobs", "manifests"))],
)
@pytest.mark.parametrize("room", ["blobs", "manifests"])
def test_a_page_in_place_of_a_registry(
    cache: Threaded, upstream: LyingUpstream, other: LyingUpstream, image: Image, first: str, room: str
) -> None:
    """As it is shown while a registry is mended, with 200 to every question: it is no registry's word."""
    digest = layer(image)[0] if room == "blobs" else image.index.digest
    target = f"/v2/{PRIVATE}/{room}/{digest}"
    assert ask(cache, target, authorization=ANN).status == 200
    for each in (upstream, other):
        each.lie("/*", login_page)
    if first:
        with suppress(http.client.IncompleteRead):
            ask(cache, first.partition(" ")[2], method=first.partition(" ")[0])
    for name in ("", OPEN):
        for method in ("HEAD", "GET"):
            assert ask(cache, target, method=method, name=name).status >= 400
    assert ask(cache, target, authorization=ANN).outcome == "HIT"


def test_tags_while_there_is_a_page(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """Who may have what a tag or a list was is served that, and is told so; nobody is given the page for it."""
    target, tags = f"/v2/{PRIVATE}/manifests/1", f"/v2/{PRIVATE}/tags/list"
    assert ask(cache, target, authorization=ANN).outcome == "MISS"
    listed = ask(cache, tags, authorization=ANN).body
    upstream.lie("/*", login_page)
    kept = ask(cache, tags, authorization=ANN)
    assert (kept.outcome, kept.body) == ("STALE", listed)
    reply = ask(cache, tags)
    assert (reply.status, reply.outcome) == (502, "ERROR")
    kept = ask(cache, target, authorization=ANN)
    assert (kept.outcome, kept.body) == ("STALE", image.index.body)
    for other in (target, f"/v2/{PRIVATE}/manifests/2"):
        for method in ("GET", "HEAD"):
            reply = ask(cache, other, method=method)
            assert (reply.status, reply.outcome) == (502, "ERROR")
    assert "no manifest" in ask(cache, f"/v2/{PRIVATE}/manifests/2", authorization=ANN).message


def login_page(incoming: Incoming, proceed: Proceed) -> Answer:
    """A page for people, whatever is asked for."""
    return text(200, PAGE, "text/html")


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
