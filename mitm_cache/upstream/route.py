"""How a host is reached: its addresses, past this machine's own hosts file, and whom to trust there.

Nodes send the registries' names to this cache by `/etc/hosts`; the same entries on the cache's own machine must not
lead it back to itself. So names are asked of DNS servers directly, an answer that is one of our own listeners is
refused, and a `Via` header is the second guard (RFC 9110, 7.6.3).
"""

import ipaddress
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver

from mitm_cache.errors import ConfigError, LoopError, UnreachableError
from mitm_cache.wire.proxies import Bypass, Proxy
from mitm_cache.wire.redirect import Origin

SYSTEMD_STUB = "127.0.0.53"
SYSTEMD_SERVERS = Path("/run/systemd/resolve/resolv.conf")
RESOLV_CONF = Path("/etc/resolv.conf")
LIFETIME = 5.0
"""Seconds for one name to be resolved."""


@dataclass(frozen=True, slots=True)
class Route:
    """The addresses of a host, in the order to try them, and the file of certificates to trust there.

    With a proxy the addresses are the proxy's, in `proxy_addresses`: the host's name is the proxy's affair.
    """

    addresses: tuple[str, ...]
    trust: Path
    proxy: Proxy | None = None
    proxy_addresses: tuple[str, ...] = ()
    client_cert: Path | None = None
    insecure: bool = False

    @property
    def connection(self) -> tuple[object, ...]:
        """What a kept connection must have in common with this route; addresses come and go in DNS."""
        return self.trust, self.proxy, self.client_cert, self.insecure


@dataclass(frozen=True, slots=True)
class HostRule:
    """What the configuration says of one upstream host: fixed addresses, trust, and how it is spoken to."""

    addresses: tuple[str, ...] = ()
    trust: Path | None = None
    client_cert: Path | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Proxies:
    """Which proxy leads to a host. What belongs to one registry, its storage and token hosts too, goes one way."""

    default: Proxy | None = None
    bypass: Bypass = field(default_factory=Bypass)
    registries: Mapping[str, Proxy | None] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)

    def choose(self, origin: Origin, registry: str | None) -> Proxy | None:
        """The proxy of a registry if it has a word of its own, else the common one; None is direct."""
        name = registry or self.owners.get(origin.host, "")
        if name in self.registries:
            return self.registries[name]
        return None if self.bypass.matches(origin.host, origin.port) else self.default


class Names:
    """Resolves host names by DNS alone."""

    def __init__(self, servers: Sequence[str]) -> None:
        """`servers`: addresses, with `:port` (or `[v6]:port`) where it is not 53; empty: those of resolv.conf."""
        self._resolver = dns.resolver.Resolver(configure=False)
        self._resolver.cache = dns.resolver.LRUCache(1024)
        self._resolver.lifetime = LIFETIME
        self._resolver.nameservers = [
            dns.nameserver.Do53Nameserver(*_split_server(server)) for server in servers or system_servers()
        ]

    def resolve(self, host: str) -> tuple[str, ...]:
        """The addresses of a name, IPv6 and IPv4; raises UpstreamError where there are none."""
        if not self._resolver.nameservers:
            raise UnreachableError(f"{host} cannot be resolved: no DNS server is known; set upstream.resolvers")
        found: list[str] = []
        failure: dns.exception.DNSException | None = None
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            try:
                found.extend(item.address for item in self._resolver.resolve(host, kind, search=False))
            except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
                continue
            except dns.exception.DNSException as error:
                failure = error
                if isinstance(error, dns.exception.Timeout):
                    break  # who does not answer does not answer a second question either
        if found:
            return tuple(found)
        why = "the DNS server did not answer" if failure else "no such name"
        raise UnreachableError(f"{host} cannot be resolved: {why} (upstream.resolvers, registries.NAME.resolve)")


def system_servers() -> list[str]:
    """The DNS servers of this machine; those behind systemd-resolved, whose stub answers from the hosts file."""
    servers = _nameservers(RESOLV_CONF)
    if SYSTEMD_STUB in servers and SYSTEMD_SERVERS.exists():
        return _nameservers(SYSTEMD_SERVERS)
    return servers


