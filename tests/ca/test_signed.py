"""An intermediate under a company's own root: the request, the documented openssl command, and what is refused."""

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from mitm_cache.ca import CertificateAuthority, certificates, rotation
from mitm_cache.ca.constraints import Constraints
from mitm_cache.ca.signed import request, take
from mitm_cache.cli.ca import ca as command
from mitm_cache.config import load
from mitm_cache.errors import ConfigError
from tests.ca.verifiers import Verify, each_verifier, force
from tests.needs import needs_tool

NOW = datetime.now(UTC).replace(microsecond=0)
PERMITTED = ("quay.io", "localhost")
NAMES = Constraints.parse(PERMITTED).extension()

type Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass
class Company:
    """A root, an intermediate of its own, and files of both."""

    key: Key
    certificate: x509.Certificate

    def sign(self, public: object, **changes: object) -> x509.Certificate:
        """A certificate such as the request asks for, but for `changes`; an extension that is None is left out."""
        parts: dict[str, object] = {
            "basic": certificates.PATH_LENGTH_0,
            "usage": certificates.key_usage(leaf=False),
            "purposes": certificates.SERVER_ONLY,
            "names": NAMES,
            "critical": True,
            "end": NOW + timedelta(days=365),
            "subject": "CN=mitm-cache CA,O=Company",
            **changes,
        }
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name.from_rfc4514_string(str(parts["subject"])))
            .issuer_name(self.certificate.subject)
            .public_key(public)  # type: ignore[arg-type]  # a table of changes has no types
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=2))
            .not_valid_after(parts["end"])  # type: ignore[arg-type]  # as above
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)  # type: ignore[arg-type]
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for name, critical in (("basic", True), ("usage", True), ("purposes", False), ("names", parts["critical"])):
            if parts[name] is not None:
                builder = builder.add_extension(parts[name], critical=bool(critical))  # type: ignore[arg-type]
        return builder.sign(self.key, SHA256())


def make_company() -> Company:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=Company Root,O=Company")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=30))
        .not_valid_after(NOW + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(certificates.key_usage(leaf=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return Company(key, certificate)


def write(path: Path, *given: x509.Certificate) -> Path:
    path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in given))
    return path


def write_key(path: Path, key: Key) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.fixture
def company() -> Company:
    return make_company()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "ca"


def below(company: Company) -> Company:
    """An issuing CA of the company's, between the root and ours."""
    key = ec.generate_private_key(ec.SECP384R1())
    basic = x509.BasicConstraints(ca=True, path_length=1)
    return Company(
        key, company.sign(key.public_key(), basic=basic, purposes=None, names=None, subject="CN=Issuing,O=Company")
    )


def public_of(directory: Path, permitted: tuple[str, ...] = PERMITTED) -> ec.EllipticCurvePublicKey:
    public = x509.load_pem_x509_csr(request(directory, permitted=permitted)).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return public


def imported(
    directory: Path, company: Company, root: Company, tmp_path: Path, permitted: tuple[str, ...] = PERMITTED
) -> CertificateAuthority:
    names = Constraints.parse(permitted).extension()
    own = company.sign(public_of(directory, permitted), names=names)
    chain = write(tmp_path / "chain.crt", *dict.fromkeys((root.certificate, company.certificate)))
    return take(directory, [write(tmp_path / "own.crt", own), chain], permitted=permitted, now=NOW)


class TestNodes:
    @each_verifier
    @pytest.mark.parametrize("issuing", [False, True], ids=["by the root", "by an issuing CA"])
    def test_the_root_only(
        self, company: Company, directory: Path, tmp_path: Path, issuing: bool, verify: Verify
    ) -> None:
        """A node that trusts the company's root, and has heard of nothing else, believes the leaves."""
        authority = imported(directory, below(company) if issuing else company, company, tmp_path)
        root = write(tmp_path / "root.crt", company.certificate)
        assert verify(root, authority.mint("localhost", now=NOW), tmp_path) == ""
        stranger = write(tmp_path / "stranger.crt", make_company().certificate)
        assert verify(stranger, authority.mint("localhost", now=NOW), tmp_path)

    @each_verifier
    def test_stolen_key(self, company: Company, directory: Path, tmp_path: Path, verify: Verify) -> None:
        """A leaf for a name outside the constraints is refused, although the root above may sign for every name."""
        authority = imported(directory, company, company, tmp_path, ("quay.io",))
        root = write(tmp_path / "root.crt", company.certificate)
        assert verify(root, force(authority.key_path, authority.export(), b"", "localhost"), tmp_path)
        with pytest.raises(ConfigError, match=r"is outside what .*'mitm-cache ca csr'"):
            authority.mint("localhost", now=NOW)

    def test_what_is_sent(self, company: Company, directory: Path, tmp_path: Path) -> None:
        """Leaves come with everything up to the root, and without it."""
        issuing = below(company)
        authority = imported(directory, issuing, company, tmp_path)
        _, *above = x509.load_pem_x509_certificates(authority.mint("quay.io", now=NOW).certificate_chain_pem)
        assert [each.public_bytes(Encoding.PEM) for each in above[:1]] == [authority.export()]
        assert above[1:] == [issuing.certificate]
        assert authority.describe().issuers == ("CN=Issuing,O=Company", "CN=Company Root,O=Company")


@needs_tool("openssl", package="openssl")
@each_verifier
def test_the_documented_way(tmp_path: Path, verify: Verify) -> None:
    """The very lines that `ca csr` prints, run by a company with OpenSSL, give a CA that `ca import` takes."""
    file = tmp_path / "config.toml"
    file.write_text(f'data_dir = "{tmp_path}"\nnames = ["localhost"]\n')
    config = load(file=file, environ={})

    def invoke(*arguments: str) -> str:
        return CliRunner().invoke(command, arguments, obj=lambda: config, catch_exceptions=False).output

    def run(line: str) -> None:
        subprocess.run(["sh", "-ec", line], cwd=tmp_path, check=True, capture_output=True)

    run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout ROOT.key -out ROOT.crt -days 3650 -subj /O=Company "
        "-addext keyUsage=critical,keyCertSign,cRLSign"
    )
    said = invoke("csr", "-o", str(tmp_path / "REQUEST"))
    printf, *sign = re.sub(r"\\\n", "", said).splitlines()[1:3]
    run(printf)
    run(sign[0])
    imports = next(line for line in said.splitlines() if "ca import" in line)
    arguments = [
        str(tmp_path / word) if word.endswith(".crt") else word for word in shlex.split(imports.partition(" ca ")[2])
    ]
    assert "Nodes that trust its root need nothing" in invoke(*arguments)
    now = datetime.now(UTC)  # OpenSSL's certificates begin when they are signed
    authority = CertificateAuthority.ensure(config.ca_dir, permitted=config.permitted_names(), now=now)
    assert verify(tmp_path / "ROOT.crt", authority.mint("localhost", now=now), tmp_path) == ""
    assert not (config.ca_dir / "request.key").exists()


