"""Whose request is it? Derived once from the listener, the SNI and the Host header; nothing else is believed.

What a request line or mitmproxy's own idea of the destination says could name another host than the one whose
certificate the client has checked, and its credentials would go there. No I/O.
"""

from dataclasses import dataclass

from mitm_cache.errors import ClientError
from mitm_cache.registries import DOCKER_HUB, Known, Registry

MISDIRECTED = 421
"""RFC 9110, 15.5.20."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a request came: on which listener and local port, by which server name if it came by TLS, and behind which
    CONNECT, if one."""

    listener: str
    port: int
    sni: str | None
    target: str = ""


def split_host(value: str) -> tuple[str, int | None]:
    """A Host header's name, in lower case, and port. Raises ClientError (400) for anything else."""
    host, colon, port = value.strip().lower().rpartition(":")
    if not colon or port.endswith("]"):
        host, port = value.strip().lower(), ""
    # isdigit() alone would let through digits that int() does not take, and thousands of them.
    good_port = not port or (port.isascii() and port.isdigit() and len(port) <= 5)
    if not host or not good_port or any(c in host for c in "/@?#\\ \t,"):
        raise ClientError("the Host header is not a host name")
    return host.rstrip("."), int(port) if port else None


def identify(arrival: Arrival, hosts: list[str], known: Known) -> Registry:
    """The registry a request is for. `hosts` are the values of its Host headers.

    Raises ClientError: 400 without exactly one Host, 421 where it is not the name that TLS was asked for, 404 for a
    host this cache does not serve.
    """
    if len(hosts) != 1:
        raise ClientError("a request has exactly one Host header")
    host, port = split_host(hosts[0])
    if arrival.listener == "mirror":
        return known.named(DOCKER_HUB.name) or DOCKER_HUB
    if arrival.sni is not None and host != arrival.sni:
        raise ClientError("Host and the TLS server name (SNI) differ", status=MISDIRECTED)
    if arrival.target and host != arrival.target:
        raise ClientError("Host and the host that CONNECT named differ", status=MISDIRECTED)
    registry = known.find(f"{host}:{port}") if port is not None else None
    if registry is None and port in (None, 80 if arrival.listener == "clear" else 443, arrival.port):
        registry = known.find(host)
    if registry is None:
        raise ClientError(
            f"{hosts[0][:128]!r} is not a registry that this cache serves; [registries] of its configuration adds one",
            status=404,
            code="NAME_UNKNOWN",
        )
    return registry
