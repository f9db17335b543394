"""The internet side of a demo in one piece: a registry and its storage host, one ledger for both."""

import ssl
from collections.abc import Callable
from typing import Self

from mitm_cache.demo.access import Access
from mitm_cache.demo.ledger import Ledger
from mitm_cache.demo.registry import Registry
from mitm_cache.demo.storage import Storage

NAME, STORAGE_NAME, ADDRESS = "registry.demo", "blobs.demo", "127.0.0.1"

type Certify = Callable[[str], ssl.SSLContext]
"""Gives what a server of that name, or address, needs to prove who it is."""


class Upstream:
    """Use it as a context manager; what both hosts were asked is in `requests`.

    Without `certify` both hosts speak clear text. Redirects call the storage host by its address: that needs no DNS.
    """

    def __init__(
        self,
        *,
        certify: Certify | None,
        name: str = NAME,
        storage_name: str = STORAGE_NAME,
        access: Access | None = None,
    ) -> None:
        self.requests = Ledger()
        tls, storage_tls = (certify(name), certify(ADDRESS)) if certify else (None, None)
        self.storage = Storage(storage_name, tls=storage_tls, ledger=self.requests)
        self.registry = Registry(name, tls=tls, storage=self.storage, ledger=self.requests, access=access)

    def start(self) -> None:
        """Be reachable, first or again."""
        for host in (self.storage, self.registry):
            host.start()

    def stop(self) -> None:
        """Be down: connections are refused until `start`."""
        for host in (self.registry, self.storage):
            host.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # Both are closed whatever happens; the second may still tell that it crashed.
        try:
            self.registry.__exit__(kind, error, trace)
        finally:
            self.storage.__exit__(kind, error, trace)
