"""Throw-away certificates for fake hosts."""

import ssl
from pathlib import Path

import trustme


class Trust:
    """A CA whose certificate is in `ca_file`."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.ca_file = directory / "fake-upstream-ca.crt"
        self._authority.cert_pem.write_to_path(str(self.ca_file))

    def certify(self, *names: str) -> ssl.SSLContext:
        """What a server needs to be believed under these names or addresses, and under 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*dict.fromkeys([*names, "127.0.0.1"])).configure_cert(context)
        return context

    def context(self) -> ssl.SSLContext:
        """What a client needs that believes this CA and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context

    def pem(self, path: Path, *names: str) -> Path:
        """A certificate of this CA with its key, in one file: for servers that are programs, and for clients."""
        self._authority.issue_cert(*names, "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
        return path
