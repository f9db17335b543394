"""How hosts are reached: names by a real DNS server, past the hosts file, and never back to this cache."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mitm_cache.errors import ConfigError, LoopError, UpstreamError
from mitm_cache.upstream.route import HostRule, Names, Own, Route, Router
from mitm_cache.wire.redirect import Origin
from tests.needs import find_tool, needs_root, needs_tool
from tests.ports import free_port

needs_dnsmasq = needs_tool("dnsmasq", package="dnsmasq-base")
TRUST = Path("/trust.pem")
OTHER_TRUST = Path("/other.pem")


@contextmanager
def dnsmasq(*records: str, address: str = "127.0.0.1") -> Iterator[str]:
    """A DNS server that knows these records and nothing else; its address and port."""
    port = free_port(address)
    program = find_tool("dnsmasq")
    assert program is not None
    options = ["--no-hosts", "--no-resolv", "--conf-file=/dev/null", "--bind-interfaces", "--no-daemon", "--pid-file="]
    where = [f"--listen-address={address}", f"--port={port}", "--except-interface=none"]
    command = [program, *options, *where, *records]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if "started" in line:
                    break
            else:
                pytest.fail("dnsmasq ended at once")
            yield f"{address}:{port}"
        finally:
            server.terminate()


RECORDS = (
    "--host-record=both.example,192.0.2.1,2001:db8::1",
    "--host-record=four.example,192.0.2.4",
    "--host-record=six.example,2001:db8::6",
    "--host-record=localhost,192.0.2.99",
    "--cname=alias.example,four.example",
    "--txt-record=text.example,hello",
    "--host-record=me.example,127.0.0.1",
    "--local=/example/",
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with dnsmasq(*RECORDS) as server:
        yield server


@pytest.fixture
def names(server: str) -> Names:
    return Names([server])


@needs_dnsmasq
@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("four.example", {"192.0.2.4"}),
        ("FOUR.Example", {"192.0.2.4"}),
        ("four.example.", {"192.0.2.4"}),
        ("six.example", {"2001:db8::6"}),
        ("both.example", {"192.0.2.1", "2001:db8::1"}),
        ("alias.example", {"192.0.2.4"}),
    ],
)
def test_resolve(names: Names, host: str, addresses: set[str]) -> None:
    """A name has the addresses that DNS gives it, of both families."""
    assert set(names.resolve(host)) == addresses
    assert set(names.resolve(host)) == addresses


@needs_dnsmasq
def test_past_the_hosts_file(names: Names) -> None:
    """What this machine's hosts file says does not count."""
    assert socket.getaddrinfo("localhost", 1, family=socket.AF_INET)[0][4][0] == "127.0.0.1"
    assert names.resolve("localhost") == ("192.0.2.99",)


@needs_dnsmasq
@pytest.mark.parametrize("host", ["missing.example", "text.example", "missing", "a..b", f"{'a' * 64}.example"])
def test_no_such_name(names: Names, host: str) -> None:
    """A name without an address is told, with the keys that help."""
    with pytest.raises(UpstreamError, match=r"cannot be resolved: .*upstream\.resolvers, registries\.NAME\.resolve"):
        names.resolve(host)


@needs_dnsmasq
def test_second_server(server: str) -> None:
    """A server that does not answer is passed over: each has its own port, on one address too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        for servers in ([f"127.0.0.1:{silent.getsockname()[1]}", server], [server, "127.0.0.1:1"]):
            names = Names(servers)
            names._resolver.timeout = 0.1
            assert names.resolve("four.example") == ("192.0.2.4",)


def test_nobody_answers() -> None:
    """Where no server answers, that is told, and not that the name does not exist."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    names = Names([f"127.0.0.1:{port}"])
    names._resolver.lifetime = 0.3
    with pytest.raises(UpstreamError, match="the DNS server did not answer"):
        names.resolve("four.example")


@pytest.mark.parametrize("server", ["dns.google", "", "1.2.3", "127.0.0.1:x", "[::1]:", "1.2.3.4:5:6"])
def test_no_server(server: str) -> None:
    """A resolver that is no address is told."""
    with pytest.raises(ConfigError, match=r"upstream\.resolvers: .* is not an address or address:port"):
        Names([server])


# The system's own servers: in a mount namespace, where its files can be others.

IN_NAMESPACE = """
set -e
mount -t tmpfs none /run
mount --bind "$1/resolv.conf" "$(readlink -m /etc/resolv.conf)" 2>/dev/null || {
    mkdir -p "$(dirname "$(readlink -m /etc/resolv.conf)")"
    cp "$1/resolv.conf" "$(readlink -m /etc/resolv.conf)"
}
if [ -e "$1/behind.conf" ]; then mkdir -p /run/systemd/resolve; cp "$1/behind.conf" /run/systemd/resolve/resolv.conf; fi
exec "$2" -c "from mitm_cache.upstream.route import system_servers; print(*system_servers())"
"""


