"""The local CA and its leaves, judged by real verifiers: OpenSSL's command, Python's handshake, Go's in skopeo."""

import dataclasses
import multiprocessing
import os
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mitm_cache.ca import CA_LIFETIME, LEAF_LIFETIME, CertificateAuthority, Leaf
from mitm_cache.errors import ConfigError
from tests.ca.verifiers import certificate_of, served
from tests.needs import find_tool, needs_tool

NOW = datetime.now(UTC).replace(microsecond=0)
PERMITTED = ("quay.io", "registry-1.docker.io", "localhost")

needs_openssl = needs_tool("openssl", package="openssl")


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", permitted=PERMITTED, now=NOW)


def forge(
    authority: CertificateAuthority,
    *names: x509.GeneralName,
    subject: str = "O=thief",
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    is_ca: bool = False,
) -> Leaf:
    """What someone with the CA's key could sign, past every check of ours."""
    ca_key = load_pem_private_key(authority.key_path.read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    ca = x509.load_pem_x509_certificate(authority.export())
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(subject))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=7))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(ca_key, SHA256())
    return Leaf(
        name="forged",
        certificate_chain_pem=certificate.public_bytes(Encoding.PEM) + authority.export(),
        private_key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        serial=certificate.serial_number,
        not_after=certificate.not_valid_after_utc,
        renew_at=NOW,
    )


LOCALHOST = x509.DNSName("localhost")
FORGED: dict[str, tuple[x509.GeneralName, ...]] = {
    "foreign DNS name": (LOCALHOST, x509.DNSName("evil.example")),
    "parent of a permitted name": (LOCALHOST, x509.DNSName("docker.io")),
    "IPv4 address": (LOCALHOST, x509.IPAddress(ip_address("127.0.0.1"))),
    "IPv6 address": (LOCALHOST, x509.IPAddress(ip_address("::1"))),
    "e-mail": (LOCALHOST, x509.RFC822Name("a@evil.example")),
    "e-mail at the name that shuts out e-mail": (LOCALHOST, x509.RFC822Name("a@invalid")),
    "e-mail below that name": (LOCALHOST, x509.RFC822Name("a@mail.invalid")),
    "e-mail at a permitted name": (LOCALHOST, x509.RFC822Name("a@quay.io")),
    "URI": (LOCALHOST, x509.UniformResourceIdentifier("https://evil.example/")),
    "URI at the name that shuts out URIs": (LOCALHOST, x509.UniformResourceIdentifier("https://invalid/")),
    "URI below that name": (LOCALHOST, x509.UniformResourceIdentifier("https://www.invalid/")),
    "URI at a permitted name": (LOCALHOST, x509.UniformResourceIdentifier("spiffe://quay.io/node")),
    "URI without a host": (LOCALHOST, x509.UniformResourceIdentifier("urn:isbn:1")),
}
forged_names = pytest.mark.parametrize("names", FORGED.values(), ids=FORGED.keys())


def openssl_verify(authority: CertificateAuthority, leaf: Leaf, *options: str) -> "subprocess.CompletedProcess[str]":
    file = authority.directory / "leaf.pem"
    file.write_bytes(leaf.certificate_chain_pem)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", *options]
    return subprocess.run(
        [*command, "-CAfile", str(authority.certificate_path), str(file)], capture_output=True, text=True, check=False
    )


def shake_hands(authority: CertificateAuthority, leaf: Leaf, name: str, host: str = "127.0.0.1") -> None:
    context = ssl.create_default_context(cafile=authority.certificate_path)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with (
        served(leaf, authority.directory, host) as address,
        socket.create_connection(address, timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=name),
    ):
        pass


def skopeo(authority: CertificateAuthority, leaf: Leaf) -> str:
    """What skopeo, a program in Go, says of a registry at localhost that shows `leaf`."""
    trust = {"SSL_CERT_FILE": str(authority.certificate_path), "SSL_CERT_DIR": "/nonexistent", "NO_PROXY": "*"}
    with served(leaf, authority.directory) as (_, port):
        answer = subprocess.run(
            ["skopeo", "inspect", f"docker://localhost:{port}/x"],
            env={**os.environ, **trust},
            capture_output=True,
            text=True,
            check=False,
        )
    return answer.stderr


