"""Whom the upstream leg trusts: the system's certificates and those the operator adds, as one file for libcurl."""

import hashlib
import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

from mitm_cache.errors import ConfigError, StoreError

SYSTEM_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)


def system_store(environ: Mapping[str, str]) -> Path | None:
    """The system's bundle (`SSL_CERT_FILE` first), or None where the system has none."""
    candidates = (environ.get("SSL_CERT_FILE", ""), *SYSTEM_STORES, ssl.get_default_verify_paths().cafile or "")
    return next((Path(path) for path in candidates if path and Path(path).is_file()), None)


def write_bundle(folder: Path, *, system: Path | None, extra: Sequence[Path]) -> Path:
    """One PEM file with the system's certificates and the operator's; the same content has the same name.

    Raises ConfigError naming a file that is missing or holds no certificate.
    """
    content = system.read_bytes() if system else b""
    for path in extra:
        try:
            added = path.read_bytes()
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
                cadata=added.decode("ascii", "ignore")
            )  # comments may be in any script
        except (ValueError, ssl.SSLError) as error:  # before OSError: SSLError is one
            raise ConfigError(f"ca_file {path} holds no PEM certificate") from error
        except OSError as error:
            raise ConfigError(f"ca_file {path} cannot be read: {error.strerror}") from error
        content += b"\n" + added
    target = folder / f"trust-{hashlib.sha256(content).hexdigest()[:16]}.pem"
    draft = target.with_suffix(f".{os.getpid()}")
    try:
        if target.exists() and target.read_bytes() == content:
            return target  # a disk that is full by now has no room for another one
        draft.write_bytes(content)
        draft.replace(target)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}") from error
    return target


def check_client_certificate(key: str, path: Path) -> None:
    """Raise ConfigError unless a file holds a certificate and its key, unencrypted: nobody is there to be asked."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path, password="")
    except (ValueError, ssl.SSLError) as error:
        raise ConfigError(f"{key}: {path} holds no PEM certificate with its key, unencrypted") from error
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from error
