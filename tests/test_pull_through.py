"""What each request of a registry's clients is answered, and what it costs upstream."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mitm_cache.demo.access import Access
from mitm_cache.demo.image import INDEX, KIB, MANIFEST, Image, generate
from mitm_cache.demo.message import Answer, Incoming, Proceed, text
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Client, Reply, Threaded, in_thread

NAME = "team/app"
TAG = f"/v2/{NAME}/manifests/1"
ANY = {"Accept": "*/*"}


@pytest.fixture(scope="session")
def image() -> Image:
    return generate(sizes=[3 * KIB, 300 * KIB])


@pytest.fixture(scope="session")
def newer() -> Image:
    return generate(sizes=[3 * KIB], seed="newer")


def layer(image: Image, repository: str = NAME) -> tuple[str, bytes]:
    """The address and the bytes of the largest blob."""
    digest, content = max(image.blobs.items(), key=lambda item: item[1].size)
    return f"/v2/{repository}/blobs/{digest}", b"".join(content.chunks(0, content.size))


def by_digest(image: Image, repository: str = NAME) -> str:
    return f"/v2/{repository}/manifests/{image.index.digest}"


def asked(upstream: LyingUpstream) -> list[str]:
    """Method and kind of each request upstream since the last time, in order."""
    requests = [f"{each.method} {each.kind}" for each in upstream.requests]
    upstream.requests.clear()
    return requests


# Pulls.


def test_a_pull_twice(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """The first pull fetches each thing once; the second one costs one HEAD of the tag, and nothing else."""
    first = cache.puller().pull(NAME, "1")
    assert first.digest == image.index.digest
    gets = {kind: upstream.requests.count(method="GET", kind=kind) for kind in ("tag", "manifest", "blob", "object")}
    assert gets == {"tag": 0, "manifest": 3, "blob": len(image.blobs), "object": len(image.blobs)}
    upstream.requests.clear()
    second = cache.puller().pull(NAME, "1")
    assert second.digest == first.digest
    assert {each.outcome for each in second.requests} == {"HIT", "REVALIDATED"}
    assert asked(upstream) == ["HEAD tag"]


def test_tags_are_revalidated_by_one_head(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """Each request for a tag asks upstream whether it has moved, and fetches nothing that is here."""
    assert client.get(TAG, ANY).outcome == "MISS"
    assert asked(upstream) == ["HEAD tag", "GET manifest"]
    for _ in range(3):
        reply = client.get(TAG, ANY)
        assert (reply.outcome, reply.headers["X-Cache-Reason"]) == ("REVALIDATED", "tag unchanged")
        assert reply.body == image.index.body
        assert reply.headers["Docker-Content-Digest"] == image.index.digest
        assert reply.headers["Content-Type"] == INDEX
        assert asked(upstream) == ["HEAD tag"]


def test_head_stays_head(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """HEAD never becomes GET: of a tag, a manifest and a blob, cold and warm; its headers are those of GET."""
    target, data = layer(image)
    sizes = {TAG: len(image.index.body), by_digest(image): len(image.index.body), target: len(data)}
    for each, size in sizes.items():
        reply = client.head(each, ANY)
        assert (reply.status, reply.headers["Content-Length"], reply.body) == (200, str(size), b"")
        assert reply.headers["Docker-Content-Digest"]
    assert asked(upstream) == ["HEAD tag", "HEAD manifest", "HEAD blob"]
    for each in sizes:
        client.get(each, ANY)
    upstream.requests.clear()
    for each, outcome in zip(sizes, ("REVALIDATED", "HIT", "REVALIDATED"), strict=True):
        reply, whole = client.head(each, ANY), client.get(each, ANY)
        assert (reply.status, reply.outcome, reply.body) == (200, outcome, b"")
        for name in ("Content-Length", "Content-Type", "Docker-Content-Digest", "ETag"):
            assert reply.headers[name] == whole.headers[name]
    assert asked(upstream) == ["HEAD tag", "HEAD tag", "HEAD blob"]


@pytest.mark.parametrize("status", [403, 501])
def test_head_where_storage_refuses_it(client: Client, upstream: LyingUpstream, image: Image, status: int) -> None:
    """A registry that redirects HEAD to an address signed for GET: its size is had by asking for one byte."""
    target, data = layer(image)
    digest = target.rpartition("/")[2]
    path = upstream.storage.put(digest, image.blobs[digest])
    upstream.lie("blob", faults.redirect_to(lambda _: upstream.storage.sign(path, name="127.0.0.1")))
    upstream.lie("object", faults.refuse(status), method="HEAD")
    reply = client.head(target)
    assert (reply.status, reply.headers["Content-Length"]) == (200, str(len(data)))
    assert [each.range for each in upstream.requests.select(kind="object", method="GET")] == ["bytes=0-0"]


def platform_for_old_clients(image: Image) -> faults.Fault:
    """A registry that gives who takes no index the manifest of one platform (as Docker Hub does)."""
    manifest = image.platforms["linux/amd64"]

    def fault(incoming: Incoming, proceed: Proceed) -> Answer:
        if INDEX in incoming.headers.get("accept", ""):
            return proceed(incoming)
        return text(200, manifest.body, manifest.media_type, {"Docker-Content-Digest": manifest.digest})

    return fault


def test_accept_is_kept_apart(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """One tag is two things to clients of two kinds; neither gets the other's, nor makes the other's forgotten."""
    upstream.lie("tag", platform_for_old_clients(image))
    old, new = {"Accept": MANIFEST}, {"Accept": f"{INDEX}, {MANIFEST}"}
    expected = {"old": image.platforms["linux/amd64"], "new": image.index}
    for outcome in ("MISS", "REVALIDATED", "REVALIDATED"):
        for name, accept in (("old", old), ("new", new)):
            reply = client.get(TAG, accept)
            assert (reply.body, reply.headers["Content-Type"]) == (expected[name].body, expected[name].media_type)
            assert reply.outcome == outcome
            if outcome == "REVALIDATED":
                assert reply.headers["X-Cache-Reason"] == "tag unchanged"


def test_accept_has_one_normal_form(client: Client, upstream: LyingUpstream) -> None:
    """However the header is split, ordered or spaced, it is the same question."""
    client.get(TAG, {"Accept": f"{INDEX},{MANIFEST}"})
    for accept in (f"{MANIFEST}, {INDEX}", f"  {INDEX} ;q=0.5 ,{MANIFEST.upper()}"):
        assert client.get(TAG, {"Accept": accept}).headers["X-Cache-Reason"] == "tag unchanged"


def test_a_moved_tag(client: Client, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """The next request after the move gets the new manifest; moved back, the old one is still here."""
    assert client.get(TAG, ANY).body == image.index.body
    upstream.registry.put(NAME, newer, "1")
    upstream.requests.clear()
    reply = client.get(TAG, ANY)
    assert (reply.body, reply.outcome, reply.headers["X-Cache-Reason"]) == (newer.index.body, "MISS", "tag moved")
    assert asked(upstream) == ["HEAD tag", "GET manifest"]
    upstream.registry.put(NAME, image, "1")
    reply = client.get(TAG, ANY)
    assert (reply.body, reply.outcome) == (image.index.body, "REVALIDATED")
    assert reply.headers["X-Cache-Reason"] == "tag moved to a known manifest"
    assert asked(upstream) == ["HEAD tag"]


def test_a_tag_that_is_gone(client: Client, upstream: LyingUpstream) -> None:
    """Upstream's own words, though the manifest is here."""
    client.get(TAG, ANY)
    del upstream.registry.repositories[NAME].tags["1"]
    reply = client.get(TAG, ANY)
    assert (reply.status, reply.code, reply.outcome) == (404, "MANIFEST_UNKNOWN", "REFUSED")
    assert client.head(TAG, ANY).status == 404


