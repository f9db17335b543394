"""The local certificate authority and the short-lived leaves it signs. The only module that imports cryptography.

Nodes put this CA into their system store, so whoever gets its key can pose as whatever it may sign for. It may sign
for the registries it was made for and nothing else: critical name constraints (RFC 5280, 4.2.1.10), path length 0,
server authentication only. DNS constraints alone would leave addresses, e-mail and URI names open. Those are closed
by excluding every address, and by both permitting and excluding the one host `invalid` (RFC 2606) as e-mail and as
URI: naming a form in the permitted list shuts out the rest of that form, and excluding it shuts out `invalid` too.
Verifiers differ too much for anything shorter: OpenSSL ignores an empty excluded name, GnuTLS a permitted URI.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Literal, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from mitm_cache.errors import ConfigError

KEY_FILE = "ca.key"
CERTIFICATE_FILE = "ca.crt"
LOCK_FILE = "ca.lock"

BACKDATED = timedelta(days=1)
"""How far the clock of a node may be behind."""
CA_LIFETIME = timedelta(days=5 * 365)
LEAF_LIFETIME = timedelta(days=7)
LEAF_RENEWAL = timedelta(days=5)
"""Age at which a leaf is minted anew (in proportion where the CA ends before the leaf would)."""

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
        values = [
            subtree.value for subtree in extension.permitted_subtrees or () if subtree not in (_NO_EMAIL, _NO_URI)
        ]
        networks = [value for value in values if isinstance(value, IPv4Network | IPv6Network)]
        return cls(
            tuple(value for value in values if isinstance(value, str)),
            tuple(network.network_address for network in networks if network.num_addresses == 1),
        )

    def extension(self) -> x509.NameConstraints:
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
        return (*self.names, *map(str, self.addresses))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A server certificate for one name, with its chain and a key of its own."""

    name: str
    certificate_chain_pem: bytes = field(repr=False)
    private_key_pem: bytes = field(repr=False)
    serial: int
    not_after: datetime
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class Description:
    """What `ca show` tells of a CA."""

    path: Path
    subject: str
    not_before: datetime
    not_after: datetime
    fingerprint: str
    permitted: tuple[str, ...]
    excluded: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CertificateAuthority:
    """A CA on disk: `ca.crt` for the nodes, and `ca.key`, which leaves neither the directory nor this object."""

    directory: Path
    constraints: Constraints
    _certificate: x509.Certificate = field(repr=False)
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, directory: Path, *, permitted: Sequence[str], now: datetime, force: bool = False) -> Self:
        """Make a new CA; with `force` one that is there is set aside under a name that ends in the time.

        Raises ConfigError when there is one and not `force`, or the directory cannot be written.
        """
        constraints = Constraints.parse(permitted)
        with _locked(directory):
            return cls._write(directory, constraints, now=now, force=force)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raise ConfigError unless the directory holds a constrained CA and its key, readable by the owner only."""
        key = _load_key(directory / KEY_FILE)
        path = directory / CERTIFICATE_FILE
        try:
            certificate = x509.load_pem_x509_certificate(_read(path))
        except ValueError as error:
            raise ConfigError(f"{path} is not a certificate in PEM form: {error}") from error
        if certificate.public_key() != key.public_key():
            raise ConfigError(f"{path} and {directory / KEY_FILE} do not belong together")
        try:
            constraints = Constraints.read(certificate.extensions.get_extension_for_class(x509.NameConstraints).value)
        except x509.ExtensionNotFound:
            constraints = Constraints(())
        if not constraints.names:
            raise ConfigError(f"{path} is not name-constrained; 'mitm-cache ca init --force' replaces it")
        return cls(directory, constraints, certificate, key)

    @classmethod
    def ensure(cls, directory: Path, *, permitted: Sequence[str], now: datetime) -> Self:
        """The CA of the directory, made when there is none: by one process if several ask at once.

        Raises ConfigError when it is not valid now, or does not cover everything in `permitted`.
        """
        if len(_present(directory)) < 2:
            with _locked(directory):
                if not _present(directory):
                    return cls._write(directory, Constraints.parse(permitted), now=now)
        authority = cls.load(directory)
        authority.check_valid(now)
        authority.check_covers(permitted)
        return authority

    @classmethod
    def _write(cls, directory: Path, constraints: Constraints, *, now: datetime, force: bool = False) -> Self:
        present = _present(directory)
        if present and not force:
            raise ConfigError(f"{present[0]} exists; 'mitm-cache ca init --force' replaces this CA on every node")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_sign(key, constraints, now=now)
        _write_new(directory / f"{KEY_FILE}.new", _private_pem(key), mode=0o600)
        _write_new(directory / f"{CERTIFICATE_FILE}.new", certificate.public_bytes(Encoding.PEM), mode=0o644)
        for path in present:
            _set_aside(path, now=now)
        for name in (KEY_FILE, CERTIFICATE_FILE):
            (directory / f"{name}.new").rename(directory / name)
        return cls(directory, constraints, certificate, key)

    @property
    def certificate_path(self) -> Path:
        return self.directory / CERTIFICATE_FILE

    @property
    def key_path(self) -> Path:
        return self.directory / KEY_FILE

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate as `openssl x509 -fingerprint -sha256` writes it."""
        return self._certificate.fingerprint(SHA256()).hex(":").upper()

    def check_valid(self, now: datetime) -> None:
        """Raise ConfigError when this CA is not valid at `now`."""
        start, end = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        if not start <= now < end:
            raise ConfigError(
                f"{self.certificate_path} is valid from {start} to {end}, and it is {now}; is the clock right? "
                "'mitm-cache ca init --force' makes a new CA, which the nodes must then trust"
            )

    def check_covers(self, names: Iterable[str]) -> None:
        """Raise ConfigError naming the first of `names` that this CA may not sign for."""
        for name in names:
            if not self.constraints.cover(name):
                permitted = ", ".join(self.constraints.permitted)
                raise ConfigError(
                    f"{name!r} is outside what {self.certificate_path} may sign for ({permitted}); 'mitm-cache ca init "
                    "--force' makes a CA for what is configured now, which the nodes must then trust"
                )

    def mint(self, name: str, *, now: datetime) -> Leaf:
        """Sign a leaf for exactly `name`. Raises ConfigError when this CA may not, or is not valid now."""
        self.check_valid(now)
        self.check_covers((name,))
        key = ec.generate_private_key(ec.SECP256R1())
        not_after = min(now + LEAF_LIFETIME, self._certificate.not_valid_after_utc)
        certificate = (
            _builder(key.public_key(), not_before=max(now - BACKDATED, self._certificate.not_valid_before_utc))
            .subject_name(x509.Name.from_rfc4514_string("O=mitm-cache"))
            .issuer_name(self._certificate.subject)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(leaf=True), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([_alternative_name(name)]), critical=False)
            .sign(self._key, SHA256())
        )
        return Leaf(
            name=name,
            certificate_chain_pem=certificate.public_bytes(Encoding.PEM) + self.export("pem"),
            private_key_pem=_private_pem(key),
            serial=certificate.serial_number,
            not_after=certificate.not_valid_after_utc,
            renew_at=now + (not_after - now) * (LEAF_RENEWAL / LEAF_LIFETIME),
        )

    def export(self, form: Literal["pem", "der"] = "pem") -> bytes:
        """The certificate, which is public; never the key."""
        return self._certificate.public_bytes(Encoding.DER if form == "der" else Encoding.PEM)

    def describe(self) -> Description:
        extension = self._certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        excluded = extension.excluded_subtrees or []
        return Description(
            path=self.certificate_path,
            subject=self._certificate.subject.rfc4514_string(),
            not_before=self._certificate.not_valid_before_utc,
            not_after=self._certificate.not_valid_after_utc,
            fingerprint=self.fingerprint,
            permitted=self.constraints.permitted,
            excluded=tuple(text for name, text in _EXCLUDED if name in excluded),
        )


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