class TestVerifiers:
    @needs_openssl
    @pytest.mark.parametrize("name", ["quay.io", "cdn01.quay.io", "registry-1.docker.io"])
    def test_openssl(self, authority: CertificateAuthority, name: str) -> None:
        """OpenSSL accepts a leaf for a permitted name, and for a name below one, under its strict rules."""
        answer = openssl_verify(authority, authority.mint(name, now=NOW), "-verify_hostname", name)
        assert answer.returncode == 0, answer.stderr

    @pytest.mark.parametrize("name", ["quay.io", "cdn01.quay.io", "registry-1.docker.io"])
    def test_python(self, authority: CertificateAuthority, name: str) -> None:
        """A TLS client that verifies strictly, as Python 3.13 does by default, accepts the leaf for its name."""
        shake_hands(authority, authority.mint(name, now=NOW), name)

    def test_other_name(self, authority: CertificateAuthority) -> None:
        """A leaf stands for its own name only, not for the others that the CA may sign for."""
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            shake_hands(authority, authority.mint("quay.io", now=NOW), "registry-1.docker.io")

    @needs_tool("skopeo", package="skopeo")
    def test_go(self, authority: CertificateAuthority) -> None:
        """A container client in Go gets past the handshake: it complains of the 404 that follows it."""
        said = skopeo(authority, authority.mint("localhost", now=NOW))
        assert "x509" not in said
        assert "404" in said

    @pytest.mark.parametrize(
        ("permitted", "address", "other"),
        [("127.0.0.1", "127.0.0.1", "127.0.0.2"), ("::1", "::1", "127.0.0.1"), ("127.0.0.1", "127.0.0.1", "::1")],
        ids=["IPv4", "IPv6 only", "IPv4 only"],
    )
    def test_addresses(self, tmp_path: Path, permitted: str, address: str, other: str) -> None:
        """A permitted address gets a leaf that verifies; any other address stays refused, in either family."""
        authority = CertificateAuthority.create(tmp_path, permitted=("quay.io", permitted), now=NOW)
        host = "127.0.0.1"
        shake_hands(authority, authority.mint(address, now=NOW), address, host)
        with pytest.raises(ssl.SSLCertVerificationError, match="subtree violation"):
            shake_hands(authority, forge(authority, x509.IPAddress(ip_address(other))), other, host)


