"""Cache and client on one machine, whose names for registries lead to the cache: a pull or a clear error, no loop.

The clients run on the cache host, and all that they know of a registry is the cache.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from mitm_cache.upstream.route import LIFETIME
from tests.e2e.conftest import Serve
from tests.e2e.test_pull import AMD64, NEEDS, check
from tests.lab import images, network
from tests.lab.clients import Client
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.process import LabError
from tests.lab.product import Product, Section
from tests.lab.registries import ADDRESSES, REGISTRY_NAMES, TOKEN_HOST
from tests.lab.resolvers import RESOLVED, dnsmasq, resolved
from tests.needs import needs_root, needs_tool

pytestmark = [pytest.mark.e2e, needs_root()]
needs_resolved = needs_tool(RESOLVED, package="systemd-resolved")

IMAGE = "quay.io/lab/tiny:1"
KEYS = ("upstream.resolvers", "registries.NAME.resolve")
QUICKLY = 10.0
"""Seconds within which a loop is found, on a loaded machine and with the start of a dockerd."""
MOST = 4
"""Requests of a client that is told no each time: it pings, asks for the tag by HEAD and by GET, tries another way."""
ALL = {"tls": [":443"], "clear": [], "mirror": []}
"""Every address of the machine, as without configuration."""
BY_ITSELF: Mapping[str, Section] = {"listen": ALL, "upstream": {"resolvers": []}}
"""Nothing tells the cache where names are known: what it finds on its machine has to do."""
CLIENTS: dict[str, Callable[[Lab, Host], Client]] = {"skopeo": Lab.skopeo, "podman": Lab.podman, "docker": Lab.docker}
CASES = [pytest.param(kind, marks=[NEEDS[kind], *([] if kind == "skopeo" else [pytest.mark.slow])]) for kind in CLIENTS]
BALANCER = """
import asyncio, sys
async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def meet(reader, writer):
    other = await asyncio.open_connection(sys.argv[2], 443)
    await asyncio.gather(copy(reader, other[1]), copy(other[0], writer), return_exceptions=True)
async def main():
    await (await asyncio.start_server(meet, sys.argv[1], 443)).serve_forever()
asyncio.run(main())
"""
"""Passes connections on from one address to another, as a load balancer before several caches does."""


def leads_to(address: str) -> dict[str, str]:
    return dict.fromkeys(REGISTRY_NAMES, address)


@pytest.fixture
def machine(lab: Lab) -> Iterator[Host]:
    """The cache host, with a client on it; its names and trust are as before afterwards."""
    files = [lab.cache.etc / name for name in ("hosts", "resolv.conf")]
    before = [path.read_text() for path in files]
    yield lab.cache
    for path, text in zip(files, before, strict=True):
        path.write_text(text)
    lab.cache.trust("none", "")


def pull(lab: Lab, product: Product, kind: str) -> None:
    """The client on this machine gets the image, from upstream through the cache and from nowhere else."""
    image, mark = lab.image(images.TINY), lab.internet.log.mark()
    lab.cache.trust("system", product.ca)
    check(CLIENTS[kind](lab, lab.cache).pull(IMAGE), image, AMD64)
    asked = lab.internet.log.requests(since=mark)
    assert {row.status for row in asked if row.is_content} >= {200}, "nothing came from upstream"
    assert {row.user_agent.partition("/")[0] for row in asked} == {"mitm-cache"}, "the client went past the cache"


@dataclass(frozen=True)
class Refusal:
    """A pull that failed: what the client said, and what the caches did about it."""

    said: str
    seconds: float
    events: list[Mapping[str, object]]

    @property
    def asked(self) -> int:
        """How many of the requests were the client's own."""
        return sum(not str(event["user_agent"]).startswith("mitm-cache/") for event in self.events)

    @property
    def reasons(self) -> set[str]:
        """What the access lines tell of errors; a client that has read one does not wait for the others."""
        errors = {str(event["reason"]) for event in self.events if event["outcome"] == "ERROR"}
        return errors - {"the client is gone"}


def fail(lab: Lab, *products: Product, kind: str = "skopeo") -> Refusal:
    """A pull that must fail, with no request that reaches the registry."""
    lab.image(images.TINY)
    lab.cache.trust("system", "".join(product.ca for product in products))
    client, mark, started = CLIENTS[kind](lab, lab.cache), lab.internet.log.mark(), time.monotonic()
    with pytest.raises(LabError) as caught:
        client.pull(IMAGE)
    seconds = time.monotonic() - started
    assert lab.internet.log.requests("quay.io", mark) == []
    # Lines are written after the answer.
    products[0].wait_for(lambda event: int(str(event["status"])) >= 500)
    return Refusal(str(caught.value), seconds, [event for product in products for event in product.events()])


def check_loop(refusal: Refusal, *, doors: int = 1) -> None:
    """It ended at once, each request having come through so many doors at most, and the keys that help were named."""
    assert "508" in refusal.said
    assert refusal.seconds < QUICKLY
    assert 1 <= refusal.asked <= MOST
    assert len(refusal.events) <= doors * refusal.asked
    assert refusal.reasons
    for reason in refusal.reasons:
        assert "quay.io leads " in reason
        assert all(key in reason for key in KEYS), reason


# The hosts file.


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("address", [network.CACHE, pytest.param("127.0.0.1", marks=pytest.mark.slow)])
def test_hosts_file(lab: Lab, serve: Serve, machine: Host, kind: str, address: str) -> None:
    """The nodes' own lines in /etc/hosts do no harm on the cache's machine, and nothing has to be set."""
    machine.resolve(leads_to(address), server=network.DNS)
    pull(lab, serve(sections=BY_ITSELF), kind)


# A name server that sends everybody to the cache, the cache too.