@needs_root()
@needs_tool("unshare", package="util-linux")
@pytest.mark.parametrize(
    ("own", "behind", "servers"),
    [
        pytest.param(["9.9.9.9", "2620:fe::fe"], None, "9.9.9.9 2620:fe::fe", id="plain"),
        pytest.param(["127.0.0.53"], ["10.0.0.2", "10.0.0.3"], "10.0.0.2 10.0.0.3", id="systemd-resolved"),
        pytest.param(["127.0.0.53"], None, "127.0.0.53", id="its address without it"),
        pytest.param(["127.0.0.11"], ["10.0.0.2"], "127.0.0.11", id="a container's"),
        pytest.param([], None, "", id="none"),
    ],
)
def test_system_servers(tmp_path: Path, own: list[str], behind: list[str] | None, servers: str) -> None:
    """The servers of resolv.conf; those behind systemd-resolved, whose stub answers from the hosts file."""
    header = "# a comment\nsearch example\nnameserver\noptions edns0\n"
    (tmp_path / "resolv.conf").write_text(header + "".join(f"nameserver {address}\n" for address in own))
    if behind is not None:
        (tmp_path / "behind.conf").write_text("".join(f"nameserver {address}\n" for address in behind))
    command = ["unshare", "--mount", "sh", "-c", IN_NAMESPACE, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": "."})
    assert done.stdout.strip() == servers


# The cache's own addresses.


@pytest.mark.parametrize(
    ("bound", "address", "port", "expected"),
    [
        pytest.param(("127.0.0.1", 443), "127.0.0.1", 443, True, id="the same"),
        pytest.param(("127.0.0.1", 443), "127.0.0.1", 444, False, id="another port"),
        pytest.param(("127.0.0.1", 443), "127.0.0.2", 443, False, id="another address"),
        pytest.param(("0.0.0.0", 443), "127.0.0.1", 443, True, id="all of IPv4"),
        pytest.param(("0.0.0.0", 443), "127.0.0.77", 443, True, id="all of loopback"),
        pytest.param(("::", 443), "127.0.0.1", 443, True, id="all of both"),
        pytest.param(("::", 443), "0.0.0.0", 443, True, id="any address means this machine"),
        pytest.param(("0.0.0.0", 443), "192.0.2.1", 443, False, id="somebody else's"),
        pytest.param(("::", 443), "2001:db8::1", 443, False, id="somebody else's IPv6"),
        pytest.param(("0.0.0.0", 443), "127.0.0.1", 80, False, id="all, another port"),
    ],
)
def test_own(bound: tuple[str, int], address: str, port: int, expected: bool) -> None:
    """A connection leads back here where this machine has the address and listens on the port."""
    own = Own()
    own.add("192.0.2.200", 5000)
    own.add(*bound)
    assert own.includes(address, port) is expected


def test_own_is_empty_at_first() -> None:
    """Nothing is ours before something is bound."""
    assert not Own().includes("127.0.0.1", 443)


# Routes.


@dataclass
class Setting:
    router: Router
    own: Own


@pytest.fixture
def setting(server: str) -> Setting:
    own = Own()
    rules: dict[Origin | str, HostRule] = {
        "fixed.example": HostRule(("203.0.113.1", "2001:db8::9")),
        "trusting.example": HostRule(trust=OTHER_TRUST),
        "four.example": HostRule(trust=OTHER_TRUST),
        "stay.example": HostRule(("127.0.0.1",)),
    }
    return Setting(Router(names=lambda: Names([server]), rules=rules, trust=TRUST, own=own), own)


@needs_dnsmasq
@pytest.mark.parametrize(
    ("url", "route"),
    [
        pytest.param("https://alias.example", Route(("192.0.2.4",), TRUST), id="by DNS"),
        pytest.param("https://FOUR.example:5000", Route(("192.0.2.4",), OTHER_TRUST), id="by DNS, trust of its own"),
        pytest.param("https://fixed.example", Route(("203.0.113.1", "2001:db8::9"), TRUST), id="by rule"),
        pytest.param("https://192.0.2.55/", Route(("192.0.2.55",), TRUST), id="IPv4 address"),
        pytest.param("https://[2001:DB8::55]:5000/", Route(("2001:db8::55",), TRUST), id="IPv6 address"),
    ],
)
def test_find(setting: Setting, url: str, route: Route) -> None:
    """Addresses by rule, by themselves or by DNS; trust by rule or the common one."""
    assert setting.router.find(Origin.of(url)) == route


@needs_dnsmasq
@pytest.mark.parametrize("url", ["https://me.example", "https://stay.example", "https://127.0.0.1"])
def test_loop(setting: Setting, url: str) -> None:
    """A way that leads back here is refused, and the error names both keys that lead out."""
    setting.own.add("0.0.0.0", 443)
    with pytest.raises(LoopError, match=r"leads back to this cache \(127\.0\.0\.1\)") as caught:
        setting.router.find(Origin.of(url))
    assert "upstream.resolvers" in caught.value.message
    assert "registries.NAME.resolve" in caught.value.message
    assert caught.value.status == 508


@needs_dnsmasq
def test_another_port_is_no_loop(setting: Setting) -> None:
    """A registry on this machine, on a port that is not ours, is reached."""
    setting.own.add("0.0.0.0", 443)
    assert setting.router.find(Origin.of("https://me.example:5000")).addresses == ("127.0.0.1",)


def test_names_are_made_when_needed() -> None:
    """A cache that needs no DNS asks nobody who its servers are; one that does asks once."""
    made: list[Names] = []

    def make() -> Names:
        made.append(Names(["127.0.0.1:1"]))
        made[-1]._resolver.lifetime = 0.1
        return made[-1]

    router = Router(names=make, rules={"fixed.example": HostRule(("203.0.113.1",))}, trust=TRUST, own=Own())
    router.find(Origin.of("https://fixed.example"))
    router.find(Origin.of("https://192.0.2.1"))
    assert made == []
    for _ in range(2):
        with pytest.raises(UpstreamError):
            router.find(Origin.of("https://four.example"))
    assert len(made) == 1
