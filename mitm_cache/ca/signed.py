"""A CA whose certificate somebody else signs: the request for it, and what is checked before it is used."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import MD5, SHA1
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from mitm_cache.ca import certificates, files, rotation
from mitm_cache.ca.authority import CertificateAuthority
from mitm_cache.ca.certificates import RSA_BITS, SigningKey
from mitm_cache.ca.constraints import Constraints, left_open
from mitm_cache.errors import ConfigError

_SERVES = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}


def request(directory: Path, *, permitted: Sequence[str]) -> bytes:
    """A request in PEM form for an intermediate that may sign for `permitted` only.

    Its key waits in the directory; asking again uses the same one. Raises ConfigError.
    """
    constraints = Constraints.parse(permitted)
    path = directory / files.REQUEST_KEY_FILE
    with files.locked(directory):
        files.check_directory(directory)
        if not path.exists():
            files.write_new(path, certificates.private_pem(certificates.make_key()), mode=0o600)
        key = certificates.parse_key(path, files.read(path, private=True))
    return certificates.make_request(key, constraints).public_bytes(Encoding.PEM)


def take(
    directory: Path,
    given: Sequence[Path],
    *,
    key_path: Path | None = None,
    permitted: Sequence[str],
    now: datetime,
    at: datetime | None = None,
) -> CertificateAuthority:
    """Take a CA that somebody else has signed: the CA where there is none, else the next one of a rotation.

    `given` holds its certificate and those above it, in any order, the root included; `key_path` its key, if it is not
    the one of the request. Raises ConfigError naming what is wrong with which certificate.
    """
    with files.locked(directory):
        rotation.refuse_two(directory)
        source = key_path or directory / files.REQUEST_KEY_FILE
        if key_path is None and not source.exists():
            raise ConfigError(f"{source} is missing: 'mitm-cache ca csr' makes a request and its key; or give --key")
        key = certificates.parse_key(source, files.read(source, private=True))
        certificate, *above = _chain(key, given, source)
        _check_own(certificate, permitted, now=now)
        for below, issuer in enumerate(above, start=1):
            _check_issuer(issuer, below, permitted, now=now)
        stem = files.NEXT if files.present(directory) else files.CURRENT
        if stem == files.NEXT:
            rotation.check_date(at, CertificateAuthority.load(directory), now=now)
        elif at is not None:
            raise ConfigError("a date is for a CA that takes the place of another, and there is none yet")
        pem = b"".join(each.public_bytes(Encoding.PEM) for each in (certificate, *above))
        files.write_pair(directory, stem, certificates.private_pem(key), pem)
        if stem == files.NEXT:
            rotation.write_date(directory, at)
        (directory / files.REQUEST_KEY_FILE).unlink(missing_ok=True)
    return CertificateAuthority.load(directory, stem)


def _chain(key: SigningKey, given: Sequence[Path], source: Path) -> list[x509.Certificate]:
    """The certificate of the key, then whose signed it, up to the root."""
    there = [each for path in given for each in certificates.parse_certificates(path, files.read(path))]
    own = next((each for each in there if each.public_key() == key.public_key()), None)
    if own is None:
        raise ConfigError(f"none of the certificates in {_listed(given)} belongs to the key {source}")
    chain = [own]
    while not _is_root(chain[-1]):
        issuer = next((each for each in there if each not in chain and _has_signed(each, chain[-1])), None)
        if issuer is None:
            raise ConfigError(
                f"the chain is not complete: the certificate of {chain[-1].issuer.rfc4514_string()}, which signed "
                f"{_name(chain[-1])}, is not in {_listed(given)}; give it, and all above it up to the root, by --chain"
            )
        chain.append(issuer)
    return chain


def _is_root(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer and _has_signed(certificate, certificate)


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_own(certificate: x509.Certificate, permitted: Sequence[str], *, now: datetime) -> None:
    """Raise ConfigError unless it says what a root of ours says: constraints, path length 0, uses."""
    name = _name(certificate)
    _check_common(certificate, now=now)
    basic = _extension(certificate, x509.BasicConstraints)
    if basic is None or not basic.value.ca or not basic.critical:
        raise ConfigError(f"{name} is not a CA's certificate (critical CA:TRUE in its basic constraints)")
    if basic.value.path_length != 0:
        raise ConfigError(f"{name} may have further CAs below it (path length {basic.value.path_length}): it must be 0")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None or usage.value != certificates.key_usage(leaf=False):
        raise ConfigError(f"{name} has another key usage than keyCertSign and cRLSign, both and nothing else")
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is None or list(purposes.value) != [ExtendedKeyUsageOID.SERVER_AUTH]:
        raise ConfigError(f"{name} must be for TLS servers and nothing else (extended key usage serverAuth)")
    constraints = _extension(certificate, x509.NameConstraints)
    if constraints is None or not constraints.critical:
        raise ConfigError(
            f"{name} is not name-constrained, critically: whoever got its key could pose as any host; the request asks "
            "for the constraints, and with openssl -copy_extensions copyall keeps them"
        )
    if open_ := left_open(constraints.value):
        raise ConfigError(f"the name constraints of {name} leave open what the request closes: {', '.join(open_)}")
    covered = Constraints.read(constraints.value)
    if outside := [each for each in permitted if not covered.cover(each)]:
        raise ConfigError(
            f"{name} may not sign for {', '.join(outside)}, which is configured; allowed are "
            f"{', '.join(covered.permitted)}; 'mitm-cache ca csr' asks for what is configured now"
        )


def _check_issuer(certificate: x509.Certificate, below: int, permitted: Sequence[str], *, now: datetime) -> None:
    """Raise ConfigError unless it may have signed, with `below` CAs between it and a leaf."""
    name = _name(certificate)
    _check_common(certificate, now=now)
    basic = _extension(certificate, x509.BasicConstraints)
    if basic is None or not basic.value.ca:
        raise ConfigError(f"{name} signed the CA and is not a CA's certificate itself")
    if basic.value.path_length is not None and basic.value.path_length < below:
        raise ConfigError(f"{name} allows for {basic.value.path_length} CAs below it (path length), and has {below}")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.value.key_cert_sign:
        raise ConfigError(f"{name} signed the CA, and its key usage has no keyCertSign")
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is not None and not _SERVES & set(purposes.value):
        raise ConfigError(f"{name} is not for TLS servers (extended key usage), so nothing below it is")
    constraints = _extension(certificate, x509.NameConstraints)
    if constraints is not None:
        covered = Constraints.read(constraints.value)
        outside = [each for each in permitted if covered.names and not covered.cover(each)]
        if outside:
            raise ConfigError(f"{name} is name-constrained itself, and shuts out {', '.join(outside)}")


def _check_common(certificate: x509.Certificate, *, now: datetime) -> None:
    name, key = _name(certificate), certificate.public_key()
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= now < end:
        raise ConfigError(f"{name} is valid from {start} to {end}, and it is {now}")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS:
        raise ConfigError(f"{name} has an RSA key of {key.key_size} bits: at least {RSA_BITS} are wanted")
    if isinstance(certificate.signature_hash_algorithm, SHA1 | MD5):
        raise ConfigError(f"{name} is signed with {certificate.signature_hash_algorithm.name}, which no client takes")


def _extension[T: x509.ExtensionType](certificate: x509.Certificate, kind: type[T]) -> x509.Extension[T] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"serial {certificate.serial_number:x}"


def _listed(given: Sequence[Path]) -> str:
    return ", ".join(map(str, given))