class TestStolenKey:
    """The clients refuse whatever else is signed with the CA's key."""

    @needs_openssl
    @forged_names
    def test_openssl(self, authority: CertificateAuthority, names: tuple[x509.GeneralName, ...]) -> None:
        """OpenSSL finds the name outside the constraints, even beside a permitted one."""
        answer = openssl_verify(authority, forge(authority, *names))
        assert answer.returncode != 0
        assert "subtree violation" in answer.stderr or "unsupported or invalid name syntax" in answer.stderr

    @forged_names
    def test_python(self, authority: CertificateAuthority, names: tuple[x509.GeneralName, ...]) -> None:
        """A TLS client refuses the handshake although the certificate holds the right name too."""
        with pytest.raises(ssl.SSLCertVerificationError, match=r"subtree violation|name syntax"):
            shake_hands(authority, forge(authority, *names), "localhost")

    @needs_tool("skopeo", package="skopeo")
    @forged_names
    def test_go(self, authority: CertificateAuthority, names: tuple[x509.GeneralName, ...]) -> None:
        """Go refuses it as an x509 error."""
        assert "x509" in skopeo(authority, forge(authority, *names))

    @needs_tool("certtool", package="gnutls-bin")
    @pytest.mark.may_skip("GnuTLS is in few clients, and its tool on few machines")
    @forged_names
    def test_gnutls(self, authority: CertificateAuthority, names: tuple[x509.GeneralName, ...]) -> None:
        """GnuTLS refuses it, and takes what we mint."""
        certtool = find_tool("certtool")
        assert certtool
        for leaf, accepted in ((authority.mint("localhost", now=NOW), True), (forge(authority, *names), False)):
            verify = [certtool, "--verify", "--load-ca-certificate", str(authority.certificate_path)]
            answer = subprocess.run(
                verify, input=certificate_of(leaf).public_bytes(Encoding.PEM), capture_output=True, check=False
            )
            assert (answer.returncode == 0) is accepted, answer.stdout

    @needs_openssl
    def test_common_name(self, authority: CertificateAuthority) -> None:
        """A foreign name hidden in the common name, without any alternative name, is refused too."""
        assert openssl_verify(authority, forge(authority, subject="CN=evil.example")).returncode != 0

    @needs_openssl
    @pytest.mark.parametrize(
        ("usage", "purpose"),
        [(ExtendedKeyUsageOID.CLIENT_AUTH, "sslclient"), (ExtendedKeyUsageOID.EMAIL_PROTECTION, "smimesign")],
        ids=["client", "e-mail"],
    )
    def test_other_use(self, authority: CertificateAuthority, usage: x509.ObjectIdentifier, purpose: str) -> None:
        """The CA is good for TLS servers only: a client's or a mail certificate is refused."""
        answer = openssl_verify(authority, forge(authority, LOCALHOST, usage=usage), "-purpose", purpose)
        assert answer.returncode != 0

    @needs_openssl
    def test_further_ca(self, authority: CertificateAuthority, tmp_path: Path) -> None:
        """No other CA can stand under this one: path length 0."""
        inner = forge(authority, is_ca=True, subject="CN=inner CA")
        (tmp_path / "inner").mkdir()
        inner_key = tmp_path / "inner/ca.key"
        inner_key.write_bytes(inner.private_key_pem)
        stand_in = dataclasses.replace(authority, directory=tmp_path / "inner", _certificate=certificate_of(inner))
        leaf = forge(stand_in, LOCALHOST)
        intermediate = tmp_path / "inner.pem"
        intermediate.write_bytes(inner.certificate_chain_pem)
        answer = openssl_verify(authority, leaf, "-untrusted", str(intermediate))
        assert "path length constraint exceeded" in answer.stderr


class TestCertificates:
    def test_ca_extensions(self, authority: CertificateAuthority) -> None:
        """The CA is an EC P-256 root for five years, path length 0, that signs certificates and lists only."""
        ca = x509.load_pem_x509_certificate(authority.export("pem"))
        key = ca.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        assert ca.not_valid_before_utc == NOW - timedelta(days=1)
        assert ca.not_valid_after_utc == NOW + CA_LIFETIME
        basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
        assert basic.critical
        assert basic.value == x509.BasicConstraints(ca=True, path_length=0)
        usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value == x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        assert ca.extensions.get_extension_for_class(x509.NameConstraints).critical
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        common_name = ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        assert common_name == f"mitm-cache CA {identifier.hex()[:8]}"

    def test_leaf_extensions(self, authority: CertificateAuthority) -> None:
        """A leaf names exactly its host, serves TLS only, and comes with the CA behind it."""
        minted = authority.mint("quay.io", now=NOW)
        leaf, ca = x509.load_pem_x509_certificates(minted.certificate_chain_pem)
        assert ca.public_bytes(Encoding.DER) == authority.export("der")
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.DNSName("quay.io")]
        basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
        assert basic.critical
        assert not basic.value.ca
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.digital_signature
        assert not usage.value.key_cert_sign
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
        own = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        assert own == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert leaf.serial_number == minted.serial

    def test_keys_are_separate(self, authority: CertificateAuthority) -> None:
        """Every leaf has a key and a serial number of its own, and none has the CA's key."""
        leaves = [authority.mint("quay.io", now=NOW) for _ in range(3)]
        assert len({authority.key_path.read_bytes(), *(leaf.private_key_pem for leaf in leaves)}) == 4
        assert len({leaf.serial for leaf in leaves}) == 3

    def test_keys_are_not_shown(self, authority: CertificateAuthority) -> None:
        """Neither a CA nor a leaf shows its key where objects are printed."""
        assert "KEY" not in repr(authority.mint("quay.io", now=NOW)) + repr(authority)

    @pytest.mark.parametrize("name", ["QUAY.io", "quay.io."], ids=["upper case", "trailing dot"])
    def test_name_is_normalised(self, authority: CertificateAuthority, name: str) -> None:
        """A leaf's name is in lower case without a final dot, as clients compare it."""
        leaf = certificate_of(authority.mint(name, now=NOW))
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.DNSName("quay.io")]

    def test_long_name(self, authority: CertificateAuthority) -> None:
        """A host name longer than a common name may be (64) is served."""
        name = ".".join(["a" * 63, "b" * 63, "quay.io"])
        shake_hands(authority, authority.mint(name, now=NOW), name)


