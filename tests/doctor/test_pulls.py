"""A real pull's first question, through the product, by each way in; and what answers of others tell."""

import json
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.doctor.finding import Finding, Status
from mitm_cache.doctor.node_mirrors import check_mirror
from mitm_cache.doctor.node_pulls import check_clock, check_pull, judge_clock
from mitm_cache.doctor.node_trust import CLOCK
from mitm_cache.doctor.probes import Straight, Way, fetch_token
from mitm_cache.doctor.scene import Wanted, target
from mitm_cache.registries import Known, Registry
from tests.doctor.nodes import HUB, QUAY, mirror, node, scene, worst
from tests.doctor.servers import answering
from tests.fakes.registry import LyingUpstream
from tests.serving import Threaded, in_thread

HERE = "127.0.0.1"
DEMO = Registry("registry.demo", "registry.demo")
IMAGE = Wanted(DEMO, "team/app:1")


@pytest.fixture
def image() -> Image:
    return generate(sizes=[KIB], platforms=["linux/amd64"])


def pull(way: Way, wanted: Wanted = IMAGE) -> Finding:
    (found,) = check_pull(
        node({"registry.demo": (HERE,), "quay.io": (HERE,)}, caches=(HERE,), ways=(way,)), wanted, way
    )
    assert found.cure or found.status is Status.OK
    return found


def by_mirror(root: Path, port: int) -> Finding:
    (found,) = check_mirror(scene(root), node(caches=(HERE,)), mirror(f"http://{HERE}:{port}"))
    assert found.cure or found.status is Status.OK
    return found


def way(cache: Threaded, kind: str) -> Way:
    host, port = cache.address(kind)
    return Way("connect" if kind == "connect" else "tls", host, port)


@pytest.mark.parametrize("kind", ["tls", "connect"])
def test_through(cache: Threaded, image: Image, kind: str) -> None:
    """The digest comes, and X-Cache with it."""
    found = pull(way(cache, kind))
    assert found.status is Status.OK
    assert "X-Cache " in found.words
    assert image.index.digest[:19] in found.words
    assert pull(way(cache, kind), Wanted(DEMO)).status is Status.OK


def test_no_such_image(cache: Threaded) -> None:
    """A registry that answers is reached; the image is to be named better."""
    found = pull(way(cache, "tls"), Wanted(DEMO, "team/none:1"))
    assert (found.status, found.cure) == (
        Status.WARN,
        "name an image that is there: --registry registry.demo/REPOSITORY:TAG",
    )


def test_upstream_down(tmp_path: Path, image: Image) -> None:
    """What the cache says of its way out is shown, and the next command is the one on its host."""
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put("team/app", image, "1")
        # What it is told stays, and nobody is there.
        settings = upstream
    with in_thread(tmp_path / "data", settings) as cache:
        found = pull(way(cache, "tls"))
    assert found.status is Status.FAIL
    assert "status 502" in found.words
    assert "refused the connection" in found.words
    assert found.cure == "on the cache host: mitm-cache doctor --host --registry registry.demo"


def test_a_stranger(tmp_path: Path) -> None:
    """What answers without X-Cache is not the cache."""
    with answering(200) as port:
        found = by_mirror(tmp_path, port)
    assert found.status is Status.FAIL
    assert "without X-Cache" in found.words


@pytest.mark.parametrize(
    ("status", "headers", "expected", "words"),
    [
        (200, {"Docker-Content-Digest": "sha256:0123456789abcdef"}, Status.OK, "sha256:0123456789ab"),
        (200, {}, Status.WARN, "without Docker-Content-Digest"),
        (401, {"WWW-Authenticate": "Basic realm=x"}, Status.WARN, "it wants a login"),
        (508, {"X-Cache-Reason": "quay.io leads back to this cache"}, Status.FAIL, "leads back to this cache"),
    ],
)
def test_answers(tmp_path: Path, status: int, headers: dict[str, str], expected: Status, words: str) -> None:
    """What the cache may answer by its mirror."""
    with answering(status, {"X-Cache": "MISS", **headers}) as port:
        found = by_mirror(tmp_path, port)
    assert found.status is expected
    assert words in found.words


