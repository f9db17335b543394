"""TLS with clients: a leaf for each name that is a registry's, and nothing at all for another name."""

import socket
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from mitm_cache.ca import KEY_FILE, LEAF_LIFETIME, LEAF_RENEWAL, CertificateAuthority
from mitm_cache.journal import Event, Journal
from mitm_cache.proxy.head import MAX_HEAD
from mitm_cache.proxy.intercept import Intercept
from tests.needs import needs_tool
from tests.proxy.doors import Doors
from tests.proxy.raw import Raw, dial, request


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with Doors(tmp_path_factory.mktemp("intercept") / "data").opened() as opened:
        yield opened


def _shake(doors: Doors, name: str | None, context: ssl.SSLContext) -> Raw:
    return Raw(doors.address("tls"), tls=context, name=name)


def _leaf(wire: Raw) -> x509.Certificate:
    assert isinstance(wire.socket, ssl.SSLSocket)
    encoded = wire.socket.getpeercert(binary_form=True)
    assert encoded
    return x509.load_der_x509_certificate(encoded)


def _chain(doors: Doors, name: str) -> list[x509.Certificate]:
    """What the cache sends, which ssl tells from Python 3.13 on only."""
    with socket.create_connection(doors.address("tls")) as plain:
        plain.setblocking(True)
        connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), plain)
        connection.set_tlsext_host_name(name.encode())
        connection.set_connect_state()
        connection.do_handshake()
        return connection.get_peer_cert_chain(as_cryptography=True) or []


def _names(leaf: x509.Certificate) -> list[str]:
    return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["docker.io", "registry-1.docker.io", "quay.io"])
def test_a_leaf_for_the_name(doors: Doors, name: str, version: ssl.TLSVersion) -> None:
    """Each name gets a leaf for itself alone, with the CA behind it, that a strict verifier takes."""
    context = ssl.create_default_context(cafile=doors.ca_file)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.minimum_version = context.maximum_version = version
    leaf, issuer = _chain(doors, name)
    assert _names(leaf) == [name]
    assert issuer == x509.load_pem_x509_certificate(doors.ca_file.read_bytes())
    with _shake(doors, name, context) as wire:
        assert _leaf(wire) == leaf
        wire.send(request("/v2/X/tags/list", host=name))
        assert wire.answer().status == 400


def test_the_key_is_its_own(doors: Doors) -> None:
    """The leaf's key is neither the CA's nor another name's."""
    context = ssl.create_default_context(cafile=doors.ca_file)
    with _shake(doors, "docker.io", context) as one, _shake(doors, "quay.io", context) as other:
        keys = [_leaf(one).public_key(), _leaf(other).public_key()]
    ca = load_pem_private_key((doors.ca_file.parent / KEY_FILE).read_bytes(), None)
    assert ca.public_key() not in keys
    assert keys[0] != keys[1]


