"""How long upstream's word about a tag or a list holds, for every kind of client, and what ends it before."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mitm_cache.demo.image import INDEX, Image
from mitm_cache.demo.message import Answer, Incoming, Proceed, document
from mitm_cache.oci.digest import Digest
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Client, Threaded, in_thread, process

NAME = "team/app"
TAG = f"/v2/{NAME}/manifests/1"
TAGS = f"/v2/{NAME}/tags/list"
ANY = {"Accept": "*/*"}
MINUTE = '[cache]\ntag_ttl = "60s"\n'
ALWAYS = '[cache]\ntag_ttl = "0s"\n'


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Iterator[Threaded]:
    with in_thread(tmp_path / "data", upstream, more=MINUTE) as cache:
        yield cache


def is_there(incoming: Incoming, proceed: Proceed) -> Answer:
    """A push is taken."""
    return document(201, {})


def test_within_the_time(client: Client, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """One question, then hits without one, though the tag has moved since: GET, HEAD, and by digest."""
    assert client.get(TAG, ANY).outcome == "MISS"
    asked = len(upstream.requests)
    upstream.registry.put(NAME, newer, "1")
    for method in ("GET", "HEAD", "GET"):
        reply = client.ask(method, TAG, ANY)
        assert (reply.outcome, reply.headers["Docker-Content-Digest"]) == ("HIT", image.index.digest)
        assert reply.headers["X-Cache-Reason"].startswith("upstream said so ")
    assert len(upstream.requests) == asked


def test_without_a_time(tmp_path: Path, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """One HEAD each time: what is unchanged is from here, and what has changed is fetched."""
    with in_thread(tmp_path / "data", upstream, more=ALWAYS) as cache, cache.client() as client:
        outcomes = [client.get(TAG, ANY).outcome for _ in range(2)]
        upstream.registry.put(NAME, newer, "1")
        moved = client.get(TAG, ANY)
    assert [*outcomes, moved.outcome] == ["MISS", "REVALIDATED", "MISS"]
    assert moved.headers["Docker-Content-Digest"] == newer.index.digest
    assert upstream.requests.count(kind="tag") == upstream.requests.count(kind="tag", method="HEAD") == 3


def test_as_containerd_asks(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """HEAD of the tag, GET of the digest, never GET of the tag: the second pull asks nothing."""
    for outcome in ("MISS", "HIT"):
        head = client.head(TAG, ANY)
        assert (head.outcome, head.body, head.headers["Content-Type"]) == (outcome, b"", INDEX)
        got = client.get(f"/v2/{NAME}/manifests/{head.headers['Docker-Content-Digest']}", ANY)
        assert (got.outcome, got.body) == (outcome, image.index.body)
    assert upstream.requests.count(kind="tag") == 1


def test_for_other_types(client: Client, upstream: LyingUpstream) -> None:
    """A registry may give something else to who takes other types: it is asked once more."""
    client.get(TAG, ANY)
    assert client.get(TAG, {"Accept": INDEX}).outcome == "REVALIDATED"
    assert client.get(TAG, {"Accept": INDEX}).outcome == "HIT"
    assert upstream.requests.count(kind="tag") == 2


def heeding(incoming: Incoming, proceed: Proceed) -> Answer:
    """A registry that gives something else to who asks with a query."""
    return proceed(replace(incoming, path=incoming.path.replace("/1", "/2")) if incoming.query else incoming)


def test_a_query_says_nothing(client: Client, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """A tag is kept under its name alone, so a registry is not given a query."""
    upstream.registry.put(NAME, newer, "2")
    upstream.lie("tag", heeding)
    for query in ("x=1", f"ns={client.host}"):
        for method in ("HEAD", "GET"):
            reply = client.ask(method, f"{TAG}?{query}", ANY)
            assert reply.headers["Docker-Content-Digest"] == image.index.digest
    assert client.get(TAG, ANY).body == image.index.body


def test_a_mirror_of_others(client: Client, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """By `ns` a node may ask a registry for another one's tag: it is answered by what that has, and nothing is kept."""
    upstream.registry.put(NAME, newer, "2")
    upstream.lie("tag", heeding)
    for method in ("HEAD", "GET"):
        reply = client.ask(method, f"{TAG}?ns=other.demo", ANY)
        assert (reply.outcome, reply.headers["Docker-Content-Digest"]) == ("RELAY", newer.index.digest)
    assert client.get(TAG, ANY).body == image.index.body


