"""What a CA may sign for, and how a certificate says so to every verifier.

Nodes put this CA into their system store, so whoever gets its key can pose as whatever it may sign for. It may sign
for the registries it was made for and nothing else: critical name constraints (RFC 5280, 4.2.1.10), path length 0,
server authentication only. DNS constraints alone would leave addresses, e-mail and URI names open. Those are closed
by excluding every address, and by both permitting and excluding the one host `invalid` (RFC 2606) as e-mail and as
URI: naming a form in the permitted list shuts out the rest of that form, and excluding it shuts out `invalid` too.
Verifiers differ too much for anything shorter: OpenSSL ignores an empty excluded name, GnuTLS a permitted URI.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

from cryptography import x509

from mitm_cache.errors import ConfigError

type Address = IPv4Address | IPv6Address

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*(?![0-9]+$){_LABEL}")
_ALL_V4, _ALL_V6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
_NO_EMAIL, _NO_URI = x509.RFC822Name("invalid"), x509.UniformResourceIdentifier("invalid")
_EXCLUDED: tuple[tuple[x509.GeneralName, str], ...] = (
    (x509.IPAddress(_ALL_V4), "all IPv4 addresses"),
    (x509.IPAddress(_ALL_V6), "all IPv6 addresses"),
    (_NO_EMAIL, "all e-mail names"),
    (_NO_URI, "all URI names"),
)


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a CA may sign for: DNS names, each with all below it, and single addresses."""

    names: tuple[str, ...]
    addresses: tuple[Address, ...] = ()

    @classmethod
    def parse(cls, permitted: Iterable[str]) -> Self:
        """Raise ConfigError unless each is a DNS name or an address, and at least one is a DNS name."""
        parsed = dict.fromkeys(_parse(name) for name in permitted)
        names = tuple(name for name in parsed if isinstance(name, str))
        if not names:
            raise ConfigError("a CA must be permitted at least one DNS name, or it could sign for all of them")
        return cls(names, tuple(name for name in parsed if not isinstance(name, str)))

    @classmethod
    def read(cls, extension: x509.NameConstraints) -> Self:
        """What an extension permits; names in other forms than ours are left out."""
        values = [
            subtree.value for subtree in extension.permitted_subtrees or () if subtree not in (_NO_EMAIL, _NO_URI)
        ]
        networks = [value for value in values if isinstance(value, IPv4Network | IPv6Network)]
        return cls(
            tuple(value for value in values if isinstance(value, str)),
            tuple(network.network_address for network in networks if network.num_addresses == 1),
        )

    def extension(self) -> x509.NameConstraints:
        """The extension that permits this and shuts out everything else, in every form of names."""
        permitted: list[x509.GeneralName] = [x509.DNSName(name) for name in self.names]
        permitted += [x509.IPAddress(ip_network(address)) for address in self.addresses]
        families = {_ALL_V4 if address.version == 4 else _ALL_V6 for address in self.addresses}
        return x509.NameConstraints(
            permitted_subtrees=[*permitted, _NO_EMAIL, _NO_URI],
            excluded_subtrees=[name for name, _ in _EXCLUDED if name.value not in families],
        )

    def cover(self, name: str) -> bool:
        """Whether `name` is permitted: a DNS name by itself or by a parent, an address by itself."""
        match _parse(name):
            case str(host):
                return any(host == parent or host.endswith(f".{parent}") for parent in self.names)
            case address:
                return address in self.addresses

    @property
    def permitted(self) -> tuple[str, ...]:
        """The names and addresses as text."""
        return (*self.names, *map(str, self.addresses))


def left_open(extension: x509.NameConstraints) -> tuple[str, ...]:
    """The forms of names that an extension does not close as ours do; each is one that a thief could sign for."""
    wanted = Constraints.read(extension).extension()
    there = {*(extension.permitted_subtrees or ()), *(("not", name) for name in extension.excluded_subtrees or ())}
    missing = [
        *(name for name in (_NO_EMAIL, _NO_URI) if name not in there),
        *(name for name in wanted.excluded_subtrees or () if ("not", name) not in there),
    ]
    # An empty DNS name permits all of them.
    permitted = [name for name in wanted.permitted_subtrees or () if name.value]
    odd = [name for name in extension.permitted_subtrees or () if name not in permitted]
    words = dict(_EXCLUDED)
    return tuple(dict.fromkeys((*(words[name] for name in missing), *(repr(str(name.value)) for name in odd))))


def shut_out(extension: x509.NameConstraints) -> tuple[str, ...]:
    """What an extension excludes, in words."""
    return tuple(text for name, text in _EXCLUDED if name in (extension.excluded_subtrees or ()))


def _parse(name: str) -> str | Address:
    try:
        if "%" not in name:  # an IPv6 zone means something on one machine only
            return ip_address(name)
    except ValueError:
        pass
    host = name.lower().removesuffix(".")
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"{name!r} cannot go into a certificate: allowed are an address, or a DNS name without port and '*' "
            "(it covers all names below it)"
        )
    return host


def alternative_name(name: str) -> x509.GeneralName:
    """A name as a leaf holds it. Raises ConfigError for what is none."""
    parsed = _parse(name)
    return x509.DNSName(parsed) if isinstance(parsed, str) else x509.IPAddress(parsed)
