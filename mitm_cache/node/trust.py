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

NAME, NEXT_NAME = "mitm-cache.crt", "mitm-cache-next.crt"
"""A cache that changes its CA has two. The same as in certs/install-ca.sh, so that either undoes the other."""
TIMEOUT = 10.0
"""Seconds."""
MAX_SIZE = 1 << 16
# Blanks are taken once (++), or two runs of them would share what a liar sends in every way there is.
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s++([A-Za-z0-9+/=\s]++)-----END CERTIFICATE-----")
_BINARIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
_HASH = re.compile(r"[0-9A-F]{64}")


def parse_fingerprint(text: str) -> str:
    """A SHA-256 as `mitm-cache ca show` or openssl writes it, in one form. Raises ConfigError."""
    bare = text.strip().rpartition("=")[2].replace(":", "").replace(" ", "").upper()
    if not _HASH.fullmatch(bare):
        raise ConfigError(f"--fingerprint {text!r} is not a SHA-256: 64 hexadecimal digits, with colons or without")
    return ":".join(bare[at : at + 2] for at in range(0, 64, 2))


def parse_certificate(where: str, text: str) -> Certificate:
    """The certificate in a PEM text, or the two of a cache that changes its CA, the one that signs first.

    Raises ConfigError for anything else, a private key above all.
    """
    if "PRIVATE KEY" in text:
        raise ConfigError(f"{where} holds a private key, which must stay on the cache; give ca.crt")
    found = _PEM.findall(text)
    if len(found) not in (1, 2):
        raise ConfigError(f"{where} is not one certificate in PEM form, or two")
    try:
        ders = [base64.b64decode("".join(each.split()), validate=True) for each in found]
        for der in ders:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ValueError, ssl.SSLError) as error:
        raise ConfigError(f"{where} is not a certificate: {error}") from error
    # Written anew, without what may stand around it.
    return Certificate("".join(map(ssl.DER_cert_to_PEM_cert, ders)), _measure(ders[0]))


def _measure(der: bytes) -> str:
    return parse_fingerprint(hashlib.sha256(der).hexdigest())


def _split(certificate: Certificate) -> list[Certificate]:
    pems = [f"-----BEGIN CERTIFICATE-----\n{each}-----END CERTIFICATE-----\n" for each in _PEM.findall(certificate.pem)]
    return [Certificate(pem, _measure(ssl.PEM_cert_to_DER_cert(pem))) for pem in pems]


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
    """The certificate that is meant, without another that came with it. Raises ConfigError when it is not there."""
    meant = next((each for each in _split(certificate) if each.fingerprint == fingerprint), None)
    if meant is None:
        raise ConfigError(
            f"the certificate's fingerprint is {certificate.fingerprint}, not {fingerprint}: this is not the "
            "cache's CA, or somebody is on the way"
        )
    return meant


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
    # The store's directory of hashes wants a file for each.
    for name, each in zip((NAME, NEXT_NAME), _split(settings.certificate), strict=False):
        draft.put(f"{folder}/{name}", each.pem, update, *readers)


def _has(program: str, files: Files) -> bool:
    return any(program in files.names(folder) for folder in _BINARIES)