def test_a_type_the_client_does_not_take(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """A kept index is not forced on a client that takes none: the registry says what that client is told."""
    client.get(by_digest(image), ANY)
    upstream.requests.clear()
    reply = client.get(by_digest(image), {"Accept": MANIFEST})
    assert (reply.status, reply.code, reply.outcome) == (404, "MANIFEST_UNKNOWN", "RELAY")
    assert asked(upstream) == ["GET manifest"]
    assert client.get(by_digest(image), {"Accept": INDEX}).outcome == "HIT"
    assert client.get(by_digest(image)).outcome == "HIT"


# Several registries.


@pytest.fixture
def other(tmp_path: Path, newer: Image) -> Iterator[LyingUpstream]:
    (tmp_path / "other").mkdir()
    with LyingUpstream(tmp_path / "other", name="other.demo") as other:
        other.registry.put(NAME, newer, "1")
        yield other


@pytest.fixture
def both(tmp_path: Path, upstream: LyingUpstream, other: LyingUpstream) -> Iterator[Threaded]:
    with in_thread(tmp_path / "data", upstream, other) as cache:
        yield cache


def test_registries_share_no_names(
    both: Threaded, upstream: LyingUpstream, other: LyingUpstream, image: Image, newer: Image
) -> None:
    """The same repository and tag at two registries are two images."""
    for _ in range(2):
        assert both.puller().pull(NAME, "1").digest == image.index.digest
        assert both.puller(name="other.demo").pull(NAME, "1").digest == newer.index.digest


def test_registries_share_blobs(both: Threaded, upstream: LyingUpstream, other: LyingUpstream, image: Image) -> None:
    """A blob that came from one registry is not fetched from another one that has it too: it is only asked for it."""
    target, data = layer(image, "mirrored/app")
    both.puller().pull(NAME, "1")
    with both.client(name="other.demo") as client:
        reply = client.get(target)
        assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")  # it does not have it
        other.registry.put("mirrored/app", image, "1")
        other.requests.clear()
        reply = client.get(target)
        assert (reply.body, reply.outcome) == (data, "HIT")
        assert asked(other) == ["HEAD blob"]
        assert client.get(target).outcome == "HIT"
        assert asked(other) == []
        # A manifest keeps its type, though this registry has never sent it.
        reply = client.get(by_digest(image, "mirrored/app"), ANY)
        assert (reply.body, reply.outcome, reply.headers["Content-Type"]) == (image.index.body, "HIT", INDEX)


# What is passed on.


@pytest.mark.parametrize("listener", ["tls", "clear"])
def test_ping_is_passed_on(cache: Threaded, upstream: LyingUpstream, listener: str) -> None:
    """dockerd and skopeo take the challenge from here only: it is upstream's own, each time asked for."""
    access = upstream.registry.access
    with cache.client(listener) as client:
        reply = client.get("/v2/")
        assert (reply.status, reply.outcome, reply.body) == (200, "RELAY", b"{}")
        assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
        access.scheme, access.realm = "bearer", "https://registry.demo/token"
        reply = client.get("/v2/")
        # By the clear listener a client could not reach the https realm.
        scheme = "https" if listener == "tls" else "http"
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"] == f'Bearer realm="{scheme}://registry.demo/token",service="demo"'
        access.scheme = "basic"
        assert client.get("/v2/").headers["WWW-Authenticate"] == 'Basic realm="demo"'
        assert client.head("/v2").status == 401
    assert upstream.requests.count(kind="ping") == 4
    assert upstream.requests.count() == 4  # no token of ours is asked for


def test_token_endpoints_are_passed_through(client: Client, cache: Threaded, upstream: LyingUpstream) -> None:
    """Query, credential and body go to upstream as they came, the answer comes back, and nothing of it is kept."""
    upstream.registry.access = Access(scheme="bearer", users={"ann": "secret"}, private={NAME: {"ann"}})
    target = f"/token?service=demo&scope=repository:{NAME}:pull"
    tokens = set()
    for _ in range(2):
        reply = client.get(target, {"Authorization": "Basic YW5uOnNlY3JldA=="})
        assert (reply.status, reply.outcome) == (200, "RELAY")
        tokens.add(json.loads(reply.body)["token"])
    assert len(tokens) == 2
    for token in tokens:
        assert client.get(TAG, ANY | {"Authorization": f"Bearer {token}"}).status == 200
    assert client.get(target, {"Authorization": "Basic d3Jvbmc6d3Jvbmc="}).status == 401
    body = b"grant_type=password&username=ann&password=secret"
    reply = client.ask("POST", "/token", {"Content-Type": "application/x-www-form-urlencoded", "X-Other": "1"}, body)
    assert reply.status == 405  # the demo registry's own answer to POST
    [record] = upstream.requests.select(kind="token", method="POST")
    assert record.headers["content-length"] == str(len(body))
    assert record.headers["content-type"] == "application/x-www-form-urlencoded"
    assert record.headers["x-other"] == "1"
    assert "expect" not in record.headers


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", f"/v2/{NAME}/blobs/uploads/"),
        ("PATCH", f"/v2/{NAME}/blobs/uploads/some-id"),
        ("GET", f"/v2/{NAME}/blobs/uploads/some-id"),
        ("PUT", TAG),
        ("DELETE", TAG),
        ("DELETE", f"/v2/{NAME}/blobs/sha256:{'0' * 64}"),
        ("OPTIONS", "/v2/"),
        ("POST", "/v2/users/login"),
        ("GET", "/v2/unknown"),
    ],
)
def test_what_is_no_pull_is_not_for_mirrors(cache: Threaded, upstream: LyingUpstream, method: str, target: str) -> None:
    """405 in the registry's own language, and nothing goes upstream: a mirror is asked for pulls."""
    with cache.client("mirror") as mirror:
        reply = mirror.ask(method, target)
    assert (reply.status, reply.code, reply.outcome) == (405, "UNSUPPORTED", "REFUSED")
    assert len(upstream.requests) == 0


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/v2/Team/app/manifests/1", 400, "NAME_INVALID"),
        ("/v2/team%2Fapp/manifests/1", 400, "NAME_INVALID"),
        (f"/v2/{NAME}/blobs/sha256:123", 400, "DIGEST_INVALID"),
        (f"/v2/{NAME}/blobs/md5:{'0' * 32}", 400, "DIGEST_INVALID"),
    ],
)
def test_nonsense_is_refused(client: Client, upstream: LyingUpstream, target: str, status: int, code: str) -> None:
    """What cannot be a name or a digest goes no further than the door."""
    reply = client.get(target)
    assert (reply.status, reply.code) == (status, code)
    assert len(upstream.requests) == 0


