"""A registry is away: what is cached is served to whom it was open, at once, and all others are told why not."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mitm_cache import rights
from mitm_cache.demo.access import Access
from mitm_cache.demo.image import INDEX, Image
from mitm_cache.pull_through import unknown
from mitm_cache.upstream import leg
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.serving import Client, Reply, Threaded, in_thread, process

PUBLIC, PRIVATE = "team/app", "team/private"
TAG = f"/v2/{PUBLIC}/manifests/1"
TAGS = f"/v2/{PUBLIC}/tags/list"
ANY = {"Accept": "*/*"}
OFFLINE = "[cache]\noffline = true\n"


@pytest.fixture
def upstream(tmp_path: Path, image: Image) -> Iterator[LyingUpstream]:
    access = Access(scheme="bearer", users={"ann": "anns-password"}, private={PRIVATE: {"ann"}})
    with LyingUpstream(tmp_path, access=access) as upstream:
        upstream.registry.put(PUBLIC, image, "1")
        upstream.registry.put(PRIVATE, image, "1")
        yield upstream


def token(client: Client, repository: str, user: str = "") -> dict[str, str]:
    """What a client brings that has been to the token endpoint, as a user or as nobody in particular."""
    given = {"Authorization": "Basic YW5uOmFubnMtcGFzc3dvcmQ="} if user else {}
    reply = client.get(f"/token?service=demo&scope=repository:{repository}:pull", given)
    return ANY | {"Authorization": f"Bearer {json.loads(reply.body)['token']}"}


def blobs(image: Image) -> list[str]:
    return [f"/v2/{PUBLIC}/blobs/{digest}" for digest in image.blobs]


def pull(client: Client, image: Image, headers: dict[str, str]) -> list[Reply]:
    manifests = [f"/v2/{PUBLIC}/manifests/{digest}" for digest in image.manifests]
    return [client.get(target, headers) for target in (TAG, *manifests, *blobs(image))]


def wait_for_readers(cache: Threaded, repository: str = PUBLIC) -> None:
    """It is asked beside the pull whether strangers may read, too."""
    folder = cache.data / "links" / cache.registry / repository / "_readers"
    wait_until(lambda: folder.exists() and any(folder.iterdir()), "what is known of strangers")


def stop(upstream: LyingUpstream) -> None:
    upstream.stop()


def answer(status: int) -> Callable[[LyingUpstream], None]:
    def fail(upstream: LyingUpstream) -> None:
        upstream.lie("/*", faults.refuse(status, "TOOMANYREQUESTS", {"Retry-After": "7"}))

    return fail


AWAY = [
    pytest.param(stop, id="nobody listens"),
    *(pytest.param(answer(status), id=str(status)) for status in (429, 500, 503)),
]


@pytest.mark.parametrize("fail", AWAY)
@pytest.mark.parametrize("who", ["a stranger", "a token for strangers"])
def test_a_public_image(
    cache: Threaded,
    client: Client,
    upstream: LyingUpstream,
    image: Image,
    fail: Callable[[LyingUpstream], None],
    who: str,
) -> None:
    """One pull before by a client with a token, as nearly all clients have one: then strangers pull all of it."""
    pull(client, image, ANY if who == "a stranger" else token(client, PUBLIC))
    client.get(TAGS)
    wait_for_readers(cache)
    fail(upstream)
    with cache.client() as other:
        ping = other.get("/v2/")
        assert (ping.status, ping.outcome, ping.headers["WWW-Authenticate"]) == (200, "LOCAL", None)
        first, *rest = pull(other, image, ANY)
        assert (first.status, first.outcome, first.body) == (200, "STALE", image.index.body)
        assert first.headers["Warning"] == '110 mitm-cache "Response is Stale"'
        assert int(first.headers["Age"]) >= 0
        assert {(reply.status, reply.outcome) for reply in rest} == {(200, "HIT")}
        head = other.head(TAG, ANY)
        assert (head.outcome, head.headers["Docker-Content-Digest"]) == ("STALE", image.index.digest)
        if who == "a stranger":
            assert other.get(TAGS).outcome == "STALE"


def test_a_page_of_a_list(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """Whoever turns the pages of a list goes on where it was, by the list that was kept whole."""
    for tag in ("2", "3", "4"):
        upstream.registry.put(PUBLIC, image, tag)
    assert json.loads(client.get(TAGS).body)["tags"] == ["1", "2", "3", "4"]
    upstream.stop()
    first = client.get(f"{TAGS}?n=2")
    assert (first.outcome, json.loads(first.body)["tags"]) == ("STALE", ["1", "2"])
    following = str(first.headers["Link"]).partition("<")[2].partition(">")[0]
    second = client.get(following)
    assert (json.loads(second.body)["tags"], second.headers["Link"]) == (["3", "4"], None)
    assert int(second.headers["Age"]) >= 0
    assert client.get(f"{TAGS}?n=many").status == 400


def test_the_index_and_the_verdicts_are_lost(tmp_path: Path, upstream: LyingUpstream, image: Image) -> None:
    """After a restart nothing but the files is left to go by, and it is enough."""
    with in_thread(tmp_path / "data", upstream) as cache, cache.client() as client:
        pull(client, image, ANY)
        wait_for_readers(cache)
    upstream.stop()
    for path in (tmp_path / "data" / "index").iterdir():
        path.unlink()
    with in_thread(tmp_path / "data", upstream) as cache, cache.client() as client:
        first, *rest = pull(client, image, ANY)
        assert (first.outcome, first.headers["Age"]) == ("STALE", None)
        assert {reply.outcome for reply in rest} == {"HIT"}


def test_a_client_that_takes_other_types(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """What was kept for others does, where it takes that; else it is told an error."""
    client.get(TAG, ANY)
    upstream.stop()
    assert client.get(TAG, {"Accept": f"{INDEX}, application/x"}).outcome == "STALE"
    assert client.get(TAG, {"Accept": "application/x"}).status == 503


@pytest.mark.parametrize("fail", AWAY)
def test_a_private_image(
    cache: Threaded, client: Client, upstream: LyingUpstream, image: Image, fail: Callable[[LyingUpstream], None]
) -> None:
    """Whose right was seen within minutes has it; nobody else has a byte, and the message says why."""
    target = f"/v2/{PRIVATE}/manifests/1"
    by_digest = f"/v2/{PRIVATE}/manifests/{image.index.digest}"
    ann = token(client, PRIVATE, "ann")
    assert client.get(target, ann).status == 200
    fail(upstream)
    assert client.get(by_digest, ann).outcome == "HIT"
    assert client.get(target, ann).outcome == "STALE"
    for headers in (ANY, ANY | {"Authorization": "Bearer guessed"}):
        for each in (target, by_digest):
            reply = client.get(each, headers)
            assert (reply.status in (403, 429, 502), reply.outcome) == (True, "ERROR")
            assert "not for everybody, and its rights cannot be asked" in reply.message
            assert image.index.body not in reply.body
            assert reply.headers["Docker-Content-Digest"] is None


def test_a_repository_that_was_public(
    cache: Threaded, client: Client, upstream: LyingUpstream, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is private by now, and only its owner has come since: strangers get nothing while upstream is away."""
    client.get(TAG, ANY)
    wait_for_readers(cache)
    upstream.registry.access.private[PUBLIC] = {"ann"}
    upstream.registry.access.revoke()
    monkeypatch.setattr(rights, "LONGEST", 0.0)  # the minutes of the verdict are over
    assert client.get(TAG, token(client, PUBLIC, "ann")).status == 200
    folder = cache.data / "links" / cache.registry / PUBLIC / "_readers"
    wait_until(lambda: not any(folder.iterdir()), "the end of what was known of strangers")
    upstream.stop()
    assert client.get(TAG, ANY).status == 403


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_repository_that_was_public_for_strangers(
    cache: Threaded, client: Client, upstream: LyingUpstream, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """However a registry says no to a stranger about a tag that was there, it is the last word while it is away."""
    client.get(TAG, ANY)
    wait_for_readers(cache)
    monkeypatch.setattr(rights, "LONGEST", 0.0)  # the minutes of the verdict are over
    monkeypatch.setattr(unknown, "KEEP_SECONDS", -1.0)  # and the seconds of a 404
    upstream.lie("tag", faults.refuse(status))
    assert client.get(TAG, ANY).status == status
    upstream.stop()
    assert client.get(TAG, ANY).status == 403


def test_what_is_not_cached(client: Client, upstream: LyingUpstream) -> None:
    """It cannot be had: 503 at once, and when to try again."""
    upstream.stop()
    client.get(TAG, ANY)
    for target in (TAG, f"/v2/{PUBLIC}/blobs/sha256:{'0' * 64}", "/token?service=demo"):
        begun = time.monotonic()
        reply = client.get(target, ANY)
        assert (reply.status, reply.outcome) == (503, "ERROR"), target
        assert "has been away for" in reply.message
        assert 1 <= int(reply.headers["Retry-After"]) <= 16
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(client: Client, upstream: LyingUpstream, status: int) -> None:
    """Upstream's own word on when to come again is passed on, for tags and for content."""
    answer(status)(upstream)
    for target in (TAG, f"/v2/{PUBLIC}/blobs/sha256:{'0' * 64}"):
        reply = client.get(target, ANY)
        assert (reply.status == 429, reply.headers["Retry-After"]) == (status == 429, "7")


def test_nobody_else_asks(cache: Threaded, client: Client, upstream: LyingUpstream, image: Image) -> None:
    """One failure, then one looks for it: it is back within a second, and everything is asked again."""
    client.get(TAG, ANY)
    wait_for_readers(cache)
    upstream.stop()
    for _ in range(20):
        assert client.get(TAG, ANY).outcome == "STALE"
    upstream.requests.clear()
    upstream.start()
    upstream.requests.wait(1, kind="ping")
    wait_until(lambda: client.get(TAG, ANY).outcome == "REVALIDATED", "upstream's being asked again")


def test_one_that_lets_wait(
    cache: Threaded, client: Client, upstream: LyingUpstream, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who could be served waits once, and then no more; when it answers again it is asked again."""
    monkeypatch.setattr(leg, "PATIENCE", 2.0)
    client.get(TAG, ANY)
    wait_for_readers(cache)
    gate = upstream.gate()
    upstream.lie("/*", gate.hang())
    times = []
    for _ in range(10):
        begun = time.monotonic()
        assert client.get(TAG, ANY).outcome == "STALE"
        times.append(time.monotonic() - begun)
    assert sorted(times)[-2] < 2, "only the first has waited"
    assert client.get("/v2/").status == 200
    gate.release()
    upstream.truth()
    wait_until(lambda: client.get(TAG, ANY).outcome == "REVALIDATED", "upstream's being asked again")


def test_a_slow_one(cache: Threaded, client: Client, upstream: LyingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, and only this answer takes long: who has nothing else waits for it, and nobody is refused."""
    monkeypatch.setattr(leg, "PATIENCE", 0.2)
    gate = upstream.gate()
    upstream.lie("tag", gate.hang(), method="HEAD", times=1)
    with cache.client() as slow:
        slow.send_request("HEAD", TAG, ANY)
        gate.wait_held()
        upstream.requests.wait(1, kind="ping")
        assert client.get(TAG, ANY).status == 200
        gate.release()
        assert slow.getresponse().status == 200


def test_others_are_not_held_up(tmp_path: Path, upstream: LyingUpstream, image: Image) -> None:
    """One registry lets more clients wait than there are threads for one; another one's are served meanwhile."""
    folder = tmp_path / "other"
    folder.mkdir()
    with LyingUpstream(folder, name="other.demo") as other:
        other.registry.put(PUBLIC, image, "1")
        gate = upstream.gate()
        upstream.lie("tag", gate.hang())
        with in_thread(tmp_path / "data", upstream, other) as cache:
            waiting = [cache.client() for _ in range(leg.EXCHANGES + 8)]
            for each in waiting:
                each.send_request("HEAD", TAG, ANY)
            gate.wait_held(leg.EXCHANGES_OF_ONE)
            with cache.client(name="other.demo") as client:  # less patient than the gate
                assert client.get(TAG, ANY).status == 200
            gate.release()
            assert {each.getresponse().status for each in waiting} == {200}
            for each in waiting:
                each.close()


def test_offline(tmp_path: Path, upstream: LyingUpstream, image: Image) -> None:
    """Nothing is asked upstream: what is cached is served, and what is not is 404 with the reason."""
    with in_thread(tmp_path / "data", upstream) as cache, cache.client() as client:
        pull(client, image, token(client, PUBLIC))
        wait_for_readers(cache)
        assert client.get(f"/v2/{PRIVATE}/manifests/1", token(client, PRIVATE, "ann")).status == 200
    upstream.requests.clear()
    with in_thread(tmp_path / "data", upstream, more=OFFLINE) as cache, cache.client() as client:
        assert client.get("/v2/").status == 200
        assert {(reply.status, reply.outcome) for reply in pull(client, image, ANY)} == {(200, "HIT")}
        assert client.head(TAG, ANY).outcome == "HIT"
        for target, code in (
            (f"/v2/{PUBLIC}/manifests/2", "MANIFEST_UNKNOWN"),
            (f"/v2/{PUBLIC}/manifests/sha256:{'0' * 64}", "MANIFEST_UNKNOWN"),
            (f"/v2/{PUBLIC}/blobs/sha256:{'0' * 64}", "BLOB_UNKNOWN"),
        ):
            reply = client.get(target, ANY)
            assert (reply.status, reply.code, reply.outcome) == (404, code, "REFUSED")
            assert "is offline by configuration, and " in reply.message
            assert "is not cached" in reply.message
        reply = client.get(f"/v2/{PRIVATE}/manifests/1", ANY)
        assert (reply.status, reply.code, "is not for everybody" in reply.message) == (403, "DENIED", True)
    assert len(upstream.requests) == 0


def test_one_is_offline(tmp_path: Path, upstream: LyingUpstream, image: Image) -> None:
    """A registry may be offline by itself."""
    folder = tmp_path / "other"
    folder.mkdir()
    with LyingUpstream(folder, name="other.demo") as other:
        other.registry.put(PUBLIC, image, "1")
        environ = {"MITM_CACHE_CACHE_TAG_TTL": "0s"}
        text = f'[registries."third.demo"]\nurl = "{other.registry.url()}"\nresolve = "127.0.0.1"\noffline = true\n'
        with in_thread(tmp_path / "data", upstream, other, more=text, environ=environ) as cache:
            with cache.client(name="other.demo") as client:
                assert client.get(TAG, ANY).status == 200
            with cache.client(name="third.demo") as client:
                assert client.get(TAG, ANY).status == 404


def test_two_processes(tmp_path: Path, upstream: LyingUpstream, image: Image) -> None:
    """Who could read is known to every process, also to one that was started when the registry was away."""
    data = tmp_path / "data"
    with process(data, upstream) as one, one.client() as client:
        pull(client, image, ANY)
        upstream.stop()
        with process(data, upstream) as two, two.client() as other:
            assert {reply.outcome for reply in pull(other, image, ANY)} == {"STALE", "HIT"}
