"""TLS for the demo hosts, from a throw-away CA that may sign for them and for nothing else."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

from mitm_cache.ca import CertificateAuthority
from mitm_cache.demo.upstream import Certify


def authority(directory: Path, *names: str) -> tuple[Path, Certify]:
    """The file of a new CA for these names and addresses, and what signs for them."""
    now = datetime.now(UTC)
    made = CertificateAuthority.create(directory, permitted=names, now=now)

    def certify(name: str) -> ssl.SSLContext:
        leaf = made.mint(name, now=now)
        # Only from a file can ssl read a key; the directory of the CA is its owner's alone.
        path = directory / f"{name}.pem"
        path.touch(mode=0o600)
        path.write_bytes(leaf.private_key_pem + leaf.certificate_chain_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        path.unlink()
        return context

    return made.certificate_path, certify
