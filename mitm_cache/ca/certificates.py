"""What is signed, and with what: the CA's own certificate, the request for one, leaves; and the keys. No files."""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from mitm_cache.ca.constraints import Constraints, alternative_name
from mitm_cache.errors import ConfigError

BACKDATED = timedelta(days=1)
"""How far the clock of a node may be behind."""
CA_LIFETIME = timedelta(days=5 * 365)
LEAF_LIFETIME = timedelta(days=7)
LEAF_RENEWAL = timedelta(days=5)
"""Age at which a leaf is minted anew (in proportion where the CA ends before the leaf would)."""
CURVES = ("secp256r1", "secp384r1", "secp521r1")
RSA_BITS = 2048
"""The least that verifiers take."""
SERVER_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
PATH_LENGTH_0 = x509.BasicConstraints(ca=True, path_length=0)

_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)

type SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: SigningKey) -> bytes:
    """A key as it is kept: PKCS 8, unencrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_key(where: object, pem: bytes) -> SigningKey:
    """A key to sign with. Raises ConfigError for what is none, or too short."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{where} is not an unencrypted private key in PEM form: {error}") from error
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return key
    raise ConfigError(f"{where} is of a kind or size that is not taken: allowed are RSA from {RSA_BITS} bits, P-256, "
                      "P-384 and P-521")  # fmt: skip


def parse_certificates(where: object, pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates in a file, one at least, which can be read as far as we do. Raises ConfigError."""
    try:
        found = tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise ConfigError(f"{where} is not a certificate in PEM form: {error}") from error
    try:
        for each in found:  # these are not looked at before they are asked for
            each.public_key()
            each.extensions  # noqa: B018 - it raises
    except _UNREADABLE as error:
        raise ConfigError(f"{where} holds a certificate that cannot be read: {error}") from error
    return found


def self_sign(key: ec.EllipticCurvePrivateKey, constraints: Constraints, *, now: datetime) -> x509.Certificate:
    """The certificate of a root of our own."""
    return (
        _builder(key.public_key(), not_before=now - BACKDATED)
        .subject_name(name := _subject(key))
        .issuer_name(name)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(PATH_LENGTH_0, critical=True)
        .add_extension(key_usage(leaf=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(constraints.extension(), critical=True)
        .sign(key, SHA256())
    )


def make_request(key: SigningKey, constraints: Constraints) -> x509.CertificateSigningRequest:
    """A request for a certificate such as `self_sign` makes, signed by somebody else."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(key))
        .add_extension(PATH_LENGTH_0, critical=True)
        .add_extension(key_usage(leaf=False), critical=True)
        .add_extension(SERVER_ONLY, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(constraints.extension(), critical=True)
        .sign(key, SHA256())
    )


def sign_leaf(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    *,
    ca: x509.Certificate,
    ca_key: SigningKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.Certificate:
    """A server's certificate for exactly `name`, whether the CA may or not."""
    try:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
    except x509.ExtensionNotFound:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(key.public_key(), not_before=not_before)
        .subject_name(x509.Name.from_rfc4514_string("O=mitm-cache"))
        .issuer_name(ca.subject)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(leaf=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.SubjectAlternativeName([alternative_name(name)]), critical=False)
        .sign(ca_key, SHA256())
    )


def key_usage(*, leaf: bool) -> x509.KeyUsage:
    """Leaves sign handshakes; the CA signs certificates and revocation lists."""
    return x509.KeyUsage(leaf, False, False, False, False, not leaf, not leaf, False, False)


def _subject(key: SigningKey) -> x509.Name:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return x509.Name.from_rfc4514_string(f"CN=mitm-cache CA {identifier.digest.hex()[:8]},O=mitm-cache")


def _builder(key: ec.EllipticCurvePublicKey, *, not_before: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .add_extension(SERVER_ONLY, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
