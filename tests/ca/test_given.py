"""A certificate from elsewhere: what can be used, for which names, and what the operator is told of it."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from mitm_cache.ca.given import GivenCertificate
from mitm_cache.errors import ConfigError

NOW = datetime.now(UTC)


def put(folder: Path, leaf: trustme.LeafCert, name: str = "server") -> tuple[Path, Path]:
    """The chain and its key, as two files."""
    chain, key = folder / f"{name}.crt", folder / f"{name}.key"
    chain.write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    key.touch(0o600)
    key.write_bytes(leaf.private_key_pem.bytes())
    return chain, key


def issue(*names: str, until: datetime | None = None) -> trustme.LeafCert:
    return trustme.CA().issue_cert(*names, not_after=until)


def test_names(tmp_path: Path) -> None:
    """Host names, one label for a star, and addresses; all compared whole."""
    given = GivenCertificate.load(*put(tmp_path, issue("Registry.example", "*.lan", "10.0.0.5")))
    for name in ("registry.example", "a.lan", "10.0.0.5"):
        assert given.covers(name), name
    for name in ("example", "x.registry.example", "lan", "a.b.lan", "10.0.0.6", "localhost"):
        assert not given.covers(name), name


def test_the_whole_chain_is_kept(tmp_path: Path) -> None:
    """What follows the server's certificate is sent too, in its order."""
    leaf = trustme.CA().create_child_ca().issue_cert("r.example")
    given = GivenCertificate.load(*put(tmp_path, leaf))
    assert [one.subject for one in x509.load_pem_x509_certificates(given.certificate_chain_pem)] == [
        x509.load_pem_x509_certificate(one.bytes()).subject for one in leaf.cert_chain_pems
    ]
    assert "PRIVATE" not in repr(given)


def test_no_certificate() -> None:
    assert GivenCertificate.open(None, None, ["r.example"]) is None


def test_another_key(tmp_path: Path) -> None:
    """A key that is another's, and one that belongs to a later certificate of the file."""
    chain, key = put(tmp_path, issue("r.example"))
    _, other = put(tmp_path, issue("r.example"), "other")
    with pytest.raises(ConfigError, match=rf"local.cert {chain} and local.key {other} do not belong together$"):
        GivenCertificate.load(chain, other)
    chain.write_bytes((tmp_path / "other.crt").read_bytes() + chain.read_bytes())
    with pytest.raises(ConfigError, match="comes first in the file"):
        GivenCertificate.load(chain, key)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("server.crt", "words", "server.crt is not a certificate in PEM form"),
        ("server.key", "words", "server.key is not an unencrypted private key"),
        ("server.crt", None, "server.crt is missing; local.cert and local.key name them"),
        ("server.key", None, "server.key is missing; local.cert"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, file: str, content: str | None, words: str) -> None:
    chain, key = put(tmp_path, issue("r.example"))
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError, match=words):
        GivenCertificate.load(chain, key)


def test_a_certificate_that_cannot_be_read(tmp_path: Path) -> None:
    """One whose extensions are malformed is told of as any other that is of no use."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=r.example")
    odd = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"no ASN.1")
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
        .add_extension(odd, critical=False)
        .sign(key, SHA256())
    )
    (tmp_path / "c.crt").write_bytes(made.public_bytes(Encoding.PEM))
    (tmp_path / "c.key").touch(0o600)
    (tmp_path / "c.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match=r"c\.crt holds a certificate that cannot be read"):
        GivenCertificate.load(tmp_path / "c.crt", tmp_path / "c.key")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620])
def test_a_key_that_others_may_read(tmp_path: Path, mode: int) -> None:
    chain, key = put(tmp_path, issue("r.example"))
    key.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {key}"):
        GivenCertificate.load(chain, key)


@pytest.mark.parametrize(
    ("extension", "words"),
    [
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), "is not for servers"),
        (x509.SubjectAlternativeName([x509.RFC822Name("a@r.example")]), "holds no name of a host"),
        (x509.BasicConstraints(ca=False, path_length=None), "holds no name of a host"),
    ],
)
def test_certificates_for_something_else(tmp_path: Path, extension: x509.ExtensionType, words: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=r.example")
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
        .add_extension(extension, critical=False)
        .sign(key, SHA256())
    )
    (tmp_path / "c.crt").write_bytes(made.public_bytes(Encoding.PEM))
    (tmp_path / "c.key").touch(0o600)
    (tmp_path / "c.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match=words):
        GivenCertificate.load(tmp_path / "c.crt", tmp_path / "c.key")


def test_other_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A certificate for none of the hosts is a mistake; one for some of them is taken, with a word."""
    files = put(tmp_path, issue("a.example", "b.example"))
    with pytest.raises(ConfigError, match=r"is for a.example, b.example, and local.names has none of them: c.example"):
        GivenCertificate.open(*files, ["c.example"])
    assert GivenCertificate.open(*files, ["a.example", "c.example"]) is not None
    assert "is not for c.example: TLS by such a name is refused, unless ca.permit has it" in caplog.text


@pytest.mark.parametrize(
    ("until", "words"),
    [
        (timedelta(days=-1), "has ended"),
        (timedelta(days=5, hours=1), "ends in 5 days"),
        (timedelta(days=40), None),
    ],
)
def test_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture, until: timedelta, words: str | None) -> None:
    """It is taken whatever its dates are: the rest of the cache has to serve. The operator is told."""
    files = put(tmp_path, issue("r.example", until=NOW + until))
    with caplog.at_level(logging.WARNING):
        assert GivenCertificate.open(*files, ["r.example"]) is not None
    assert (words in caplog.text) if words else not caplog.records


def test_too_early(tmp_path: Path) -> None:
    given = GivenCertificate.load(*put(tmp_path, issue("r.example")))
    early = given.not_before - timedelta(days=1)
    assert [each for each in given.remarks(["r.example"], early) if "do not take it yet" in each]
