"""A cache whose way out is a proxy with a password: whatever it fetches, relays and tunnels goes that way."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_pull import CREDS, NEEDS, pull_twice
from tests.e2e.test_push import push, seen
from tests.fakes.proxies import PASSWORD, USER, needs_microsocks, needs_tinyproxy
from tests.lab import images, network, registries
from tests.lab.lab import Lab
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_root(), NEEDS["skopeo"]]

PORTS = {"http": 8888, "socks5": 1080}
OUTSIDE = "10.78.0.1"
"""The cache's own address on the internet's side."""
NOWHERE = "127.0.0.9"
"""No name server: what did not leave by the proxy would not be resolved."""


@pytest.fixture(
    params=[pytest.param("http", marks=needs_tinyproxy), pytest.param("socks5", marks=needs_microsocks)], name="proxy"
)
def running_proxy(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a real proxy on the internet's side, where the registries' names are what they are."""
    scheme = str(request.param)
    port = PORTS[scheme]
    if scheme == "http":
        settings = lab.fresh("tinyproxy", ".conf")
        settings.write_text(f"Port {port}\nListen {network.DNS}\nTimeout 60\nBasicAuth {USER} {PASSWORD}\n")
        command = ["tinyproxy", "-d", "-c", str(settings)]
    else:
        command = ["microsocks", "-i", network.DNS, "-p", str(port), "-u", USER, "-P", PASSWORD]
    process = lab.direct.start(scheme, *command)
    process.wait_until(lambda: lab.direct.listening(port), f"{scheme} on {port}")
    yield f"{scheme}://{USER}:{PASSWORD}@{network.DNS}:{port}"
    process.stop()


def test_everything_by_the_proxy(lab: Lab, serve: Serve, proxy: str) -> None:
    """A private pull with its login at a token host, and a push, with the cache's own hosts file leading to itself."""
    product = serve(sections={"upstream": {"proxy": proxy, "resolvers": [NOWHERE]}})
    before = (lab.node.etc / "hosts").read_text()
    lab.node.resolve(dict.fromkeys((*registries.REGISTRY_NAMES, registries.TOKEN_HOST), network.CACHE))
    mark = lab.internet.log.mark()
    try:
        image = lab.image(images.TINY)
        pull_twice(lab, product, lab.skopeo(), "docker.io/private/tiny:1", image, creds=CREDS)
        reference = f"private.example.com/private/by-{proxy.partition(':')[0]}:1"
        push(lab.node, image, reference, "--all")
        assert seen(lab.node, reference) == image.digest
    finally:
        (lab.node.etc / "hosts").write_text(before)
    outcomes = {line["outcome"] for line in product.events()}
    assert {"MISS", "HIT", "RELAY", "TUNNEL"} <= outcomes
    assert "ERROR" not in outcomes
    requests = [row for host in registries.ADDRESSES for row in lab.internet.log.requests(host, mark)]
    assert {"PUT", "GET", "HEAD"} <= {row.method for row in requests}
    assert OUTSIDE not in {row.client for row in requests}
