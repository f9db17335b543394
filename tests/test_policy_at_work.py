"""The operator's policy as clients meet it: at pulls, pushes, lists, pings and WebSockets."""

import base64
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mitm_cache.demo.image import Image
from mitm_cache.demo.message import Answer, Incoming, Proceed, document
from mitm_cache.users.file import add
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Reply, Threaded, in_thread

GOOD, BAD = "team/app", "team/bad"
TAG = f"/v2/{GOOD}/manifests/1"
ANY = {"Accept": "*/*"}
DENY = f'[[policy]]\nname = "no-bad"\nrepository = "{BAD}"\naction = "deny"\n'
TEAM = """
[[policy]]
registry = "registry.demo"
repository = "team/*"
users = "ann"
[[policy]]
repository = "team/*"
action = "deny"
"""
FILL = '[[policy]]\nname = "ci"\nfill = "nobody"\n'


def basic(password: str) -> dict[str, str]:
    return ANY | {"Authorization": "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()}


@pytest.fixture
def upstream(tmp_path: Path, image: Image) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        for name in (GOOD, BAD):
            upstream.registry.put(name, image, "1")
        yield upstream


def taken(incoming: Incoming, proceed: Proceed) -> Answer:
    """A push is taken."""
    return document(201, {})


def ask(
    cache: Threaded,
    method: str,
    target: str,
    headers: Mapping[str, str] = ANY,
    *,
    listener: str = "tls",
    body: bytes | None = None,
) -> Reply:
    with cache.client(listener) as client:
        return client.ask(method, target, headers, body)


def denied(reply: Reply) -> bool:
    return (
        (reply.status, reply.outcome) == (403, "REFUSED")
        and reply.code == "DENIED"
        and f'policy "no-bad" denies registry.demo/{BAD}' in reply.message
    )


def test_a_denied_repository(tmp_path: Path, upstream: LyingUpstream, image: Image) -> None:
    """Pulls, lists, pushes, deletes, uploads and mounts: the rule is named, and upstream hears nothing of it."""
    digest = image.index.digest
    upstream.lie("tag", taken, method="PUT")
    upstream.lie("/v2/*/blobs/uploads/", taken)
    with in_thread(tmp_path / "data", upstream, more=DENY) as cache:
        for method, rest in (
            ("GET", "manifests/1"), ("GET", f"manifests/{digest}"), ("GET", f"blobs/{digest}"), ("GET", "tags/list"),
            ("GET", f"referrers/{digest}"), ("PUT", "manifests/1"), ("PUT", f"manifests/{digest}"),
            ("DELETE", "manifests/1"), ("DELETE", f"blobs/{digest}"), ("POST", "blobs/uploads/"),
            ("PATCH", "blobs/uploads/abc"), ("PUT", f"blobs/uploads/abc?digest={digest}"), ("GET", "blobs/uploads/abc"),
        ):  # fmt: skip
            body = b"{}" if method in ("PUT", "POST", "PATCH") else None
            assert denied(ask(cache, method, f"/v2/{BAD}/{rest}", body=body)), (method, rest)
        mount = f"/v2/{GOOD}/blobs/uploads/?mount={digest}&from={BAD}"
        assert denied(ask(cache, "POST", mount, body=b"")), "a mount is a pull as well"
        assert len(upstream.requests) == 0
        assert ask(cache, "POST", mount.replace(BAD, "team/other"), body=b"").status == 201
        assert ask(cache, "PUT", f"/v2/{GOOD}/manifests/2", body=b"{}").status == 201
        assert ask(cache, "GET", TAG).status == 200


@pytest.mark.parametrize(
    "target",
    [
        f"//v2/{BAD}/manifests/1",
        f"/%76%32/{BAD}/manifests/1",
        f"/x/%2e%2e/v2/{BAD}/manifests/1",
        f"/v2/{BAD}/manifests/1/",
        f"/%2576%2532/{BAD}/manifests/1",
        f"/v2;x/{BAD}/manifests/1",
        f"/v2%3bx=1/{BAD}/manifests/1",
        f"/v2%5c{BAD}/manifests/1",
    ],
)
def test_in_other_words(tmp_path: Path, upstream: LyingUpstream, target: str) -> None:
    """A server behind us may read a path less strictly: what would be denied then is denied now."""
    with in_thread(tmp_path / "data", upstream, more=DENY) as cache:
        assert denied(ask(cache, "GET", target))
        assert len(upstream.requests) == 0
        assert ask(cache, "GET", target.replace("bad", "app")).status != 403


def test_a_web_socket(tmp_path: Path, upstream: LyingUpstream) -> None:
    """An upgrade is judged as well."""
    upgrade = ANY | {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": f"{'x' * 22}=="}
    with in_thread(tmp_path / "data", upstream, more=DENY) as cache:
        assert denied(ask(cache, "GET", f"/v2/{BAD}/blobs/uploads/abc", upgrade))
        assert len(upstream.requests) == 0


def test_lists_at_a_mirror(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A denied repository is in no list, neither of what is cached nor of what upstream adds."""
    upstream.lie("/v2/_catalog", faults.body(json.dumps({"repositories": [GOOD, BAD]}).encode()))
    catalog = "/v2/_catalog?ns=registry.demo"
    with in_thread(tmp_path / "data", upstream) as cache:
        for name in (GOOD, BAD):
            assert ask(cache, "GET", f"/v2/{name}/manifests/1").status == 200
        both = json.loads(ask(cache, "GET", catalog, listener="mirror").body)
        assert both == {"repositories": [GOOD, BAD]}
    with in_thread(tmp_path / "data", upstream, more=DENY) as cache:
        assert ask(cache, "GET", TAG).status == 200
        assert json.loads(ask(cache, "GET", catalog, listener="mirror").body) == {"repositories": [GOOD]}
        assert denied(ask(cache, "GET", f"/v2/{BAD}/tags/list?ns=registry.demo", listener="mirror"))


def test_fill(tmp_path: Path, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """What is here is for everybody; the rest is fetched for nobody, and a tag that moves stays what it was."""
    layer = next(iter(image.blobs))
    with in_thread(tmp_path / "data", upstream) as cache:
        assert ask(cache, "GET", TAG).status == 200
    with in_thread(tmp_path / "data", upstream, more=FILL) as cache:
        assert ask(cache, "GET", TAG).outcome == "REVALIDATED"
        upstream.registry.put(GOOD, newer, "1", "2")
        for method in ("GET", "HEAD"):
            reply = ask(cache, method, TAG)
            assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, image.index.digest)
        for target in (f"manifests/{newer.index.digest}", f"blobs/{layer}", "manifests/2"):
            reply = ask(cache, "GET", f"/v2/{GOOD}/{target}")
            assert (reply.status, reply.code) == (403, "DENIED"), target
            assert 'policy "ci" fetches nothing for this client' in reply.message
        picky = {"Accept": "application/x"}
        assert ask(cache, "GET", f"/v2/{GOOD}/manifests/{image.index.digest}", picky).status == 403
        upstream.lie("tag", faults.without("Docker-Content-Digest"))
        assert ask(cache, "GET", f"/v2/{GOOD}/manifests/2").status == 403
    fetched = [each for each in upstream.requests.select(method="GET") if each.kind in ("tag", "manifest", "blob")]
    assert len(fetched) == 1


def test_freeze(tmp_path: Path, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """The tag is what the row says, whatever upstream says, and it is not asked; away or not."""
    digest = image.index.digest
    row = f'[[policy]]\nregistry = "registry.demo"\nrepository = "{GOOD}"\ntag = "1"\nfreeze = "{digest}"\n'
    with in_thread(tmp_path / "data", upstream, more=row) as cache:
        first = ask(cache, "GET", TAG)
        assert (first.status, first.outcome, first.body) == (200, "MISS", image.index.body)
        assert "policy 1 freezes it" in first.headers["X-Cache-Reason"]
        upstream.registry.put(GOOD, newer, "1")
        assert ask(cache, "HEAD", TAG).headers["Docker-Content-Digest"] == digest
        upstream.stop()
        assert ask(cache, "GET", TAG).outcome == "HIT"
    assert upstream.requests.count(kind="tag") == 0


def test_min_age(tmp_path: Path, upstream: LyingUpstream, image: Image, newer: Image) -> None:
    """What is new waits, and meanwhile the tag is what it was; where it was nothing it is denied, and from when on."""
    data, row = tmp_path / "data", '[[policy]]\nname = "slow"\nmin_age = "3d"\n'
    heard = data / "links" / "registry.demo" / GOOD / "_heard" / "1"

    def let_days_pass() -> None:
        for file in heard.iterdir():
            file.write_text(f"{time.time() - 4 * 86400:.0f}\n")

    with in_thread(data, upstream, more=row) as cache:
        reply = ask(cache, "GET", TAG)
        assert (reply.status, reply.code) == (403, "DENIED")
        words = 'policy "slow": registry.demo/team/app:1 has to be known for longer; it is to be had from 2'
        assert words in reply.message
        let_days_pass()
        assert ask(cache, "GET", TAG).outcome == "MISS"
        upstream.registry.put(GOOD, newer, "1")
        for method in ("GET", "HEAD", "GET"):
            reply = ask(cache, method, TAG)
            assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, image.index.digest)
        for blob in (data / "blobs").rglob("*"):
            if blob.is_file():
                blob.unlink()
        assert ask(cache, "GET", TAG).body == image.index.body, "what was evicted is fetched again"
        let_days_pass()
        assert ask(cache, "GET", TAG).body == newer.index.body


def test_tag_ttl(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A row's own time goes before the cache's."""
    row = f'[cache]\ntag_ttl = "0s"\n[[policy]]\nrepository = "{GOOD}"\ntag_ttl = "1h"\n'
    with in_thread(tmp_path / "data", upstream, more=row) as cache:
        for name, outcome in ((GOOD, "HIT"), (BAD, "REVALIDATED")):
            ask(cache, "GET", f"/v2/{name}/manifests/1")
            assert ask(cache, "GET", f"/v2/{name}/manifests/1").outcome == outcome


@pytest.fixture
def users(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "users"
    add(file, "ann", "anns-password")
    return {"MITM_CACHE_CLIENTS_USERS_FILE": str(file)}


def test_a_login(tmp_path: Path, upstream: LyingUpstream, users: dict[str, str]) -> None:
    """Clients learn from a mirror's ping how to log in, and are let in as users; a wrong one is challenged."""
    with in_thread(tmp_path / "data", upstream, more=TEAM, environ=users) as cache:
        target = f"{TAG}?ns=registry.demo"
        for path in ("/v2/?ns=registry.demo", target):
            reply = ask(cache, "GET", path, listener="mirror")
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, 'Basic realm="mitm-cache"'), path
            assert reply.code == "UNAUTHORIZED"
        assert ask(cache, "GET", "/v2/", listener="mirror").status == 401
        assert ask(cache, "GET", "/v2/", basic("guessed"), listener="mirror").status == 401
        assert ask(cache, "GET", "/v2/?ns=quay.io", listener="mirror").status == 200
        assert ask(cache, "GET", "/v2/", basic("anns-password"), listener="mirror").status == 200
        assert ask(cache, "GET", target, basic("anns-password"), listener="mirror").status == 200
        reply = ask(cache, "GET", "/v2/")
        assert (reply.status, reply.outcome) == (200, "RELAY"), "a registry's own ping is the registry's"
        assert ask(cache, "PUT", TAG, body=b"{}").status == 401


@pytest.mark.parametrize("more", ["", DENY, TEAM])
def test_no_login(tmp_path: Path, upstream: LyingUpstream, more: str) -> None:
    """Where no row names users, or there are none, nobody is asked to log in."""
    with in_thread(tmp_path / "data", upstream, more=more) as cache:
        assert ask(cache, "GET", "/v2/", listener="mirror").status == 200


def test_a_quota_is_told(tmp_path: Path, upstream: LyingUpstream) -> None:
    """What a registry says of its quota is known, and the last word of several processes counts."""
    upstream.registry.manifest_headers = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76;w=21600"}
    with in_thread(tmp_path / "data", upstream) as cache:
        assert ask(cache, "GET", TAG).status == 200
        [(name, quota)] = cache.app.numbers.quotas().items()
        assert (name, quota.left, quota.limit, quota.window) == ("registry.demo", 76, 100, 21600)
        counts = cache.app.numbers.counts()
        assert (counts + counts).quotas == counts.quotas
