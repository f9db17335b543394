"""A CA on disk, and the short-lived leaves it signs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from mitm_cache.ca import certificates, files
from mitm_cache.ca.certificates import BACKDATED, LEAF_LIFETIME, LEAF_RENEWAL, SigningKey
from mitm_cache.ca.constraints import Constraints, shut_out
from mitm_cache.errors import ConfigError


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
    """What `ca show` tells of a CA. It is valid for as long as every certificate of its chain is."""

    path: Path
    subject: str
    not_before: datetime
    not_after: datetime
    fingerprint: str
    permitted: tuple[str, ...]
    excluded: tuple[str, ...]
    issuers: tuple[str, ...] = ()
    """Whose intermediate it is, up to the root that nodes trust; empty for a root of our own."""


@dataclass(frozen=True, slots=True, eq=False)
class CertificateAuthority:
    """A CA on disk: `ca.crt` for the nodes, and `ca.key`, which leaves neither the directory nor this object.

    Where somebody else's root has signed it, `ca.crt` goes on with the certificates up to that root.
    """

    directory: Path
    constraints: Constraints
    _certificate: x509.Certificate = field(repr=False)
    _key: SigningKey = field(repr=False)
    _issuers: tuple[x509.Certificate, ...] = field(repr=False, default=())
    stem: str = files.CURRENT

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        permitted: Sequence[str],
        now: datetime,
        force: bool = False,
        stem: str = files.CURRENT,
    ) -> Self:
        """Make a new CA; with `force` one that is there is kept under a name that ends in the time.

        Raises ConfigError when there is one and not `force`, a rotation is under way, or the directory cannot be
        written.
        """
        constraints = Constraints.parse(permitted)
        with files.locked(directory):
            return cls._write(directory, constraints, now=now, force=force, stem=stem)

    @classmethod
    def load(cls, directory: Path, stem: str = files.CURRENT) -> Self:
        """Raise ConfigError unless the directory holds a constrained CA and its key, readable by the owner only."""
        key_path, path = directory / f"{stem}.key", directory / f"{stem}.crt"
        key = certificates.parse_key(key_path, files.read(key_path, private=True))
        certificate, *issuers = certificates.parse_certificates(path, files.read(path))
        if certificate.public_key() != key.public_key():
            raise ConfigError(f"{path} and {key_path} do not belong together{_cut_short(directory, key)}")
        try:
            constraints = Constraints.read(certificate.extensions.get_extension_for_class(x509.NameConstraints).value)
        except x509.ExtensionNotFound:
            constraints = Constraints(())
        if not constraints.names:
            raise ConfigError(f"{path} is not name-constrained; 'mitm-cache ca init --force' replaces it")
        return cls(directory, constraints, certificate, key, tuple(issuers), stem)

    @classmethod
    def ensure(cls, directory: Path, *, permitted: Sequence[str], now: datetime) -> Self:
        """The CA of the directory, made when there is none: by one process if several ask at once.

        Raises ConfigError when it is not valid now, or does not cover everything in `permitted`.
        """
        authority = cls.found_or_made(directory, permitted=permitted, now=now)
        authority.check_valid(now)
        authority.check_covers(permitted)
        return authority

    @classmethod
    def found_or_made(cls, directory: Path, *, permitted: Sequence[str], now: datetime) -> Self:
        """The CA of the directory as it is, made when there is none. Raises ConfigError."""
        if len(files.present(directory)) < 2:
            with files.locked(directory):
                if not files.present(directory):
                    return cls._write(directory, Constraints.parse(permitted), now=now)
        return cls.load(directory)

    @classmethod
    def _write(
        cls, directory: Path, constraints: Constraints, *, now: datetime, force: bool = False, stem: str = files.CURRENT
    ) -> Self:
        files.check_directory(directory)
        present = files.present(directory, stem)
        if present and not force:
            raise ConfigError(f"{present[0]} exists; 'mitm-cache ca init --force' replaces this CA on every node")
        if stem == files.CURRENT and files.present(directory, files.NEXT):
            raise ConfigError(
                f"a rotation is under way in {directory}: 'mitm-cache ca rotate --finish' or '--abort' ends it"
            )
        key = certificates.make_key()
        certificate = certificates.self_sign(key, constraints, now=now)
        files.keep_copies(directory, stem, now=now)
        files.write_pair(directory, stem, certificates.private_pem(key), certificate.public_bytes(Encoding.PEM))
        return cls(directory, constraints, certificate, key, (), stem)

    @property
    def certificate_path(self) -> Path:
        return self.directory / f"{self.stem}.crt"

    @property
    def key_path(self) -> Path:
        return self.directory / f"{self.stem}.key"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate as `openssl x509 -fingerprint -sha256` writes it."""
        return self._certificate.fingerprint(SHA256()).hex(":").upper()

    @property
    def not_before(self) -> datetime:
        """From when on it and all above it are valid."""
        return max(each.not_valid_before_utc for each in (self._certificate, *self._issuers))

    @property
    def not_after(self) -> datetime:
        """Until when it and all above it are valid."""
        return min(each.not_valid_after_utc for each in (self._certificate, *self._issuers))

    @property
    def anew(self) -> str:
        """How another certificate is come by, in words for the operator."""
        if self._issuers:
            return (
                "'mitm-cache ca csr' asks for another certificate by the same root, and 'mitm-cache ca import' takes it"
            )
        return (
            "'mitm-cache ca rotate' makes a new CA that nodes can trust before it is used, and 'mitm-cache ca init "
            "--force' one for what is configured now, which the nodes must then trust at once"
        )

    def check_valid(self, now: datetime) -> None:
        """Raise ConfigError when this CA is not valid at `now`."""
        if not self.not_before <= now < self.not_after:
            raise ConfigError(
                f"{self.certificate_path} is valid from {self.not_before} to {self.not_after}, and it is {now}; "
                f"is the clock right? {self.anew}"
            )

    def check_covers(self, names: Iterable[str]) -> None:
        """Raise ConfigError naming the first of `names` that this CA may not sign for."""
        for name in names:
            if not self.constraints.cover(name):
                permitted = ", ".join(self.constraints.permitted)
                raise ConfigError(
                    f"{name!r} is outside what {self.certificate_path} may sign for ({permitted}); {self.anew}"
                )

    def signer(self, now: datetime) -> "CertificateAuthority":
        """Who signs at `now`: a CA alone always does."""
        return self

    def mint(self, name: str, *, now: datetime) -> Leaf:
        """Sign a leaf for exactly `name`. Raises ConfigError when this CA may not, or is not valid now."""
        self.check_valid(now)
        self.check_covers((name,))
        key = certificates.make_key()
        not_after = min(now + LEAF_LIFETIME, self.not_after)
        certificate = certificates.sign_leaf(
            key,
            name,
            ca=self._certificate,
            ca_key=self._key,
            not_before=max(now - BACKDATED, self.not_before),
            not_after=not_after,
        )
        return Leaf(
            name=name,
            certificate_chain_pem=certificate.public_bytes(Encoding.PEM) + self._chain(),
            private_key_pem=certificates.private_pem(key),
            serial=certificate.serial_number,
            not_after=certificate.not_valid_after_utc,
            renew_at=now + (not_after - now) * (LEAF_RENEWAL / LEAF_LIFETIME),
        )

    def _chain(self) -> bytes:
        """What is sent after a leaf. Another's root is left out: a client that trusts it has it."""
        sent = (self._certificate, *(each for each in self._issuers if each.subject != each.issuer))
        return b"".join(each.public_bytes(Encoding.PEM) for each in sent)

    def export(self, form: Literal["pem", "der"] = "pem") -> bytes:
        """The certificate, which is public; never the key, and not the root of somebody else that signed it."""
        return self._certificate.public_bytes(Encoding.DER if form == "der" else Encoding.PEM)

    def describe(self) -> Description:
        """What `ca show` tells."""
        extension = self._certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        return Description(
            path=self.certificate_path,
            subject=self._certificate.subject.rfc4514_string(),
            not_before=self.not_before,
            not_after=self.not_after,
            fingerprint=self.fingerprint,
            permitted=self.constraints.permitted,
            excluded=shut_out(extension),
            issuers=tuple(each.subject.rfc4514_string() for each in self._issuers),
        )


def _cut_short(directory: Path, key: SigningKey) -> str:
    """A hint where it was `ca rotate --finish` that ended between its two renames."""
    path = directory / f"{files.NEXT}.crt"
    if not path.exists() or (directory / f"{files.NEXT}.key").exists():
        return ""
    certificate = certificates.parse_certificates(path, files.read(path))[0]
    if certificate.public_key() != key.public_key():
        return ""
    return ": a change was cut short, and 'mitm-cache ca rotate --finish' completes it"