def _nameservers(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    return [words[1] for line in lines if (words := line.split())[:1] == ["nameserver"] and len(words) > 1]


def _split_server(server: str) -> tuple[str, int]:
    try:
        return str(ipaddress.ip_address(server)), 53
    except ValueError:
        host, _, port = server.rpartition(":")
    try:
        return str(ipaddress.ip_address(host.strip("[]"))), int(port)
    except ValueError as error:
        raise ConfigError(f"upstream.resolvers: {server!r} is not an address or address:port") from error


class Own:
    """The addresses and ports this cache listens on."""

    def __init__(self) -> None:
        self._listeners: set[tuple[str, int]] = set()

    def add(self, address: str, port: int) -> None:
        """Note a bound listener; `::` and `0.0.0.0` mean every address of this machine."""
        self._listeners.add((address, port))

    def includes(self, address: str, port: int) -> bool:
        """Whether a connection to this address and port would reach this cache."""
        for bound, bound_port in self._listeners:
            if port == bound_port and (bound == address or (bound in ("0.0.0.0", "::") and is_own_address(address))):  # noqa: S104
                return True
        return False


def is_own_address(address: str) -> bool:
    """Whether an address is this machine's: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # refused where the kernel has no IPv6
            probe.bind((address, 0))
    except OSError:
        return False
    return True


class Router:
    """Finds the route to any host. Used from several threads at once."""

    def __init__(
        self,
        *,
        names: Callable[[], Names],
        rules: Mapping[Origin | str, HostRule],
        trust: Path,
        own: Own,
        proxies: Proxies | None = None,
    ) -> None:
        """`rules` by origin, or by host name for its other ports.

        `names` is called at the first name that no rule has addresses for.
        """
        self._make_names = names
        self._names: Names | None = None
        self._lock = threading.Lock()
        self._rules = rules
        self._trust = trust
        self._own = own
        self._proxies = proxies or Proxies()

    def find(self, origin: Origin, registry: str | None = None) -> Route:
        """The route to an origin, on behalf of a registry if one is named.

        Raises UpstreamError (no such name) or LoopError (it is this cache).
        """
        rule = self._rules.get(origin) or self._rules.get(origin.host, HostRule())
        trust = rule.trust or self._trust
        proxy = self._proxies.choose(origin, registry)
        if proxy is not None:
            way = self._proxy_addresses(proxy)
            return Route((), trust, proxy, way, client_cert=rule.client_cert, insecure=rule.insecure)
        addresses = rule.addresses or self._addresses(origin.host)
        loops = [address for address in addresses if self._own.includes(address, origin.port)]
        if loops:
            raise LoopError(
                f"{origin.host} leads back to this cache ({loops[0]}); set upstream.resolvers to DNS servers that "
                f"know its real address, or registries.NAME.resolve to that address"
            )
        return Route(addresses, trust, client_cert=rule.client_cert, insecure=rule.insecure)

    def _proxy_addresses(self, proxy: Proxy) -> tuple[str, ...]:
        """Asked of the system, hosts file and all: a proxy is no registry, and is often known only there."""
        try:
            found = socket.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UnreachableError(f"{proxy.key}: the proxy's name {proxy.host} cannot be resolved") from error
        addresses = tuple(dict.fromkeys(str(address[0]) for *_, address in found))
        loops = [address for address in addresses if self._own.includes(address, proxy.port)]
        if loops:
            raise LoopError(
                f"{proxy.key}: {proxy} is this cache itself ({loops[0]}); name another proxy, or set "
                f'upstream.proxy = "" for none'
            )
        return addresses

    def _addresses(self, host: str) -> tuple[str, ...]:
        try:
            return (str(ipaddress.ip_address(host)),)
        except ValueError:
            pass
        with self._lock:
            if self._names is None:
                self._names = self._make_names()
        return self._names.resolve(host)
