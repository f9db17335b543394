"""Connections for tunnels: the same routes as everything else that leaves, and no way into this network.

A tunnel's target is the client's choice, so the addresses that are dialled are checked, not the name: a name may
resolve to anything, and to something else a moment later.
"""

import ipaddress
import socket
from dataclasses import replace

from mitm_cache.errors import ClientError
from mitm_cache.upstream.curl import Transport
from mitm_cache.upstream.route import Router
from mitm_cache.wire.redirect import Origin

_SHARED = ipaddress.ip_network("100.64.0.0/10")
"""Carrier-grade NAT (RFC 6598): neither global nor, by Python, private."""


def is_public(address: str) -> bool:
    """Whether an address belongs to nobody's inside: not loopback, link-local (metadata services), private or the like.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) counts as itself.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or _nat64(parsed)
        if inner is not None:
            return is_public(str(inner))
        if parsed.is_site_local:  # deprecated (RFC 3879), and still somebody's inside
            return False
    return parsed.is_global and not parsed.is_multicast and parsed not in _SHARED


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    well_known = address in ipaddress.ip_network("64:ff9b::/96")  # RFC 6052, 2.1
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if well_known else None


class Dialer:
    """Opens connections to hosts that clients name. Blocks; used from threads."""

    def __init__(self, *, router: Router, transport: Transport, allow_private: bool) -> None:
        self._router = router
        self._transport = transport
        self._allow_private = allow_private

    def dial(self, host: str, port: int, *, trusted: bool) -> socket.socket:
        """A connected socket to a host that is `trusted` to be inside, being configured, or that is not.

        Raises ClientError (403) for an address inside, UpstreamError otherwise.
        """
        origin = Origin.of(f"https://{f'[{host}]' if ':' in host else host}:{port}")  # refuses what is no host name
        route = self._router.find(origin)
        if not trusted and not self._allow_private:
            route = replace(route, addresses=_only_public(host, route.addresses))
        return self._transport.dial(origin, route)


def _only_public(host: str, addresses: tuple[str, ...]) -> tuple[str, ...]:
    # Through an upstream proxy there are no addresses here: names are its own affair, literal addresses are not.
    literal = (host,) if not addresses and _is_address(host) else addresses
    public = tuple(address for address in literal if is_public(address))
    if literal and not public:
        raise ClientError(
            f"{host} is inside this network ({literal[0]}), where no tunnel leads: reach it directly (NO_PROXY on the "
            "node), or set upstream.allow_private",
            status=403,
            code="DENIED",
        )
    return public if addresses else ()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