class TestTimes:
    def test_leaf(self, authority: CertificateAuthority) -> None:
        """A leaf starts a day back, lives a week and is renewed two days before its end."""
        leaf = authority.mint("quay.io", now=NOW)
        assert certificate_of(leaf).not_valid_before_utc == NOW - timedelta(days=1)
        assert leaf.not_after == NOW + LEAF_LIFETIME
        assert leaf.renew_at == NOW + timedelta(days=5)

    def test_leaf_near_the_end_of_the_ca(self, authority: CertificateAuthority) -> None:
        """A leaf never outlives its CA, and is still not due for renewal at once."""
        end = NOW + CA_LIFETIME
        now = end - timedelta(hours=7)
        leaf = authority.mint("quay.io", now=now)
        assert leaf.not_after == end
        assert leaf.renew_at == now + timedelta(hours=5)

    @pytest.mark.parametrize("now", [NOW + CA_LIFETIME, NOW - timedelta(days=2)], ids=["expired", "not yet valid"])
    def test_ca_out_of_its_time(self, authority: CertificateAuthority, now: datetime) -> None:
        """A CA that is not valid now stops the start, and mints nothing."""
        with pytest.raises(ConfigError, match="ca init --force"):
            CertificateAuthority.ensure(authority.directory, permitted=PERMITTED, now=now)
        with pytest.raises(ConfigError, match="is valid from"):
            authority.mint("quay.io", now=now)


class TestCoverage:
    @pytest.mark.parametrize("name", [*PERMITTED, "cdn.quay.io", "Quay.IO."])
    def test_covered(self, authority: CertificateAuthority, name: str) -> None:
        """Permitted names and names below them are covered."""
        authority.check_covers([name])

    @pytest.mark.parametrize("name", ["ghcr.io", "docker.io", "notquay.io", "io", "10.0.0.1", "::1"])
    def test_outside(self, authority: CertificateAuthority, name: str) -> None:
        """A name outside the constraints is refused by an error that names it, what is permitted and the remedy."""
        with pytest.raises(ConfigError) as caught:
            authority.check_covers(["quay.io", name])
        assert repr(name) in caught.value.message
        assert "mitm-cache ca init --force" in caught.value.message
        assert "quay.io, registry-1.docker.io, localhost" in caught.value.message
        with pytest.raises(ConfigError, match="is outside what"):
            authority.mint(name, now=NOW)

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "*.quay.io",
            ".quay.io",
            "quay.io:443",
            "https://quay.io",
            "10.0.0.0/8",
            "10.0.0.300",
            "a..b",
            "-a.b",
            "ü.de",
            "a" * 64,
            ".".join(["a" * 50] * 6),
            "quay.io\n",
            "fe80::1%eth0",
        ],
    )
    def test_no_name(self, tmp_path: Path, name: str) -> None:
        """What is neither a DNS name nor an address is refused with what is allowed, and nothing is written."""
        with pytest.raises(ConfigError, match="allowed are an address, or a DNS name"):
            CertificateAuthority.create(tmp_path / "ca", permitted=["quay.io", name], now=NOW)
        assert not (tmp_path / "ca").exists()

    @pytest.mark.parametrize("permitted", [[], ["10.0.0.1"]], ids=["nothing", "addresses only"])
    def test_no_dns_name(self, tmp_path: Path, permitted: list[str]) -> None:
        """A CA without any permitted DNS name would be good for every DNS name: refused."""
        with pytest.raises(ConfigError, match="at least one DNS name"):
            CertificateAuthority.create(tmp_path, permitted=permitted, now=NOW)

    def test_survives_the_disk(self, tmp_path: Path) -> None:
        """A loaded CA covers what the made one covers."""
        made = CertificateAuthority.create(tmp_path, permitted=["quay.io", "10.0.0.1", "fd00::1"], now=NOW)
        loaded = CertificateAuthority.load(tmp_path)
        assert loaded.constraints == made.constraints
        assert loaded.describe() == made.describe()