class TestRequest:
    def test_extensions(self, directory: Path) -> None:
        """It asks for what a root of ours has: constraints, path length 0, key usage, server authentication."""
        made = CertificateAuthority.create(directory.parent / "own", permitted=PERMITTED, now=NOW)
        own = x509.load_pem_x509_certificate(made.export())
        asked = x509.load_pem_x509_csr(request(directory, permitted=PERMITTED))
        for kind in (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.NameConstraints):
            one, other = (each.extensions.get_extension_for_class(kind) for each in (asked, own))
            assert (one.value, one.critical) == (other.value, other.critical)

    def test_again(self, directory: Path) -> None:
        """Asking again, for more names, uses the same key: an answer to the first request is good still."""
        assert public_of(directory) == public_of(directory, (*PERMITTED, "ghcr.io"))
        assert (directory / "request.key").stat().st_mode & 0o777 == 0o600


ANY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
SIGNS_TOO = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
DNS_ONLY = x509.NameConstraints([x509.DNSName(name) for name in PERMITTED], None)
EVERY_NAME = x509.NameConstraints([x509.DNSName(""), *(NAMES.permitted_subtrees or ())], NAMES.excluded_subtrees)
CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "no CA": ({"basic": x509.BasicConstraints(False, None)}, "is not a CA's certificate"),
    "path length open": ({"basic": x509.BasicConstraints(True, None)}, r"path length None\): it must be 0"),
    "path length 1": ({"basic": x509.BasicConstraints(True, 1)}, r"path length 1\): it must be 0"),
    "key usage": ({"usage": SIGNS_TOO}, "another key usage"),
    "no key usage": ({"usage": None}, "another key usage"),
    "purposes": ({"purposes": ANY}, "for TLS servers and nothing else"),
    "no purposes": ({"purposes": None}, "for TLS servers and nothing else"),
    "no constraints": ({"names": None}, "is not name-constrained"),
    "constraints that may be ignored": ({"critical": False}, "is not name-constrained, critically"),
    "addresses open": ({"names": DNS_ONLY}, "all e-mail names, all URI names, all IPv4 addresses, all IPv6 addresses"),
    "every name": ({"names": EVERY_NAME}, "leave open what the request closes: ''"),
    "a registry missing": (
        {"names": Constraints.parse(["quay.io"]).extension()},
        "may not sign for localhost, which is configured",
    ),
    "ended": ({"end": NOW - timedelta(days=1)}, "is valid from"),
}


