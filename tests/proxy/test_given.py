"""A certificate from elsewhere for the names of the local registry: who is shown it, and how it is replaced."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from mitm_cache.cli.reload import TIMEOUT
from mitm_cache.workers import control
from tests.fakes.registry import LyingUpstream
from tests.serving import Process, process

NAME, OTHER = "registry.corp.example", "other.corp.example"


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        yield upstream


@pytest.fixture
def corporate() -> trustme.CA:
    """A CA that is not the cache's."""
    return trustme.CA()


def put(folder: Path, leaf: trustme.LeafCert) -> str:
    """The files, and the configuration that names them."""
    chain, key = folder / "local.crt", folder / "local.key"
    chain.write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    key.touch(0o600)
    key.write_bytes(leaf.private_key_pem.bytes())
    return f'[local]\nnames = ["{NAME}", "{OTHER}"]\ncert = "{chain}"\nkey = "{key}"\n'


def shown(served: Process, name: str, roots: bytes) -> x509.Certificate:
    """The server's certificate, verified for the name."""
    context = ssl.create_default_context(cadata=roots.decode())
    plain = socket.create_connection(served.address("tls"), 30)
    with context.wrap_socket(plain, server_hostname=name) as wire:
        encoded = wire.getpeercert(binary_form=True)
    assert encoded is not None
    return x509.load_der_x509_certificate(encoded)


def test_who_is_shown_it(tmp_path: Path, upstream: LyingUpstream, corporate: trustme.CA) -> None:
    """The local names that it covers, and nobody else; the CA has no part in those, and signs for no other of them."""
    roots = corporate.cert_pem.bytes()
    leaf = corporate.create_child_ca().issue_cert(NAME)
    with process(tmp_path / "data", upstream, more=put(tmp_path, leaf)) as served:
        assert shown(served, NAME, roots) == x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
        minted = shown(served, upstream.registry.name, served.ca_file.read_bytes())
        assert minted.issuer == x509.load_pem_x509_certificate(served.ca_file.read_bytes()).subject
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            shown(served, OTHER, roots)
        (line,) = served.log.wait(1, outcome="REFUSED")
        assert f"'{OTHER}' is outside what" in line["reason"]
        (word,) = [line for line in served.said if "local.cert" in line]
        assert f"is not for {OTHER}" in word


def test_a_reload_reads_it_again(tmp_path: Path, upstream: LyingUpstream, corporate: trustme.CA) -> None:
    """Another certificate in its place counts from the reload on; one that cannot be used changes nothing."""
    roots = corporate.cert_pem.bytes()
    first, second = corporate.issue_cert(NAME, OTHER), corporate.issue_cert(NAME, OTHER)

    def reload(served: Process) -> dict[str, object]:
        return dict(control.ask(served.data / "run", "reload", seconds=TIMEOUT))

    with process(tmp_path / "data", upstream, more=put(tmp_path, first)) as served:
        before = shown(served, NAME, roots)
        put(tmp_path, second)
        assert shown(served, NAME, roots) == before
        assert reload(served)["ok"] is True
        after = shown(served, NAME, roots)
        assert after == x509.load_pem_x509_certificate(second.cert_chain_pems[0].bytes()) != before
        (tmp_path / "local.key").write_bytes(first.private_key_pem.bytes())
        answer = reload(served)
        assert answer["ok"] is False
        assert "do not belong together" in str(answer["message"])
        assert shown(served, OTHER, roots) == after


def test_localhost_is_for_clear_text(tmp_path: Path, upstream: LyingUpstream) -> None:
    """Docker and skopeo try TLS first: they get no certificate, and nobody reads of a refusal each time."""
    with process(tmp_path / "data", upstream, more='[local]\nnames = ["localhost"]\n') as served:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            shown(served, "localhost", served.ca_file.read_bytes())
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            shown(served, "evil.example", served.ca_file.read_bytes())
        served.log.wait(1, outcome="REFUSED")
        assert [line["reason"] for line in served.log.select()] == [
            "server name 'evil.example' is not a registry this cache serves"
        ]