class TestFiles:
    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177], ids=oct)
    def test_modes(self, tmp_path: Path, umask: int) -> None:
        """Whatever the umask, the key is 0600, the certificate 0644, and a directory we make 0700."""
        directory = tmp_path / "ca"
        before = os.umask(umask)
        try:
            CertificateAuthority.create(directory, permitted=PERMITTED, now=NOW)
        finally:
            os.umask(before)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.iterdir())}
        assert modes == {"ca": 0o700, "ca.key": 0o600, "ca.crt": 0o644, "ca.lock": 0o600}

    def test_directory_of_others(self, tmp_path: Path) -> None:
        """A directory that was there keeps its mode."""
        tmp_path.chmod(0o755)
        CertificateAuthority.create(tmp_path, permitted=PERMITTED, now=NOW)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622], ids=oct)
    def test_exposed_key(self, authority: CertificateAuthority, mode: int) -> None:
        """A key that others may read or write is not used; the error says what to do."""
        authority.key_path.chmod(mode)
        with pytest.raises(ConfigError, match=f"chmod 600 {authority.key_path}"):
            CertificateAuthority.load(authority.directory)

    def test_create_keeps_what_is_there(self, authority: CertificateAuthority) -> None:
        """A CA is never replaced without being told to."""
        before = authority.key_path.read_bytes()
        with pytest.raises(ConfigError, match=r"ca\.key exists; .*--force"):
            CertificateAuthority.create(authority.directory, permitted=PERMITTED, now=NOW)
        assert authority.key_path.read_bytes() == before

    def test_force_sets_aside(self, authority: CertificateAuthority) -> None:
        """With force the old CA stays beside the new one, its key as secret as before, under names with the time."""
        now = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
        old_key = authority.key_path.read_bytes()
        new = CertificateAuthority.create(authority.directory, permitted=["ghcr.io"], now=now, force=True)
        backup = authority.directory / "ca.key.20300102T030405Z"
        assert backup.read_bytes() == old_key
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
        assert (authority.directory / "ca.crt.20300102T030405Z").read_bytes() == authority.export()
        assert CertificateAuthority.load(authority.directory).fingerprint == new.fingerprint != authority.fingerprint
        with pytest.raises(ConfigError, match="replaced a moment ago"):
            CertificateAuthority.create(authority.directory, permitted=["ghcr.io"], now=now, force=True)
        assert CertificateAuthority.load(authority.directory).fingerprint == new.fingerprint

    def test_broken_files(self, authority: CertificateAuthority, tmp_path: Path) -> None:
        """Missing, foreign, mixed-up and unconstrained files are each told by what is wrong."""
        directory = authority.directory
        key, certificate = authority.key_path.read_bytes(), authority.export()
        other = CertificateAuthority.create(tmp_path / "other", permitted=PERMITTED, now=NOW)
        rsa_key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - what is refused
        rsa_pem = rsa_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        unconstrained = other.mint("quay.io", now=NOW)
        table: list[tuple[bytes | None, bytes | None, str]] = [
            (None, certificate, r"ca\.key is missing"),
            (key, None, r"ca\.crt is missing"),
            (b"nonsense", certificate, r"ca\.key is not an unencrypted private key"),
            (rsa_pem, certificate, r"ca\.key is of a kind or size that is not taken: allowed are RSA from 2048 bits"),
            (key, b"nonsense", r"ca\.crt is not a certificate"),
            (other.key_path.read_bytes(), certificate, "do not belong together"),
            (unconstrained.private_key_pem, unconstrained.certificate_chain_pem, "is not name-constrained"),
        ]
        for key_pem, certificate_pem, message in table:
            for path, content in ((authority.key_path, key_pem), (authority.certificate_path, certificate_pem)):
                path.unlink(missing_ok=True)
                if content is not None:
                    path.write_bytes(content)
                    path.chmod(0o600)
            with pytest.raises(ConfigError, match=message):
                CertificateAuthority.load(directory)
            with pytest.raises(ConfigError, match=message):
                CertificateAuthority.ensure(directory, permitted=PERMITTED, now=NOW)

    def test_directory_cannot_be_made(self, tmp_path: Path) -> None:
        """A directory that cannot be written is an error of the configuration that names it."""
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=str(tmp_path / "file")):
            CertificateAuthority.ensure(tmp_path / "file" / "ca", permitted=PERMITTED, now=NOW)

    def test_left_over_of_a_crash(self, authority: CertificateAuthority) -> None:
        """What a creation that was cut short left behind is in nobody's way."""
        authority.key_path.rename(authority.directory / "ca.key.new")
        authority.certificate_path.unlink()
        CertificateAuthority.ensure(authority.directory, permitted=PERMITTED, now=NOW)
        assert sorted(path.name for path in authority.directory.iterdir()) == ["ca.crt", "ca.key", "ca.lock"]


