"""Where an answer of a registry may lead: not to the inside of this network, unless that is where the registry is.

A redirect is a registry's choice, and what this cache can reach is more than its clients can: metadata services, other
machines' admin ports. The addresses that are connected to are judged, not the names (DNS rebinding): a Route has them.
"""

import ipaddress

from mitm_cache.errors import UpstreamError
from mitm_cache.upstream.dial import is_public
from mitm_cache.upstream.route import Route
from mitm_cache.wire.redirect import Origin


def check_redirect(target: Origin, route: Route, start: Origin, home: Route, *, allow_private: bool) -> None:
    """Raise UpstreamError where a redirect from a registry at `start`, along `home`, may not lead along `route`.

    One whose own address is inside may redirect to others inside; to a link-local one, where clouds have their metadata
    services, none may.
    """
    if allow_private:
        return
    inside = [address for address in _addresses(target.host, route) if not is_public(address)]
    from_inside = any(not is_public(address) for address in _addresses(start.host, home))
    barred = [address for address in inside if not from_inside or _is_link_local(address)]
    if barred:
        raise UpstreamError(
            f"a redirect to {target} leads to {barred[0]}, inside this network; upstream.allow_private allows it"
        )


def _addresses(host: str, route: Route) -> tuple[str, ...]:
    """What is connected to; through a proxy that is the proxy's affair, but for a host that is an address itself."""
    if route.addresses:
        return route.addresses
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ()
    return (host,)


def _is_link_local(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_link_local
