"""Where redirects may lead: not inside, unless the registry itself is there, and to metadata services never."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.errors import UpstreamError
from mitm_cache.upstream.reach import check_redirect
from mitm_cache.upstream.route import Route
from mitm_cache.wire.redirect import Origin
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Threaded, in_thread
from tests.test_pull_through import ANY

TRUST = Path("/dev/null")
OUTSIDE, INSIDE, HERE, METADATA = "93.184.216.34", "10.0.0.7", "127.0.0.1", "169.254.169.254"


def route(*addresses: str) -> Route:
    return Route(addresses, TRUST)


def leads(target: tuple[str, ...], home: tuple[str, ...], *, host: str = "cdn.example", allowed: bool = False) -> bool:
    try:
        start = Origin("https", "registry.example", 443)
        check_redirect(Origin("https", host, 443), route(*target), start, route(*home), allow_private=allowed)
    except UpstreamError:
        return False
    return True


@pytest.mark.parametrize(
    "inside",
    [INSIDE, HERE, METADATA, "192.168.1.1", "172.16.0.1", "100.64.0.1", "0.0.0.0", "::1", "fe80::1", "fd00::1",
     "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"],
)  # fmt: skip
def test_from_outside(inside: str) -> None:
    """A registry on the internet leads nowhere inside, not by one address of several (rebinding) and not by a proxy."""
    assert leads((OUTSIDE,), (OUTSIDE,))
    assert not leads((inside,), (OUTSIDE,))
    assert not leads((OUTSIDE, inside), (OUTSIDE,))
    assert leads((inside,), (OUTSIDE,), allowed=True)
    assert not leads((), (), host=inside)  # through a proxy there are no addresses, but this host is one
    assert leads((), ())


def test_from_inside() -> None:
    """A private registry may have its storage beside it, but none is a metadata service."""
    for home in (INSIDE, HERE):
        assert leads((INSIDE,), (home,))
        assert leads((HERE,), (home,))
        assert leads((OUTSIDE,), (home,))
        assert not leads((METADATA,), (home,))
        assert not leads(("fe80::1",), (home,))
        assert not leads(("::ffff:169.254.169.254",), (home,))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Threaded, LyingUpstream]]:
    with LyingUpstream(tmp_path) as upstream, in_thread(tmp_path / "data", upstream) as cache:
        yield cache, upstream


@pytest.mark.parametrize("kind", ["tag", "manifest", "blob", "ping"])
def test_a_redirect_to_metadata(served: tuple[Threaded, LyingUpstream], kind: str) -> None:
    """The registry says so, and the client is told which key would allow it; nobody is connected to."""
    cache, upstream = served
    digest = f"sha256:{'0' * 64}"
    targets = {
        "tag": "/v2/team/app/manifests/1",
        "manifest": f"/v2/team/app/manifests/{digest}",
        "blob": f"/v2/team/app/blobs/{digest}",
        "ping": "/v2/",
    }
    upstream.lie(kind, faults.redirect_to(f"https://{METADATA}/latest/meta-data/?X-Amz-Signature=secret"))
    with cache.client() as client:
        reply = client.get(targets[kind], ANY)
    assert reply.status == 502
    assert "upstream.allow_private" in json.loads(reply.body)["errors"][0]["message"]
    assert "secret" not in cache.log.text
