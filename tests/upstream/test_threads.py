"""Where the system starts no more threads, a request fails, and the service does not."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link
from mitm_cache.cache.proof import Proofs
from mitm_cache.cache.quarantine import Quarantine
from mitm_cache.cache.spool import Spool
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.tasks import Tasks
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.upstream.fetching import Supply
from mitm_cache.upstream.flight import Flights


def fetch(start: int, sink: Sink) -> Answer:
    raise AssertionError("nobody can fetch")


def landed(link: Link) -> None:
    raise AssertionError("nothing can land")


async def ask() -> None:
    """Everybody may have everything."""


async def test_no_thread_for_a_download(tmp_path: Path) -> None:
    """A pool that gives none says RuntimeError; here it has been closed. The next request finds no lock left behind."""
    blobs = Blobs(tmp_path / "blobs")
    (tmp_path / "spool").mkdir()
    spool = Spool(tmp_path / "spool", blobs)
    proofs = Proofs(blobs, Quarantine(tmp_path / "quarantine", blobs), stopped=lambda: False)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    async with asyncio.timeout(20), Tasks() as tasks:
        flights = Flights(
            spool=spool, blobs=blobs, proofs=proofs, downloads=pool, start=tasks.start, stopped=lambda: False
        )
        for _ in range(2):
            with pytest.raises(StoreError, match="nothing can be done beside the requests"):
                await flights.board(Digest.of(b"content"), Supply(fetch, landed, "quay.io"), ask)
    proofs.close()
