"""Sharing bytes shares no rights: a private repository's content is for those whom upstream lets have it."""

import base64
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pytest

from mitm_cache import rights
from mitm_cache.demo.access import Access
from mitm_cache.demo.image import KIB, Image, generate
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.serving import Reply, Threaded, in_thread, process

PRIVATE, PUBLIC = "team/private", "public/app"
USERS = {"ann": "anns-password", "bob": "bobs-password", "eve": "eves-password"}
ANY = {"Accept": "*/*"}

type Scheme = Literal["basic", "bearer"]


@pytest.fixture(scope="session")
def image() -> Image:
    return generate(sizes=[40 * KIB], platforms=["linux/amd64"], seed="private")


@pytest.fixture(params=["basic", "bearer"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def upstream(tmp_path: Path, image: Image, scheme: Scheme) -> Iterator[LyingUpstream]:
    access = Access(scheme=scheme, users=dict(USERS), private={PRIVATE: {"ann", "eve"}})
    with LyingUpstream(tmp_path, access=access) as upstream:
        upstream.registry.put(PRIVATE, image, "1")
        upstream.registry.put(PUBLIC, generate(sizes=[KIB], platforms=["linux/amd64"], seed="public"), "1")
        yield upstream


def basic(user: str, password: str | None = None) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password or USERS[user]}".encode()).decode()


class Person:
    """A client with a credential of its own, or with none."""

    def __init__(self, cache: Threaded, scheme: Scheme, user: str = "", repository: str = PRIVATE) -> None:
        self.cache = cache
        self.authorization = basic(user) if user else ""
        if user and scheme == "bearer":
            reply = self.get(f"/token?service=demo&scope=repository:{repository}:pull")
            self.authorization = f"Bearer {json.loads(reply.body)['token']}"

    @property
    def headers(self) -> Mapping[str, str]:
        return ANY | ({"Authorization": self.authorization} if self.authorization else {})

    def ask(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> Reply:
        with self.cache.client() as client:
            return client.ask(method, target, {**self.headers, **(headers or {})})

    def get(self, target: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.ask("GET", target, headers)


def blob(image: Image, repository: str = PRIVATE) -> tuple[str, bytes]:
    """The address and the bytes of the layer."""
    digest, content = max(image.blobs.items(), key=lambda item: item[1].size)
    return f"/v2/{repository}/blobs/{digest}", b"".join(content.chunks(0, content.size))


def manifest(image: Image, repository: str = PRIVATE) -> str:
    return f"/v2/{repository}/manifests/{image.index.digest}"


def questions(upstream: LyingUpstream, *credentials: str) -> int:
    """How often upstream was asked with these about a blob or a manifest without being asked for it."""
    heads = [each for each in upstream.requests.select(method="HEAD") if each.kind in ("blob", "manifest")]
    return sum(each.headers.get("authorization", "") in credentials for each in heads)


def all_questions(upstream: LyingUpstream) -> int:
    """The same of everybody, strangers and those who are given a token as such too."""
    return sum(upstream.requests.count(method="HEAD", kind=kind) for kind in ("blob", "manifest"))


def contents(upstream: LyingUpstream) -> int:
    """How often upstream was asked for a blob or a manifest."""
    return sum(upstream.requests.count(method="GET", kind=kind) for kind in ("blob", "manifest", "tag"))


def strangers(cache: Threaded, scheme: Scheme) -> dict[str, Person]:
    """Those who may not: nobody in particular, somebody else, and who only claims to be somebody."""
    liar = Person(cache, scheme)
    liar.authorization = basic("ann", "guessed") if scheme == "basic" else "Bearer guessed"
    return {"nobody": Person(cache, scheme), "bob": Person(cache, scheme, "bob"), "liar": liar}


@pytest.mark.parametrize("denied", [401, 403, 404])
def test_a_hit_is_for_those_who_may(
    cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme, denied: int
) -> None:
    """All of it is here; a stranger gets upstream's own no to each form of the question, and not a byte."""
    upstream.registry.access.denied = denied
    target, data = blob(image)
    ann = Person(cache, scheme, "ann")
    for each in (target, manifest(image), f"/v2/{PRIVATE}/manifests/1"):
        assert ann.get(each).status == 200
    for name, stranger in strangers(cache, scheme).items():
        # To nobody's anonymous token "denied" is not said: it would keep a client from logging in.
        hidden = name == "nobody" and scheme == "bearer" and denied == 404
        expected = denied if name == "bob" or hidden else 401
        for each in (target, manifest(image), f"/v2/{PRIVATE}/manifests/1"):
            for method, headers in (("GET", {}), ("GET", {"Range": "bytes=0-99"}), ("HEAD", {})):
                reply = stranger.ask(method, each, headers)
                assert (reply.status, reply.outcome) == (expected, "REFUSED"), (name, method, each)
                assert not reply.body or reply.body not in data
                assert reply.headers["Docker-Content-Digest"] is None
                assert (expected == 401) is (reply.headers["WWW-Authenticate"] is not None)
                if method == "GET":
                    assert reply.code in {"UNAUTHORIZED", "DENIED", "NAME_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"}
    assert ann.get(target).outcome == "HIT"


def test_a_refusal_is_upstreams_own(cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme) -> None:
    """A client without a credential is told by upstream's words how to get one; with it, it has the content."""
    target, data = blob(image)
    Person(cache, scheme, "ann").get(target)
    challenge = Person(cache, scheme).get(target).headers["WWW-Authenticate"]
    assert challenge.startswith(scheme.capitalize())
    if scheme == "bearer":
        assert f'scope="repository:{PRIVATE}:pull"' in challenge
    reply = Person(cache, scheme, "eve").get(target)
    assert (reply.body, reply.outcome) == (data, "HIT")


def test_a_join_is_for_those_who_may(cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme) -> None:
    """The content is arriving: a stranger is refused at once, who may reads along; one download."""
    target, data = blob(image)
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(20 * KIB))
    ann, eve = Person(cache, scheme, "ann"), Person(cache, scheme, "eve")
    with cache.client() as leader, cache.client() as follower:
        first = leader.open(target, ann.headers)
        assert first.read(20 * KIB) == data[: 20 * KIB]
        for stranger in strangers(cache, scheme).values():
            reply = stranger.get(target)
            assert (reply.status, reply.outcome) == (401, "REFUSED")
            assert reply.headers["WWW-Authenticate"]
        second = follower.open(target, eve.headers)
        assert second.headers["X-Cache"] == "JOINED"
        gate.release()
        assert first.read() == data[20 * KIB :]
        assert second.read() == data
    assert upstream.requests.count(kind="object") == 1


def test_a_digest_opens_no_other_repository(
    cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme
) -> None:
    """The private digests asked for by the path of a public repository: upstream does not have them there."""
    Person(cache, scheme, "ann").get(blob(image)[0])
    Person(cache, scheme, "ann").get(manifest(image))
    bob = Person(cache, scheme, "bob", PUBLIC)
    for someone in (bob, Person(cache, scheme)):
        assert someone.get(f"/v2/{PUBLIC}/manifests/1").status == 200  # the right to that repository is known
        for target, code in ((blob(image, PUBLIC)[0], "BLOB_UNKNOWN"), (manifest(image, PUBLIC), "MANIFEST_UNKNOWN")):
            reply = someone.get(target)
            assert (reply.status, reply.code, reply.outcome) == (404, code, "REFUSED")
            assert someone.ask("HEAD", target).status == 404


def test_a_digest_in_flight_opens_no_other_repository(
    cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme
) -> None:
    """The same while the private content is arriving."""
    target, data = blob(image)
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(20 * KIB))
    with cache.client() as leader:
        first = leader.open(target, Person(cache, scheme, "ann").headers)
        nobody = Person(cache, scheme)
        assert nobody.get(f"/v2/{PUBLIC}/manifests/1").status == 200
        reply = nobody.get(blob(image, PUBLIC)[0])
        assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
        gate.release()
        assert first.read() == data


def test_who_may_is_asked_about_once(cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme) -> None:
    """One question for each credential and repository, however many hits follow; the puller itself needs none."""
    ann, eve = Person(cache, scheme, "ann"), Person(cache, scheme, "eve")
    targets = [f"/v2/{PRIVATE}/blobs/{digest}" for digest in image.blobs] + [manifest(image)]
    for target in targets:
        assert ann.get(target).outcome == "MISS"
    for _ in range(3):
        for target in targets:
            assert ann.get(target).outcome == "HIT"
    assert questions(upstream, ann.authorization) == 0
    fetched = contents(upstream)
    for _ in range(3):
        for target in targets:
            assert eve.get(target).outcome == "HIT"
    assert questions(upstream, eve.authorization) == 1
    assert all_questions(upstream) <= 3, "strangers are asked about once, with a token for strangers perhaps"
    assert contents(upstream) == fetched
    assert rights.KEEP_SECONDS == 300


def test_a_yes_ends(
    cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right that was taken away is gone when the time of the last yes is over."""
    target, data = blob(image)
    ann = Person(cache, scheme, "ann")
    ann.get(target)
    monkeypatch.setattr(rights, "KEEP_SECONDS", -1.0)
    eve = Person(cache, scheme, "eve")
    for number in (1, 2):
        assert eve.get(target).body == data
        assert questions(upstream, eve.authorization) == number
    upstream.registry.access.private[PRIVATE] = {"ann"}
    upstream.registry.access.revoke()
    assert eve.get(target).status == 401
    assert ann.get(target).body == data  # the yes to ann is five minutes old at most


@pytest.mark.parametrize("scheme", ["bearer"], indirect=True)
def test_each_token_is_a_credential(cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme) -> None:
    """A new token of a known user is asked about anew: who holds it is known to upstream alone."""
    target, data = blob(image)
    Person(cache, scheme, "ann").get(target)
    for number in (1, 2):
        again = Person(cache, scheme, "ann")
        assert again.get(target).body == data
        assert again.get(target).outcome == "HIT"
        assert questions(upstream, again.authorization) == 1, number
    # A token for another repository is no token for this one.
    assert Person(cache, scheme, "ann", PUBLIC).get(target).status == 401


@pytest.mark.parametrize("scheme", ["basic"], indirect=True)
@pytest.mark.parametrize(("status", "answered"), [(429, 429), (500, 502), (503, 502)])
def test_no_verdict_is_no_yes(
    cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme, status: int, answered: int
) -> None:
    """Upstream cannot say: nobody new gets anything, and who was let in a minute ago still does."""
    target, data = blob(image)
    ann, eve = Person(cache, scheme, "ann"), Person(cache, scheme, "eve")
    ann.get(target)
    upstream.lie("blob", faults.refuse(status, "UNKNOWN", {"Retry-After": "9"}))
    reply = eve.get(target)
    assert (reply.status, reply.outcome, reply.headers["Retry-After"]) == (answered, "ERROR", "9")
    assert ann.get(target).body == data
    upstream.stop()
    assert eve.get(target).status == 403, "whose words clients show"
    assert ann.get(target).body == data
    upstream.start()
    upstream.truth()
    wait_until(lambda: eve.get(target).body == data, "upstream's being asked again")


@pytest.mark.parametrize("scheme", ["basic"], indirect=True)
def test_a_redirect_is_a_yes(cache: Threaded, upstream: LyingUpstream, image: Image, scheme: Scheme) -> None:
    """The registry sends who may on to its storage: that is the answer, and storage is not asked."""
    target, data = blob(image)
    Person(cache, scheme, "ann").get(target)
    upstream.lie("blob", faults.redirect_to("https://127.0.0.1:1/nowhere"), method="HEAD")
    assert Person(cache, scheme, "eve").get(target).body == data


@pytest.mark.parametrize("scheme", ["basic"], indirect=True)
def test_processes_share_what_they_know(tmp_path: Path, upstream: LyingUpstream, image: Image, scheme: Scheme) -> None:
    """A right that one process has asked about is known to the other, by a key that tells no credential."""
    target, data = blob(image)
    headers = {"Authorization": basic("eve")}
    with process(tmp_path / "data", upstream) as one, process(tmp_path / "data", upstream) as other:
        with one.client() as client:
            assert client.get(target, {"Authorization": basic("ann")}).body == data
            assert client.get(target, headers).body == data

        def known() -> bool:
            with sqlite3.connect(tmp_path / "data" / "index" / "cache.db") as database:
                rows = database.execute("SELECT count(*) FROM Cache WHERE key LIKE 'verdict:%'").fetchone()
            database.close()
            return bool(rows[0] >= 3)

        wait_until(known, "the three verdicts in the index", seconds=10)
        assert all_questions(upstream) == 2  # about strangers, and about eve
        with other.client() as client:
            reply = client.get(target, headers)
            assert (reply.body, reply.outcome) == (data, "HIT")
        assert all_questions(upstream) == 2


def secrets_of(upstream: LyingUpstream) -> set[str]:
    """Everything that upstream has seen and nobody else may: passwords, credentials, tokens, signatures."""
    found = set(USERS.values())
    for record in upstream.requests:
        found.add(record.headers.get("authorization", "").partition(" ")[2])
        found.add(record.query.get("X-Amz-Signature", ""))
        found.add(record.query.get("X-Amz-Credential", ""))
    return found - {""}


def leaks(data: Path, secrets: set[str]) -> list[str]:
    files = {path: _content(path) for path in data.rglob("*") if path.is_file()}
    assert any(path.name == "cache.db" for path in files)
    return [f"{path.name}: {secret}" for path in files for secret in secrets if secret.encode() in files[path]]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""  # the cache is at work: it was removed a moment ago


def test_no_secret_stays_anywhere(
    tmp_path: Path, upstream: LyingUpstream, image: Image, scheme: Scheme, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a file of the cache nor a line of its log holds a credential, a token or a signed address."""
    target, _ = blob(image)
    data = tmp_path / "data"
    with in_thread(data, upstream) as cache:
        for person in (Person(cache, scheme, "ann"), Person(cache, scheme, "eve"), *strangers(cache, scheme).values()):
            person.get(f"/v2/{PRIVATE}/manifests/1?token=in-a-query")
            person.get(target)
            person.get(f"/v2/{PRIVATE}/tags/list")
            person.get("/token?service=demo&account=ann&password=anns-password")
        assert Person(cache, scheme).get(f"/v2/{PUBLIC}/manifests/1").status == 200
        # Errors have most to tell.
        upstream.lie("object", faults.cut_after(1000), times=1)
        other = f"/v2/{PRIVATE}/blobs/{min(image.blobs.items(), key=lambda item: item[1].size)[0]}"
        upstream.lie("blob", faults.redirect_to("http://127.0.0.1:1/x?X-Amz-Signature=in-a-location"), method="GET")
        reply = Person(cache, scheme, "ann").get(other)
        assert reply.status == 502
        secrets = secrets_of(upstream) | {"in-a-query", "in-a-location"}
        assert len(secrets) >= (7 if scheme == "basic" else 9)
        assert leaks(data, secrets) == []
        said = cache.log.text + caplog.text + reply.message
        assert cache.log.count() >= 20
    assert leaks(data, secrets) == []
    assert [secret for secret in secrets if secret in said] == []