def test_another_process(tmp_path: Path, upstream: LyingUpstream) -> None:
    """What one process has heard holds for all, and what was pushed through one is void for all."""
    data = tmp_path / "data"
    with (
        process(data, upstream, more=MINUTE) as one,
        process(data, upstream, more=MINUTE) as two,
        one.client() as first,
        two.client() as second,
    ):
        assert first.get(TAG, ANY).outcome == "MISS"
        one.log.wait(1, outcome="MISS")
        second.get(TAG, ANY)
        assert second.get(TAG, ANY).outcome == "HIT"
        asked = upstream.requests.count(kind="tag")
        upstream.lie("tag", is_there, method="PUT")
        assert first.ask("PUT", TAG, body=b"{}").status == 201
        assert second.get(TAG, ANY).outcome in ("REVALIDATED", "MISS")
        assert upstream.requests.count(kind="tag", method="HEAD") == asked + 1


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_push(client: Client, upstream: LyingUpstream, image: Image, newer: Image, method: str) -> None:
    """Who pushes a tag through the cache and pulls it has what was pushed."""
    client.get(TAG, ANY)
    assert client.get(TAG, ANY).outcome == "HIT"
    upstream.lie("tag", is_there, method=method)
    assert client.ask(method, TAG, body=b"{}" if method == "PUT" else None).status == 201
    upstream.registry.put(NAME, newer, "1")
    reply = client.get(TAG, ANY)
    assert (reply.outcome, reply.headers["Docker-Content-Digest"]) == ("MISS", newer.index.digest)
    assert client.get(TAG, ANY).outcome == "HIT"


