"""What the pages tell: the CA, the cache's names, and where its listeners are reached."""

import fcntl
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Self

from mitm_cache.parsing import is_address
from mitm_cache.registries import Known

if TYPE_CHECKING:
    from mitm_cache.ca import CertificateAuthority
    from mitm_cache.ca.custody import Custody
    from mitm_cache.config import Config

TLS_PORT = 443
"""Where clients ask for a registry by its name: an entry of a hosts file holds no port."""
_EVERYWHERE = ("::", "0.0.0.0")  # noqa: S104 - compared with, not listened on
_LOOPBACK = ("::1", "127.0.0.1")
_SIOCGIFADDR = 0x8915
"""linux/sockios.h: the address of an interface."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where nodes reach a listener."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Settled when the service starts, but for the CA. `places` is by listener, without those that are off.

    `certificate` holds two during a rotation, the one of `fingerprint` first.
    """

    certificate: bytes
    certificate_der: bytes
    fingerprint: str
    names: tuple[str, ...]
    places: Mapping[str, Place]
    known: Known
    version: str

    @classmethod
    def of(
        cls,
        config: "Config",
        authority: "CertificateAuthority | Custody",
        bound: Iterable[tuple[str, str, int]],
        address: str,
    ) -> Self:
        """`bound`: listener, address and port of each socket; `address`: this host's, for those bound everywhere."""
        return cls(
            certificate=authority.export("pem"),
            certificate_der=authority.export("der"),
            fingerprint=authority.fingerprint,
            names=config.names,
            places=places(bound, config.names, address),
            known=config.known,
            version=version("mitm-cache"),
        )

    @property
    def for_names(self) -> Place | None:
        """Where the registries' names may lead, if the cache listens where clients then look for it."""
        place = self.places.get("tls")
        return place if place and place.port == TLS_PORT else None

    @property
    def base(self) -> str:
        """The URL of the pages, or "" where nothing listens in clear."""
        place = self.places.get("clear") or self.places.get("mirror")
        return "" if place is None else f"http://{place}".removesuffix(":80")


def places(bound: Iterable[tuple[str, str, int]], names: Iterable[str], address: str) -> dict[str, Place]:
    """Where nodes reach each listener.

    An address among the cache's own names is the operator's word for it, as in a container, whose own address nodes do
    not know. Else it is the one that was bound, and `address` for sockets that are bound everywhere.
    """
    told = next((name for name in names if is_address(name) and "%" not in name), "")
    found: dict[str, Place] = {}
    for listener, host, port in bound:
        before = found.get(listener)
        if before is None or before.host in _LOOPBACK:
            own = address if host in _EVERYWHERE else host.partition("%")[0]
            found[listener] = Place(told or own, port)
    return found


def own_address() -> str:
    """The address that other hosts probably reach this one by; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): only asks the kernel for a route
        except OSError:  # there is none where a network has no way out
            return next(_addresses(probe), "127.0.0.1")
        address: str = probe.getsockname()[0]
    return address


def _addresses(probe: socket.socket) -> Iterator[str]:
    """The first IPv4 address of each interface but the loopback one, in the kernel's order."""
    for _, name in socket.if_nameindex():
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
        except OSError:  # it has none
            continue
        address = socket.inet_ntoa(answer[20:24])  # struct ifreq: a name of 16 bytes, family and port, the address
        if not address.startswith("127."):
            yield address