def test_token_host(tmp_path: Path) -> None:
    """A token host that is not reached is named, with the hosts entries that lead to it."""
    with answering(404) as port:
        realm = f"http://127.0.0.1:{port}/token"
        bearer = {"X-Cache": "MISS", "WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="x"'}
        with answering(401, bearer) as there:
            found = by_mirror(tmp_path, there)
    assert found.status is Status.FAIL
    assert "the token host 127.0.0.1 gives no token" in found.words
    assert "example hosts --no-egress" in found.cure


@pytest.mark.parametrize(
    ("body", "token"),
    [({"token": "t"}, "t"), ({"access_token": "u"}, "u"), ({}, ""), ([], ""), ({"token": "a\r\nb"}, "")],
)
def test_tokens(body: object, token: str) -> None:
    """A token is taken where there is one that fits into a header."""
    with answering(200, body=json.dumps(body).encode()) as port:
        straight = Way("mirror", HERE, port)
        assert fetch_token([straight], f'Bearer realm="http://127.0.0.1:{port}/t"')[0] == token
    assert fetch_token([], "Basic realm=x") == ("", "")


@pytest.mark.parametrize(
    ("realm", "named"),
    [
        ("/token", "/token"),
        ("https:///token", "https:///token"),
        ("http://[::1", "http://[::1"),
        ("http://x:99999/token", "x"),
        ("http://a..b/token", "a..b"),
        (f"https://{'a' * 70}.x/token", f"{'a' * 70}.x"),
    ],
)
def test_realms_that_are_none(realm: str, named: str) -> None:
    """A registry may send its clients anywhere: what is no URL gives no token, and is named."""
    assert fetch_token([Straight()], f'Bearer realm="{realm}"') == ("", named)


def test_nobody_there(tmp_path: Path) -> None:
    """Nothing that listens, and what closes at once as clients.allow does."""
    with answering() as port:
        pass
    assert by_mirror(tmp_path, port).status is Status.FAIL


def test_what_is_no_pull() -> None:
    """A name that leads elsewhere is a fault of names."""
    away = node({"quay.io": ("34.1.1.1",)})
    assert worst(check_pull(away, Wanted(QUAY), Way("tls", HERE, 1))).cure == "see its line (names)"


def test_not_admitted(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A client that the cache does not allow is told of that key."""
    with in_thread(tmp_path / "data", upstream, more='[clients]\nallow = ["10.99.0.0/16"]\n') as cache:
        found = pull(way(cache, "tls"))
    assert found.status is Status.FAIL
    assert "clients.allow" in found.cure


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("", "/v2/"),
        ("team/app:1", "/v2/team/app/manifests/1"),
        ("team/app@sha256:00", "/v2/team/app/manifests/sha256:00"),
    ],
)
def test_target(image: str, path: str) -> None:
    """An image as the path of its manifest."""
    assert target(Wanted(QUAY, image)) == path


@pytest.mark.parametrize(
    ("ahead", "status"),
    [(0, Status.OK), (-3600, Status.WARN), (-90_000, Status.FAIL), (3600, Status.WARN), (200_000, Status.FAIL)],
)
def test_clock(tmp_path: Path, ahead: float, status: Status) -> None:
    """The Date of an answer against this node's clock: certificates begin a day before they are made."""
    with answering(200, {"Date": formatdate(time.time() - ahead, usegmt=True)}) as port:
        facts = node(caches=(HERE,), ways=(Way("mirror", HERE, port),))
        found = worst(check_clock(scene(tmp_path, known=Known([HUB])), facts))
    assert found.status is status
    assert status is Status.OK or found.cure == CLOCK


def test_no_clock(tmp_path: Path) -> None:
    """Without a Date, or an answer, there is nothing to compare."""
    assert judge_clock("x", "", time.time()).status is Status.SKIP
    assert worst(check_clock(scene(tmp_path), node(ways=()))).status is Status.SKIP