def test_a_push_overtakes_a_question(cache: Threaded, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """The question was asked before the push and is answered after it: its answer is old when it comes."""
    gate = upstream.gate()
    late = upstream.lie("tag", lambda incoming, proceed: _held(incoming, proceed, gate.hang()), method="HEAD", times=1)
    with cache.client() as asking, cache.client() as pushing:
        asking.send_request("HEAD", TAG, ANY)
        gate.wait_held()
        upstream.lie("tag", is_there, method="PUT")
        assert pushing.ask("PUT", TAG, body=b"{}").status == 201
        upstream.registry.put(NAME, newer, "1")
        gate.release()
        assert asking.getresponse().headers["Docker-Content-Digest"] == image.index.digest
        assert late.told == 1
        upstream.registry.put(NAME, newer, "1")
        pushing.get(f"/v2/{NAME}/manifests/{image.index.digest}", ANY)
        assert pushing.head(TAG, ANY).headers["Docker-Content-Digest"] == newer.index.digest


def _held(incoming: Incoming, proceed: Proceed, hang: faults.Fault) -> Answer:
    answer = proceed(incoming)  # what was so before it was held
    return hang(incoming, lambda _: answer)


def test_unknown_tags(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """What is not there is asked for once in a while by one client; a push makes an end of it."""
    missing = f"/v2/{NAME}/manifests/2"
    for method in ("HEAD", "GET", "HEAD"):
        reply = client.ask(method, missing, ANY)
        assert (reply.status, reply.outcome) == (404, "REFUSED")
    reply = client.get(missing, ANY)
    assert "a moment ago" in reply.headers["X-Cache-Reason"]
    assert reply.code == "MANIFEST_UNKNOWN"
    asked = upstream.requests.count(kind="tag")
    assert asked == 3, "HEAD for each method, and GET for the words"
    assert client.get(missing, {**ANY, "Authorization": "Basic YTpi"}).status == 404
    assert upstream.requests.count(kind="tag") > asked, "another client may be told otherwise"
    upstream.lie("tag", is_there, method="PUT")
    client.ask("PUT", missing, body=b"{}")
    upstream.registry.put(NAME, image, "2")
    assert client.get(missing, ANY).status == 200


def test_who_has_shown_no_credential(client: Client, upstream: LyingUpstream) -> None:
    """Containerd asks without one each time, to be told where to log in: a herd of nodes is told by one question."""
    client.get(TAG, ANY)
    other = f"/v2/{NAME}/manifests/other"
    challenge = {"WWW-Authenticate": 'Bearer realm="https://login.demo/token",service="demo"', "Set-Cookie": "sid=1"}
    upstream.lie("tag", faults.refuse(401, "UNAUTHORIZED", challenge))
    replies = [client.head(other, ANY) for _ in range(3)]
    assert {(reply.status, reply.outcome) for reply in replies} == {(401, "REFUSED")}
    assert {reply.headers["WWW-Authenticate"] for reply in replies} == {challenge["WWW-Authenticate"]}
    assert [reply.headers["Set-Cookie"] for reply in replies] == ["sid=1", None, None], "a session is one client's"
    asked = upstream.requests.count(kind="tag")
    assert asked == 2, "of two tags once each"
    for number in (1, 2):
        assert client.head(other, {**ANY, "Authorization": "Basic YTpi"}).status == 401
        assert upstream.requests.count(kind="tag") == asked + number, "who has shown one may be let in by now"
    upstream.truth()
    upstream.lie("tag", is_there, method="PUT")
    client.ask("PUT", other, body=b"{}")
    assert client.head(other, ANY).status == 404


def test_lists(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """A list of tags is upstream's own, holds as long as a tag, and ends with any push to its repository."""
    client.get(TAG, ANY)
    first, second = client.get(TAGS), client.get(TAGS)
    assert [first.outcome, second.outcome] == ["RELAY", "HIT"]
    assert first.body == second.body
    assert upstream.requests.count(kind="tags") == 1
    assert client.get(f"{TAGS}?n=1").outcome == "RELAY"
    upstream.lie("manifest", is_there, method="PUT")
    client.ask("PUT", f"/v2/{NAME}/manifests/{image.index.digest}", body=b"{}")
    upstream.registry.put(NAME, image, "2")
    third = client.get(TAGS)
    assert (third.outcome, b'"2"' in third.body) == ("RELAY", True)
    assert client.get(TAGS).outcome == "HIT"


def test_referrers(client: Client, upstream: LyingUpstream, image: Image) -> None:
    """What refers to an image is a list as well: a signature that is pushed is there at once."""
    client.get(TAG, ANY)
    target = f"/v2/{NAME}/referrers/{image.index.digest}"
    upstream.lie(target, faults.body(b'{"manifests":[]}', INDEX))
    assert [client.get(target).outcome for _ in range(3)] == ["RELAY", "HIT", "HIT"]
    upstream.lie("manifest", is_there, method="PUT")
    client.ask("PUT", f"/v2/{NAME}/manifests/{image.index.digest}", body=b"{}")
    assert client.get(target).outcome == "RELAY"


def test_referrers_of_nothing(cache: Threaded, client: Client, upstream: LyingUpstream, image: Image) -> None:
    """A registry has an empty list for whatever digest somebody thinks of: it is kept for what is held alone."""
    client.get(TAG, ANY)
    upstream.lie("/v2/*/referrers/*", faults.body(b'{"manifests":[]}', INDEX))
    held = Digest.parse(image.index.digest)
    for digest in (held, *(Digest.of(b"%d" % number) for number in range(3))):
        assert client.get(f"/v2/{NAME}/referrers/{digest}").status == 200
    found = (cache.data / "links" / upstream.registry.name / NAME / "_lists").iterdir()
    assert [path.name for path in found] == [f"referrers-{held.filename}"]


def test_the_clock_is_put_back(cache: Threaded, client: Client, upstream: LyingUpstream, image: Image) -> None:
    """What lies ahead is not believed: upstream is asked."""
    client.get(TAG, ANY)
    client.get(TAGS)
    folder = cache.data / "links" / upstream.registry.name / NAME / "_lists" / "tags"
    head, _, rest = folder.read_bytes().partition(b"\n")
    assert b'"at"' in head
    folder.write_bytes(b'{"at": %d, "media_type": "application/json"}\n%b' % (time.time() + 5000, rest))
    os.utime(folder)
    assert client.get(TAGS).outcome == "RELAY"
    assert client.get(TAGS).outcome == "HIT"