class TestRefused:
    @pytest.mark.parametrize(("changes", "message"), CHANGES.values(), ids=CHANGES.keys())
    def test_certificate(
        self, company: Company, directory: Path, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        """What a root of ours would not say is refused by what is wrong, and nothing is taken."""
        own = write(tmp_path / "own.crt", company.sign(public_of(directory), **changes), company.certificate)
        with pytest.raises(ConfigError, match=message):
            take(directory, [own], permitted=PERMITTED, now=NOW)
        assert not (directory / "ca.key").exists()
        assert (directory / "request.key").exists()

    def test_chain(self, company: Company, directory: Path, tmp_path: Path) -> None:
        """A chain that misses a link names the one that is missing; the key must be the certificate's."""
        issuing = below(company)
        own = write(tmp_path / "own.crt", issuing.sign(public_of(directory)))
        root = write(tmp_path / "root.crt", company.certificate)
        with pytest.raises(ConfigError, match=r"not complete: the certificate of .*Issuing"):
            take(directory, [own, root], permitted=PERMITTED, now=NOW)
        with pytest.raises(ConfigError, match=r"none of the certificates in .* belongs to the key"):
            take(directory, [root], permitted=PERMITTED, now=NOW)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"basic": x509.BasicConstraints(True, 0)}, "allows for 0 CAs below it"),
            ({"basic": x509.BasicConstraints(False, None)}, "is not a CA's certificate itself"),
            ({"usage": certificates.key_usage(leaf=True)}, "has no keyCertSign"),
            ({"purposes": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])}, "is not for TLS servers"),
            ({"names": Constraints.parse(["quay.io"]).extension()}, "shuts out localhost"),
            ({"end": NOW - timedelta(days=1)}, "Issuing.* is valid from"),
        ],
        ids=["path length", "no CA", "key usage", "purposes", "constraints", "ended"],
    )
    def test_issuer(
        self, company: Company, directory: Path, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        """What stands above must be allowed to: no client would take the chain."""
        key = ec.generate_private_key(ec.SECP256R1())
        base: dict[str, object] = {"basic": x509.BasicConstraints(True, 1), "purposes": None, "names": None}
        certificate = company.sign(key.public_key(), **{**base, "subject": "CN=Issuing", **changes})
        own = Company(key, certificate).sign(public_of(directory))
        chain = write(tmp_path / "all.crt", company.certificate, own, certificate)
        with pytest.raises(ConfigError, match=message):
            take(directory, [chain], permitted=PERMITTED, now=NOW)

    def test_no_request(self, company: Company, directory: Path, tmp_path: Path) -> None:
        """Without a request and without a key the error names both ways."""
        with pytest.raises(ConfigError, match=r"'mitm-cache ca csr' .* or give --key"):
            take(directory, [write(tmp_path / "root.crt", company.certificate)], permitted=PERMITTED, now=NOW)


KEYS: dict[str, Callable[[], Key]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


class TestForeignKey:
    @each_verifier
    @pytest.mark.parametrize("make", KEYS.values(), ids=KEYS.keys())
    def test_taken(
        self, company: Company, directory: Path, tmp_path: Path, make: Callable[[], Key], verify: Verify
    ) -> None:
        """A key that was made elsewhere is taken with its certificate, and kept as secret as one of ours."""
        key = make()
        own = write(tmp_path / "own.crt", company.sign(key.public_key()), company.certificate)
        file = write_key(tmp_path / "own.key", key)
        take(directory, [own], key_path=file, permitted=PERMITTED, now=NOW)
        authority = CertificateAuthority.ensure(directory, permitted=PERMITTED, now=NOW)
        root = write(tmp_path / "root.crt", company.certificate)
        assert verify(root, authority.mint("localhost", now=NOW), tmp_path) == ""
        assert authority.key_path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "make",
        [lambda: rsa.generate_private_key(65537, 1024), lambda: ec.generate_private_key(ec.SECP192R1())],  # noqa: S505 - what is refused
        ids=["RSA 1024", "P-192"],
    )
    def test_short(self, company: Company, directory: Path, tmp_path: Path, make: Callable[[], Key]) -> None:
        """A key that clients would not take is refused, with what is allowed."""
        key = make()
        file = write_key(tmp_path / "own.key", key)
        with pytest.raises(ConfigError, match="allowed are RSA from 2048 bits, P-256, P-384 and P-521"):
            take(directory, [file], key_path=file, permitted=PERMITTED, now=NOW)


def test_beside_a_ca(company: Company, directory: Path, tmp_path: Path) -> None:
    """Where there is a CA, the imported one is the next of a rotation: it waits for the finish, and can be undone."""
    before = CertificateAuthority.create(directory, permitted=PERMITTED, now=NOW)
    authority = imported(directory, company, company, tmp_path)
    assert authority.certificate_path.name == "next.crt"
    pair = rotation.Pair.load(directory)
    assert pair.signer(NOW).fingerprint == before.fingerprint
    finished = rotation.finish(directory, permitted=PERMITTED, now=NOW)
    assert finished.fingerprint == authority.fingerprint
    assert finished.describe().issuers == authority.describe().issuers
    with pytest.raises(ConfigError, match="'mitm-cache ca csr'"):
        finished.check_covers(["ghcr.io"])