@pytest.mark.parametrize("kind", CASES)
def test_no_way_past(lab: Lab, serve: Serve, machine: Host, kind: str) -> None:
    """Where the only name server leads back here a pull fails at once, and the access line says what to set."""
    machine.resolve({})
    with dnsmasq(machine, leads_to(network.CACHE)):
        check_loop(fail(lab, serve(sections=BY_ITSELF), kind=kind))


REMEDIES = {
    "upstream.resolvers": {**BY_ITSELF, "upstream": {"resolvers": [network.DNS]}},
    "registries.NAME.resolve": {**BY_ITSELF, "registries": {"quay.io": {"resolve": [ADDRESSES["quay.io"]]}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_way_past(lab: Lab, serve: Serve, machine: Host, key: str) -> None:
    """Each key that the error names leads out."""
    machine.resolve({})
    with dnsmasq(machine, leads_to(network.CACHE), behind=network.DNS):
        pull(lab, serve(sections=REMEDIES[key]), "skopeo")


@pytest.mark.slow
def test_nobody_answers(lab: Lab, serve: Serve, machine: Host) -> None:
    """A name server that is not there costs the time of one name, and the error names the same keys."""
    machine.resolve(leads_to(network.CACHE))
    refusal = fail(lab, serve(sections=BY_ITSELF))
    assert "502" in refusal.said
    assert len(refusal.events) <= MOST
    assert max(float(str(event["ms"])) for event in refusal.events) < 2 * LIFETIME * 1000
    (reason,) = refusal.reasons
    assert reason.startswith("quay.io cannot be resolved: the DNS server did not answer")
    assert all(key in reason for key in KEYS)


# systemd-resolved, which answers from the hosts file.


@needs_resolved
@pytest.mark.parametrize("kind", CASES)
def test_systemd_resolved(lab: Lab, serve: Serve, machine: Host, kind: str) -> None:
    """Its stub has the nodes' lines, so the servers behind it are asked; nothing has to be set."""
    machine.resolve(leads_to(network.CACHE))
    with resolved(machine, network.DNS):
        pull(lab, serve(sections=BY_ITSELF), kind)


@needs_resolved
@pytest.mark.slow
def test_systemd_resolved_alone(lab: Lab, serve: Serve, machine: Host) -> None:
    """Where the cache cannot see which servers are behind it, as in a container, the loop is told."""
    machine.resolve(leads_to(network.CACHE))
    with resolved(machine, network.DNS) as behind:
        behind.unlink()
        check_loop(fail(lab, serve(sections=BY_ITSELF)))


# What the addresses do not tell: Via.


def trusting(lab: Lab, serve: Serve, *settings: Mapping[str, Section]) -> list[Product]:
    """Products that take each other's certificates for the registries', as all do that is on this machine."""
    products = [serve(sections=sections) for sections in settings]
    for product in products:
        product.stop()
    lab.cache.trust("system", "".join(product.ca for product in products))
    return [product.start() for product in products]


def at(address: str, server: str) -> Mapping[str, Section]:
    """A cache at one address, which asks this server for names."""
    return {"listen": {**ALL, "tls": [f"{address}:443"]}, "upstream": {"resolvers": [server]}}


@pytest.mark.parametrize("kind", CASES)
def test_two_caches(lab: Lab, serve: Serve, machine: Host, kind: str) -> None:
    """Two caches that take each other for the registry: whoever sees its own name in Via ends it."""
    machine.resolve(leads_to(network.CACHE))
    with (
        dnsmasq(machine, leads_to(network.CACHE_OUTSIDE)),
        dnsmasq(machine, leads_to(network.CACHE), address="127.0.0.2"),
    ):
        both = trusting(lab, serve, at(network.CACHE, "127.0.0.1"), at(network.CACHE_OUTSIDE, "127.0.0.2"))
        check_loop(fail(lab, *both, kind=kind), doors=3)


@pytest.mark.slow
def test_two_caches_tunnel(lab: Lab, serve: Serve, machine: Host) -> None:
    """Two caches that take each other for a token host: a tunnel has no Via, and must not lead through tunnels."""
    machine.resolve({TOKEN_HOST: network.CACHE})
    with (
        dnsmasq(machine, {TOKEN_HOST: network.CACHE_OUTSIDE}),
        dnsmasq(machine, {TOKEN_HOST: network.CACHE}, address="127.0.0.2"),
    ):
        settings = at(network.CACHE, "127.0.0.1"), at(network.CACHE_OUTSIDE, "127.0.0.2")
        both = [serve(sections=sections) for sections in settings]
        asked = machine.attempt("curl", "-sk", "-m", f"{QUICKLY:g}", f"https://{TOKEN_HOST}/token")
        assert asked.returncode not in (0, 28), asked.stdout + asked.stderr  # 28: nothing in that time
        told = both[0].wait_for(lambda event: event["status"] == 508)
        assert str(told["reason"]).startswith(f"{TOKEN_HOST} leads back to this cache")
        assert "upstream.resolvers" in str(told["reason"])
        assert sum(len(product.events()) for product in both) <= 3


@pytest.mark.slow
def test_load_balancer(lab: Lab, serve: Serve, machine: Host) -> None:
    """A name that leads to what is before the cache comes back by Via too."""
    machine.resolve(leads_to(network.CACHE))
    balancer = machine.start("balancer", sys.executable, "-c", BALANCER, network.CACHE_OUTSIDE, network.CACHE)
    try:
        balancer.wait_until(lambda: machine.listening(443), "the balancer on 443")
        with dnsmasq(machine, leads_to(network.CACHE_OUTSIDE)):
            check_loop(fail(lab, *trusting(lab, serve, at(network.CACHE, "127.0.0.1"))), doors=2)
    finally:
        balancer.stop()