def test_old_versions_are_refused(doors: Doors) -> None:
    """TLS 1.1 gets no handshake."""
    context = ssl.create_default_context(cafile=doors.ca_file)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        _shake(doors, "docker.io", context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_kept(doors: Doors, version: ssl.TLSVersion) -> None:
    """A client that offers its last session gets a full handshake."""
    context = ssl.create_default_context(cafile=doors.ca_file)
    context.minimum_version = context.maximum_version = version
    with _shake(doors, "docker.io", context) as wire:
        wire.send(request("/v2/X/tags/list", host="docker.io"))
        wire.answer()  # by now TLS 1.3 has brought what it may want to resume by
        assert isinstance(wire.socket, ssl.SSLSocket)
        session = wire.socket.session
    with socket.create_connection(doors.address("tls")) as plain:
        again = context.wrap_socket(plain, server_hostname="docker.io", do_handshake_on_connect=False)
        if session is not None:
            again.session = session
        again.do_handshake()
        assert again.session_reused is False
        again.close()


@pytest.mark.parametrize(
    ("offered", "chosen"), [([], None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["h2"], None)]
)
def test_alpn(doors: Doors, offered: list[str], chosen: str | None) -> None:
    """HTTP/1.1 is chosen where it is offered; a client that offers h2 only is told nothing, and gets HTTP/1.1."""
    context = ssl.create_default_context(cafile=doors.ca_file)
    if offered:
        context.set_alpn_protocols(offered)
    with _shake(doors, "docker.io", context) as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        assert wire.socket.selected_alpn_protocol() == chosen
        wire.send(request("/v2/X/tags/list", host="docker.io"))
        assert wire.answer().status == 400


@pytest.mark.parametrize(
    "name",
    ["evil.example", "x.quay.io", "quay.io.evil.example", "localhost", "a" * 60 + ".example", None],
)
def test_unknown_name(doors: Doors, name: str | None) -> None:
    """No certificate, no answer, the end, one REFUSED line, and no context is kept for what the client made up."""
    kept = dict(doors.intercept._minted)
    before = doors.log.count(status=0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        _shake(doors, name, context)
    [line] = doors.log.wait(before + 1, status=0)[before:]
    assert (line["outcome"], line["listener"], line["client"], line["status"]) == ("REFUSED", "tls", "127.0.0.1", 0)
    assert (name or "no server name") in line["reason"]
    assert doors.intercept._minted == kept


def test_a_client_hello_that_never_ends(doors: Doors) -> None:
    """A ClientHello that promises megabytes is cut off long before."""
    first = b"\x01" + (8 << 20).to_bytes(3) + bytes(16000)
    pieces = [first] + [bytes(16004)] * 400
    taken = 0
    with Raw(doors.address("tls")) as wire:
        try:
            for body in pieces:
                wire.send(b"\x16\x03\x01", len(body).to_bytes(2), body)
                taken += len(body)
        except (ConnectionResetError, BrokenPipeError):
            pass
    # A long one is no mistake yet, and the kernel's buffers take some.
    assert MAX_HEAD < taken < sum(map(len, pieces))


def test_upper_case_and_trailing_dot(doors: Doors) -> None:
    """A name in capitals is the same name, in the handshake as in Host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name in ("QUAY.io", "quay.io."):
        with _shake(doors, name, context) as wire:
            assert _names(_leaf(wire)) == ["quay.io"]
            wire.send(request("/v2/X/tags/list", host="quay.io"))
            assert wire.answer().status == 400, name


@needs_tool("openssl", package="openssl")
def test_renegotiation_is_refused(doors: Doors) -> None:
    """A TLS 1.2 client that asks to negotiate anew is not served a second handshake."""
    host, port = doors.address("tls")
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", "quay.io", "-tls1_2", "-no_ign_eof"]
    done = subprocess.run(command, input=b"R\n", capture_output=True, timeout=30, check=False)
    assert b"no renegotiation" in done.stderr, done.stderr[-500:]


# --- contexts, with a clock ----------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def intercept(tmp_path: Path, clock: Clock) -> Intercept:
    authority = CertificateAuthority.create(tmp_path / "ca", permitted=["quay.io", "ghcr.io"], now=clock())
    events: list[Event] = []
    journal = Journal()
    journal.add(events.append)
    return Intercept(
        authority=authority, names=["quay.io", "ghcr.io"], journal=journal, listeners=lambda _: "tls", clock=clock
    )


def test_one_context_for_each_name(intercept: Intercept) -> None:
    """A context is made once and kept; two names have two."""
    first = intercept.context("quay.io")
    assert isinstance(first, SSL.Context)
    assert intercept.context("quay.io") is first
    assert intercept.context("ghcr.io") is not first
    assert len(intercept._minted) == 2


def test_a_leaf_is_minted_anew_in_time(intercept: Intercept, clock: Clock) -> None:
    """The context is another one once its leaf is due, days before the leaf ends."""
    first = intercept.context("quay.io")
    clock.time += LEAF_RENEWAL - timedelta(seconds=1)
    assert intercept.context("quay.io") is first
    clock.time += timedelta(seconds=1)
    second = intercept.context("quay.io")
    assert second is not first
    assert (LEAF_LIFETIME - LEAF_RENEWAL).days > 1
    assert intercept.context("quay.io") is second
    assert len(intercept._minted) == 1


def test_a_clock_that_was_ahead(intercept: Intercept, clock: Clock) -> None:
    """A leaf that was made in what is the future now is not shown: no node would take it for days."""
    clock.time += timedelta(days=30)
    ahead = intercept.context("quay.io")
    clock.time -= timedelta(days=30)
    right = intercept.context("quay.io")
    assert right is not ahead
    assert intercept.context("quay.io") is right


def test_clients_get_the_new_leaf(tmp_path: Path) -> None:
    """A connection after the renewal has a new certificate; one from before goes on."""
    start = datetime.now(UTC)
    clock = Clock()
    clock.time = start
    with Doors(tmp_path / "data", clock=clock).opened() as doors:
        context = ssl.create_default_context(cafile=doors.ca_file)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with _shake(doors, "quay.io", context) as old:
            before = _leaf(old)
            clock.time = start + LEAF_RENEWAL
            with _shake(doors, "quay.io", context) as new:
                after = _leaf(new)
            old.send(request("/v2/X/tags/list", host="quay.io"))
            assert old.answer().status == 400
    assert before.serial_number != after.serial_number
    assert before.fingerprint(SHA256()) != after.fingerprint(SHA256())
    assert after.not_valid_after_utc > before.not_valid_after_utc


def test_a_ca_that_has_ended_fails_closed(tmp_path: Path) -> None:
    """A leaf that cannot be minted is no certificate and no answer, and the service goes on."""
    clock = Clock()
    clock.time = datetime.now(UTC) + timedelta(days=6 * 365)
    with Doors(tmp_path / "data", clock=clock).opened() as doors:
        context = ssl.create_default_context(cafile=doors.ca_file)
        for _ in range(2):
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                _shake(doors, "quay.io", context)
        clock.time = datetime.now(UTC)
        with dial(doors, "tls", name="quay.io") as wire:
            wire.send(request("/v2/X/tags/list", host="quay.io"))
            assert wire.answer().status == 400
        assert doors.upstream.asked == []
