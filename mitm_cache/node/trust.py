"""The cache's CA: read from a file or fetched and checked by its fingerprint, and put into the system's store."""

import base64
import hashlib
import http.client
import re
import ssl
from dataclasses import replace
from pathlib import Path

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import Cache, Certificate, Draft, Files, Order, Settings, Step

NAME = "mitm-cache.crt"
"""The same as in certs/install-ca.sh, so that either undoes the other."""
TIMEOUT = 10.0
"""Seconds."""
MAX_SIZE = 1 << 16
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")
_BINARIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
_HASH = re.compile(r"[0-9A-F]{64}")


def parse_fingerprint(text: str) -> str:
    """A SHA-256 as `mitm-cache ca show` or openssl writes it, in one form. Raises ConfigError."""
    bare = text.strip().rpartition("=")[2].replace(":", "").replace(" ", "").upper()
    if not _HASH.fullmatch(bare):
        raise ConfigError(f"--fingerprint {text!r} is not a SHA-256: 64 hexadecimal digits, with colons or without")
    return ":".join(bare[at : at + 2] for at in range(0, 64, 2))


def parse_certificate(where: str, text: str) -> Certificate:
    """The one certificate in a PEM text. Raises ConfigError for anything else, a private key above all."""
    if "PRIVATE KEY" in text:
        raise ConfigError(f"{where} holds a private key, which must stay on the cache; give ca.crt")
    found = _PEM.findall(text)
    if len(found) != 1:
        raise ConfigError(f"{where} is not one certificate in PEM form")
    try:
        der = base64.b64decode("".join(found[0].split()), validate=True)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ValueError, ssl.SSLError) as error:
        raise ConfigError(f"{where} is not a certificate: {error}") from error
    # Written anew, without what may stand around it.
    return Certificate(ssl.DER_cert_to_PEM_cert(der), parse_fingerprint(hashlib.sha256(der).hexdigest()))


def read_certificate(path: Path) -> Certificate:
    """The certificate in a file. Raises ConfigError."""
    try:
        text = path.read_bytes().decode("ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"--ca {path} cannot be read: {error.strerror}") from error
    return parse_certificate(f"--ca {path}", text)


def fetch_certificate(cache: Cache, port: int) -> Certificate:
    """The certificate that the cache hands out, by plain HTTP: nothing to rely on until it is checked."""
    address = replace(cache, port=None)
    where = f"http://{address.at(port)}/ca.crt"
    connection = http.client.HTTPConnection(address.host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/ca.crt")
        with connection.getresponse() as response:
            content = response.read(MAX_SIZE)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(f"{where} cannot be fetched ({error}); give --ca FILE instead") from error
    finally:
        connection.close()
    if response.status != 200:
        raise ConfigError(f"{where} answers {response.status}; give --ca FILE instead")
    return parse_certificate(where, content.decode("ascii", errors="replace"))


def check(certificate: Certificate, fingerprint: str) -> Certificate:
    """The certificate, if it is the one that is meant. Raises ConfigError."""
    if certificate.fingerprint != fingerprint:
        raise ConfigError(
            f"the certificate's fingerprint is {certificate.fingerprint}, not {fingerprint}: this is not the "
            "cache's CA, or somebody is on the way"
        )
    return certificate


def plan_store(draft: Draft, settings: Settings, files: Files, readers: tuple[Step, ...]) -> None:
    """The file in the system's store and the command that makes the store from it; the tool decides the family."""
    assert settings.certificate is not None
    if _has("update-ca-certificates", files):
        suse = "anchors" in files.names("/etc/pki/trust")
        folder = "/etc/pki/trust/anchors" if suse else "/usr/local/share/ca-certificates"
        # Without --fresh links by the hash of an older CA would stay.
        update = Step(Order.STORE, ("update-ca-certificates", "--fresh"))
    elif _has("update-ca-trust", files):
        arch = "anchors" in files.names("/etc/ca-certificates/trust-source")
        folder = "/etc/ca-certificates/trust-source/anchors" if arch else "/etc/pki/ca-trust/source/anchors"
        update = Step(Order.STORE, ("update-ca-trust",))
    else:
        raise ConfigError(
            "found neither update-ca-certificates nor update-ca-trust: install the package ca-certificates, or give "
            "--store client"
        )
    draft.put(f"{folder}/{NAME}", settings.certificate.pem, update, *readers)


def _has(program: str, files: Files) -> bool:
    return any(program in files.names(folder) for folder in _BINARIES)
