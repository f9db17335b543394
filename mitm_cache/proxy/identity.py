"""Whose request is it? Derived once from the listener, the SNI, the Host header and, at a mirror, the path.

What a request line or mitmproxy's own idea of the destination says could name another host than the one whose
certificate the client has checked, and its credentials would go there. No I/O.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mitm_cache.errors import ClientError
from mitm_cache.proxy.mirror import Place, is_registry_path, resolve
from mitm_cache.registries import Known, Registry

MISDIRECTED = 421
"""RFC 9110, 15.5.20."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a request came: on which listener, at which local address and port, by which server name if it came by TLS
    ("" for TLS without one), and behind which CONNECT, if one."""

    listener: str
    port: int
    sni: str | None
    target: str = ""
    address: str = ""


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


def identify(
    arrival: Arrival, hosts: Sequence[str], target: str, known: Known, own: Collection[str] = ()
) -> Place | None:
    """The registry that a request is for, and the path there; None for the cache's own pages.

    `hosts` are the values of its Host headers, `target` its path and query, `own` the names of the cache itself, which
    answers as a mirror by these and by its address. Raises ClientError: 400 without exactly one Host, 421 where it is
    not the name that TLS or CONNECT was asked for, 404 for a host or registry this cache does not serve.
    """
    if len(hosts) != 1:
        raise ClientError("a request has exactly one Host header")
    host, port = split_host(hosts[0])
    if arrival.sni is not None and host.strip("[]") != (arrival.sni or arrival.address):
        raise ClientError("Host and the TLS server name (SNI) differ", status=MISDIRECTED)
    if arrival.target and host != arrival.target:
        raise ClientError("Host and the host that CONNECT named differ", status=MISDIRECTED)
    registry = _find(host, port, arrival, known)
    local = registry is not None and registry.is_local  # by an address that may be the cache's own too
    mine = is_own(host, arrival, own) and not local
    registry = None if mine else registry
    if mine or arrival.listener == "mirror":
        return resolve(target, registry, known, arrival.port) if is_registry_path(target) else None
    if registry is None:
        raise ClientError(
            f"{hosts[0][:128]!r} is not a registry that this cache serves; [registries] of its configuration adds one",
            status=404,
            code="NAME_UNKNOWN",
        )
    return Place(registry, target)


def is_own(host: str, arrival: Arrival, own: Collection[str]) -> bool:
    """Whether a host, as `split_host` gives it, is the cache itself."""
    return host in own or host.strip("[]") == arrival.address


def _find(host: str, port: int | None, arrival: Arrival, known: Known) -> Registry | None:
    found = known.find(f"{host}:{port}") if port is not None else None
    # A mirror's port is any: as clients see it, it may be a published one. A registry it names is no other's there.
    own_port = arrival.listener == "mirror" or port in (None, 80 if arrival.listener == "clear" else 443, arrival.port)
    if found is None and own_port:
        found = known.find(host)
    return found
