"""A server's certificate from elsewhere, with its key: shown in place of a minted leaf for the names of `[local]`.

It is read once, when the service starts or is reloaded.
"""

import ipaddress
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from mitm_cache.ca import certificates, files
from mitm_cache.errors import ConfigError

logger = logging.getLogger(__name__)

SOON = timedelta(days=14)
"""A certificate that ends within this is warned of when it is read."""
_KEYS = "local.cert and local.key name them"


@dataclass(frozen=True, slots=True)
class GivenCertificate:
    """A certificate, what is sent after it, and its key. `names` are host names, `*.example` for one label before it,
    and addresses."""

    path: Path
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    certificate_chain_pem: bytes = field(repr=False)
    private_key_pem: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path, key_path: Path) -> Self:
        """Read both files. Raises ConfigError where they are no server's certificate and its key, which others than
        its owner must not be able to read."""
        key = certificates.parse_key(key_path, files.read(key_path, private=True, missing=_KEYS))
        chain = certificates.parse_certificates(path, files.read(path, missing=_KEYS))
        leaf = chain[0]
        if leaf.public_key() != key.public_key():
            other = any(each.public_key() == key.public_key() for each in chain[1:])
            cure = "; the server's own certificate comes first in the file" if other else ""
            raise ConfigError(f"local.cert {path} and local.key {key_path} do not belong together{cure}")
        if not _is_for_servers(leaf):
            raise ConfigError(f"local.cert {path} is not for servers: it has other uses (extendedKeyUsage)")
        names = tuple(_names(leaf))
        if not names:
            raise ConfigError(f"local.cert {path} holds no name of a host (subjectAltName), which clients look for")
        return cls(
            path,
            names,
            leaf.not_valid_before_utc,
            leaf.not_valid_after_utc,
            b"".join(each.public_bytes(Encoding.PEM) for each in chain),
            certificates.private_pem(key),
        )

    @classmethod
    def open(cls, path: Path | None, key_path: Path | None, hosts: Collection[str]) -> Self | None:
        """The certificate for these hosts, or None where none is given; warns of what may be wrong with it.

        Raises ConfigError where it cannot be used, or is for none of them.
        """
        if path is None or key_path is None:
            return None
        given = cls.load(path, key_path)
        given.check_covers(hosts)
        for words in given.remarks(hosts):
            logger.warning("%s", words)
        return given

    def covers(self, name: str) -> bool:
        """Whether a client that asks for this name takes the certificate for it (RFC 6125, 6.4.3)."""
        try:
            ipaddress.ip_address(name)
        except ValueError:
            _, dot, above = name.partition(".")
            return name in self.names or (bool(dot) and f"*.{above}" in self.names)
        return name in self.names

    def check_covers(self, hosts: Collection[str]) -> None:
        """Raise ConfigError where it is for none of these hosts."""
        if hosts and not any(map(self.covers, hosts)):
            raise ConfigError(
                f"local.cert {self.path} is for {', '.join(self.names)}, and local.names has none of them: "
                f"{', '.join(hosts)}"
            )

    def remarks(self, hosts: Collection[str], now: datetime | None = None) -> Iterator[str]:
        """What the operator should know about it, in words: hosts it is not for, and that it ends."""
        now = now or datetime.now(UTC)
        if left := [host for host in hosts if not self.covers(host)]:
            words = f"local.cert {self.path} is not for {', '.join(left)}"
            yield f"{words}: TLS by such a name is refused, unless ca.permit has it, for a leaf of the cache's CA"
        if now < self.not_before:
            yield f"local.cert {self.path} is valid from {self.not_before:%Y-%m-%d} on: clients do not take it yet"
        elif self.not_after <= now:
            yield f"local.cert {self.path} has ended ({self.not_after:%Y-%m-%d}): clients do not take it any more"
        elif self.not_after - now < SOON:
            days = (self.not_after - now).days
            yield (
                f"local.cert {self.path} ends in {days} days ({self.not_after:%Y-%m-%d}); 'mitm-cache reload' reads "
                "another one that is put in its place"
            )


def _is_for_servers(leaf: x509.Certificate) -> bool:
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return bool({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(uses))


def _names(leaf: x509.Certificate) -> Iterator[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    yield from (name.lower().rstrip(".") for name in names.get_values_for_type(x509.DNSName))
    yield from (str(address) for address in names.get_values_for_type(x509.IPAddress))