class TestEnsure:
    def test_second_start(self, tmp_path: Path) -> None:
        """The first start makes the CA, the next ones use it."""
        first = CertificateAuthority.ensure(tmp_path / "a/b", permitted=PERMITTED, now=NOW)
        second = CertificateAuthority.ensure(tmp_path / "a/b", permitted=PERMITTED[:1], now=NOW)
        assert first.fingerprint == second.fingerprint

    def test_new_registry(self, authority: CertificateAuthority) -> None:
        """A registry configured after the CA was made stops the start."""
        with pytest.raises(ConfigError, match=r"'ghcr\.io' is outside"):
            CertificateAuthority.ensure(authority.directory, permitted=[*PERMITTED, "ghcr.io"], now=NOW)

    def test_many_processes(self, tmp_path: Path) -> None:
        """Processes that start at once on an empty directory all get the same, whole CA."""
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(6)
        results: multiprocessing.Queue[str] = context.Queue()
        processes = [
            context.Process(target=ensure_at_once, args=(tmp_path / "ca", barrier.wait, results.put)) for _ in range(6)
        ]
        for process in processes:
            process.start()
        fingerprints = {results.get(timeout=60) for _ in processes}
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert fingerprints == {CertificateAuthority.load(tmp_path / "ca").fingerprint}


def ensure_at_once(directory: Path, wait: Callable[[], object], put: Callable[[str], None]) -> None:
    wait()
    authority = CertificateAuthority.ensure(directory, permitted=PERMITTED, now=NOW)
    authority.mint("quay.io", now=NOW)
    put(authority.fingerprint)


class TestShown:
    @needs_openssl
    def test_fingerprint_and_forms(self, authority: CertificateAuthority, tmp_path: Path) -> None:
        """OpenSSL reads both forms and prints the very fingerprint that we print."""
        for form in ("pem", "der"):
            file = tmp_path / form
            file.write_bytes(authority.export("der" if form == "der" else "pem"))
            said = subprocess.run(
                ["openssl", "x509", "-in", file, "-inform", form, "-noout", "-fingerprint", "-sha256"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert said.stdout.strip().partition("=")[2] == authority.fingerprint

    def test_describe(self, tmp_path: Path) -> None:
        """A description tells what is permitted and what is shut out."""
        described = CertificateAuthority.create(tmp_path, permitted=["quay.io", "10.0.0.1"], now=NOW).describe()
        assert described.path == tmp_path / "ca.crt"
        assert described.permitted == ("quay.io", "10.0.0.1")
        assert described.excluded == ("all IPv6 addresses", "all e-mail names", "all URI names")
        assert described.subject.startswith("CN=mitm-cache CA ")
        assert described.not_after == NOW + CA_LIFETIME