def _alternative_name(name: str) -> x509.GeneralName:
    parsed = _parse(name)
    return x509.DNSName(parsed) if isinstance(parsed, str) else x509.IPAddress(parsed)


def _builder(key: ec.EllipticCurvePublicKey, *, not_before: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _self_sign(key: ec.EllipticCurvePrivateKey, constraints: Constraints, *, now: datetime) -> x509.Certificate:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = x509.Name.from_rfc4514_string(f"CN=mitm-cache CA {identifier.digest.hex()[:8]},O=mitm-cache")
    return (
        _builder(key.public_key(), not_before=now - BACKDATED)
        .subject_name(name)
        .issuer_name(name)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(leaf=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(constraints.extension(), critical=True)
        .sign(key, SHA256())
    )


def _key_usage(*, leaf: bool) -> x509.KeyUsage:
    """Leaves sign handshakes; the CA signs certificates and revocation lists."""
    return x509.KeyUsage(leaf, False, False, False, False, not leaf, not leaf, False, False)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    pem = _read(path, private=True)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not an unencrypted private key in PEM form: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an elliptic-curve key")
    return key


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if private and mode & 0o077:
                raise ConfigError(f"{path} may be read by others (mode {mode:04o}): chmod 600 {path}")
            return file.read(1 << 20)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; 'mitm-cache ca init' makes a CA") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that nobody else can open before it has its mode, whatever the umask."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _set_aside(path: Path, *, now: datetime) -> None:
    backup = path.with_name(f"{path.name}.{now.astimezone(UTC):%Y%m%dT%H%M%SZ}")
    if backup.exists():
        raise ConfigError(f"{backup} exists: this CA was replaced a moment ago")
    path.rename(backup)


def _present(directory: Path) -> list[Path]:
    return [path for path in (directory / KEY_FILE, directory / CERTIFICATE_FILE) if os.path.lexists(path)]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory for writing; it is made, for its owner only, when it is not there."""
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        with open(os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ConfigError(f"the CA directory {directory} cannot be written: {error}") from error