def test_a_blob_that_upstream_has_no_more(
    cache: Threaded, client: Client, upstream: LyingUpstream, image: Image
) -> None:
    """A push asks by HEAD which blobs it may leave out: what was cached before upstream removed it is none of them."""
    digest, content = max(image.blobs.items(), key=lambda item: item[1].size)
    target = f"/v2/{NAME}/blobs/{digest}"
    assert client.get(target).status == 200
    there = client.head(target)
    assert (there.status, there.outcome, int(there.headers["Content-Length"])) == (200, "REVALIDATED", content.size)
    gone = upstream.lie("blob", faults.refuse(404, "BLOB_UNKNOWN"), method="HEAD")
    assert client.head(target).status == 404
    assert client.get(target).outcome == "HIT", "who pulls is given it all the same"
    with cache.client("mirror") as mirror:
        assert mirror.head(target).outcome == "HIT", "nobody pushes to a mirror"
    assert gone.told == 1
    for status in (429, 503):
        upstream.truth()
        upstream.lie("blob", faults.refuse(status))
        assert (client.head(target).outcome, client.head(target).status) == ("HIT", 200)
    upstream.stop()
    assert (client.head(target).outcome, client.head(target).status) == ("HIT", 200)


def test_lists_are_passed_on(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """Tags page by page, with the link to the next; never kept."""
    upstream.registry.put(NAME, image, "2", "3")
    for _ in range(2):
        reply = client.get(f"/v2/{NAME}/tags/list?n=2")
        assert json.loads(reply.body)["tags"] == ["1", "2"]
        assert reply.headers["Link"] == f'</v2/{NAME}/tags/list?n=2&last=2>; rel="next"'
        assert reply.outcome == "RELAY"
    assert asked(upstream) == ["GET tags"] * 2
    assert client.get(f"/v2/{NAME}/referrers/{image.index.digest}").status == 404
    assert client.get("/v2/_catalog").status == 404


def test_headers_that_go_on(client: Client, upstream: LyingUpstream) -> None:
    """Upstream sees what the registry needs and our name in Via; nothing else of the client or of its connection."""
    client.get(TAG, ANY | {"Cookie": "a=b", "X-Forwarded-For": "10.0.0.1", "User-Agent": "docker/27", "TE": "trailers"})
    for record in upstream.requests:
        assert set(record.headers) <= {"host", "user-agent", "accept", "accept-encoding", "via", "authorization"}
        assert record.headers["via"].startswith("1.1 mitm-cache-")
        assert record.headers["accept-encoding"] == "identity"
        assert record.headers["user-agent"].startswith("mitm-cache/")


# Tokens for those who bring none.


@pytest.fixture
def hub(tmp_path: Path, image: Image) -> Iterator[LyingUpstream]:
    """A registry as Docker Hub is: even public content needs a token."""
    with LyingUpstream(tmp_path, name="docker.io", access=Access(scheme="bearer")) as hub:
        hub.registry.put("library/app", image, "1")
        yield hub


@pytest.fixture
def mirror(tmp_path: Path, hub: LyingUpstream) -> Iterator[Client]:
    with in_thread(tmp_path / "data", hub) as cache, cache.client("mirror", name="cache.local") as client:
        yield client


HUB_TAG = "/v2/library/app/manifests/1"


def test_mirror_clients_need_no_login(mirror: Client, hub: LyingUpstream) -> None:
    """The mirror's ping is its own, 200 and without a challenge: upstream is not asked."""
    reply = mirror.get("/v2/")
    assert (reply.status, reply.outcome, reply.body) == (200, "LOCAL", b"{}")
    assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert reply.headers["WWW-Authenticate"] is None
    assert len(hub.requests) == 0


def test_anonymous_tokens_are_used_again(mirror: Client, hub: LyingUpstream, image: Image) -> None:
    """One token for a repository, however many requests; another one when it is refused or over."""
    target, data = layer(image, "library/app")
    assert mirror.get(HUB_TAG, ANY).body == image.index.body
    assert mirror.get(target).body == data
    for _ in range(3):
        assert mirror.get(HUB_TAG, ANY).outcome == "REVALIDATED"
    assert hub.requests.count(kind="token") == 1
    [token] = hub.requests.select(kind="token")
    assert (token.query, token.authorization) == ({"service": "demo", "scope": "repository:library/app:pull"}, "")
    hub.registry.access.revoke()
    assert mirror.get(HUB_TAG, ANY).outcome == "REVALIDATED"
    assert hub.requests.count(kind="token") == 2
    hub.registry.access.lifetime = 5  # less than the margin: never used twice
    hub.registry.access.revoke()
    for _ in range(2):
        assert mirror.get(HUB_TAG, ANY).outcome == "REVALIDATED"
    assert hub.requests.count(kind="token") == 4


def test_a_token_for_each_repository(mirror: Client, hub: LyingUpstream, newer: Image) -> None:
    """No token is tried on a repository that it was not made for."""
    hub.registry.put("library/other", newer, "1")
    for name in ("app", "other", "app", "other"):
        assert mirror.get(f"/v2/library/{name}/manifests/1", ANY).status == 200
    assert [each.query["scope"] for each in hub.requests.select(kind="token")] == [
        "repository:library/app:pull",
        "repository:library/other:pull",
    ]


@pytest.mark.parametrize("denied", [401, 403])
def test_what_strangers_may_not_have(mirror: Client, hub: LyingUpstream, denied: int) -> None:
    """With our anonymous token upstream says no: the client is told the challenge, by which it might log in."""
    hub.registry.access.private, hub.registry.access.denied = {"library/app": {"ann"}}, denied
    for _ in range(2):
        reply = mirror.get(HUB_TAG, ANY)
        assert (reply.status, reply.outcome) == (401, "REFUSED")
        assert reply.headers["WWW-Authenticate"].startswith("Bearer realm=")


def test_a_clients_own_credential_comes_first(mirror: Client, hub: LyingUpstream) -> None:
    """A wrong credential is refused as such: it is not mended by an anonymous token."""
    assert mirror.get(HUB_TAG, ANY | {"Authorization": "Bearer wrong"}).status == 401
    assert hub.requests.count(kind="token") == 0


# Ranges and connections.


@pytest.mark.parametrize("warm", [True, False], ids=["hit", "miss"])
@pytest.mark.parametrize(
    ("header", "status", "start", "stop"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=300000-", 206, 300000, None),
        ("bytes=-7", 206, -7, None),
        ("bytes=0-99999999", 206, 0, None),
        ("bytes=0-1,5-6", 200, 0, None),
        ("bytes=5-4", 200, 0, None),
        ("lines=1-2", 200, 0, None),
        ("bytes=99999999-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_ranges(
    client: Client, upstream: LyingUpstream, image: Image, warm: bool, header: str, status: int, start: int, stop: int
) -> None:
    """The bytes that were asked for, whether they are here or are being fetched; the whole is fetched once."""
    target, data = layer(image)
    if warm:
        client.get(target)
    reply = client.get(target, {"Range": header})
    expected = data[start:stop]
    assert (reply.status, reply.body) == (status, expected)
    assert reply.headers["Content-Length"] == str(len(expected))
    if status == 206:
        first = start if start >= 0 else len(data) + start
        assert reply.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(data)}"
    elif status == 416:
        assert reply.headers["Content-Range"] == f"bytes */{len(data)}"
    assert client.get(target).body == data
    assert [each.range for each in upstream.requests.select(kind="object")] == [""]


def test_one_connection_serves_many_requests(client: Client, cache: Threaded, image: Image) -> None:
    """Hits, misses, errors and heads follow each other on a connection that stays open."""
    target, data = layer(image)
    client.connect()
    opened = client.sock
    replies: list[tuple[Reply, int]] = []
    for _ in range(3):
        replies += [
            (client.get(target), 200),
            (client.head(target), 200),
            (client.get(f"/v2/{NAME}/blobs/sha256:{'0' * 64}"), 404),
            (client.get(TAG, ANY), 200),
            (client.get(target, {"Range": "bytes=5-9"}), 206),
            (client.get(target, {"Range": "bytes=99999999-"}), 416),
        ]
    assert [reply.status for reply, _ in replies] == [status for _, status in replies]
    assert [reply.body for reply, _ in replies[::6]] == [data] * 3
    assert client.sock is opened
    assert len({line["request_id"] for line in cache.log.wait(len(replies))}) == len(replies)


def test_the_access_line_of_a_pull(client: Client, cache: Threaded, image: Image) -> None:
    """Every request leaves one line that says what it was, what it cost and why."""
    target, data = layer(image)
    reply = client.get(target, {"User-Agent": "tester/1"})
    client.get(target, {"Range": "bytes=0-9"})
    miss, hit = cache.log.wait(2)
    expected: Mapping[str, object] = {
        "listener": "tls",
        "client": "127.0.0.1",
        "method": "GET",
        "outcome": "MISS",
        "registry": "registry.demo",
        "repository": NAME,
        "digest": target.rpartition("/")[2],
        "status": 200,
        "bytes_out": len(data),
        "bytes_in": len(data),
        "user_agent": "tester/1",
        "request_id": reply.headers["X-Request-Id"],
    }
    assert {name: miss[name] for name in expected} == expected
    assert (hit["outcome"], hit["status"], hit["bytes_out"], hit["bytes_in"]) == ("HIT", 206, 10, 0)
    assert 0 < miss["ttfb_ms"] <= miss["ms"]
