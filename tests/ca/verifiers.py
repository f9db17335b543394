"""Real verifiers, asked whether a node that trusts certain certificates believes a leaf: OpenSSL's command, Python's
handshake under strict rules, Go's in skopeo, GnuTLS's certtool."""

import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mitm_cache.ca import Leaf, certificates
from tests.needs import find_tool, needs_tool

type Verify = Callable[[Path, Leaf, Path], str]
"""The file of what is trusted, the leaf, a directory to write in: "" if it is believed, else what is said."""


def certificate_of(leaf: Leaf) -> x509.Certificate:
    return x509.load_pem_x509_certificates(leaf.certificate_chain_pem)[0]


@contextmanager
def served(leaf: Leaf, directory: Path, host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """A TLS server on loopback that shows `leaf` and answers 404 to whatever is asked."""
    chain, key = directory / "served.pem", directory / "served.key"
    chain.write_bytes(leaf.certificate_chain_pem)
    key.write_bytes(leaf.private_key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)

    def answer() -> None:
        while True:
            connection, _ = listener.accept()
            try:
                with connection, context.wrap_socket(connection, server_side=True) as stream:
                    if not stream.recv(65536):
                        continue
                    stream.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            except OSError:
                pass  # the client refused the certificate

    def run() -> None:
        try:
            answer()
        except OSError:
            pass  # the listener was shut down

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[:2]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()


def by_openssl(trusted: Path, leaf: Leaf, directory: Path) -> str:
    """The chain is given as a server sends it; a root is looked for in what is trusted only."""
    chain = directory / "chain.pem"
    chain.write_bytes(leaf.certificate_chain_pem)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-no-CAstore"]
    command += ["-verify_hostname", leaf.name, "-CAfile", str(trusted), "-untrusted", str(chain), str(chain)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def by_python(trusted: Path, leaf: Leaf, directory: Path) -> str:
    """A handshake on loopback."""
    context = ssl.create_default_context(cafile=trusted)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with (
            served(leaf, directory) as address,
            socket.create_connection(address, timeout=10) as connection,
            context.wrap_socket(connection, server_hostname=leaf.name),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return str(error)


def by_go(trusted: Path, leaf: Leaf, directory: Path) -> str:
    """skopeo, which complains of the 404 once it believes the certificate; leaves for localhost only."""
    assert leaf.name == "localhost"
    trust = {"SSL_CERT_FILE": str(trusted), "SSL_CERT_DIR": "/nonexistent", "NO_PROXY": "*"}
    with served(leaf, directory) as (_, port):
        command = ["skopeo", "inspect", f"docker://localhost:{port}/x"]
        said = subprocess.run(command, env={**os.environ, **trust}, capture_output=True, text=True, check=False).stderr
    assert ("x509" in said) != bool(re.search(r"\b404\b", said)), said  # a port may hold these digits too
    return said if "x509" in said else ""


def by_gnutls(trusted: Path, leaf: Leaf, directory: Path) -> str:
    """certtool, given the leaf and the intermediates as a server sends them."""
    certtool = find_tool("certtool")
    assert certtool
    chain = x509.load_pem_x509_certificates(leaf.certificate_chain_pem)
    sent = b"".join(each.public_bytes(Encoding.PEM) for each in chain if each.subject != each.issuer)
    done = subprocess.run(
        [certtool, "--verify", "--load-ca-certificate", str(trusted)], input=sent, capture_output=True, check=False
    )
    return done.stdout.decode() if done.returncode else ""


each_verifier = pytest.mark.parametrize(
    "verify",
    [
        pytest.param(by_openssl, id="openssl", marks=needs_tool("openssl", package="openssl")),
        pytest.param(by_python, id="python"),
        pytest.param(by_go, id="go", marks=needs_tool("skopeo", package="skopeo")),
        pytest.param(
            by_gnutls,
            id="gnutls",
            marks=[
                needs_tool("certtool", package="gnutls-bin"),
                pytest.mark.may_skip("GnuTLS is in few clients, and its tool on few machines"),
            ],
        ),
    ],
)


def force(authority_key: Path, certificate: bytes, above: bytes, name: str) -> Leaf:
    """What a thief of the key could sign for `name`, past every check of ours; `above` is sent too."""
    now = datetime.now(UTC)
    key = certificates.make_key()
    forged = certificates.sign_leaf(
        key,
        name,
        ca=x509.load_pem_x509_certificate(certificate),
        ca_key=certificates.parse_key(authority_key, authority_key.read_bytes()),
        not_before=now - timedelta(days=1),
        not_after=now + timedelta(days=7),
    )
    return Leaf(
        name=name,
        certificate_chain_pem=forged.public_bytes(Encoding.PEM) + certificate + above,
        private_key_pem=certificates.private_pem(key),
        serial=forged.serial_number,
        not_after=forged.not_valid_after_utc,
        renew_at=now,
    )
