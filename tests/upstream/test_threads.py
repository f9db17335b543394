"""Where the system starts no more threads, a request fails, and the service does not; who waits for one may leave."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import override

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link
from mitm_cache.cache.proof import Proofs
from mitm_cache.cache.quarantine import Quarantine
from mitm_cache.cache.spool import Spool
from mitm_cache.errors import StoreError, UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.registries import DOCKER_HUB
from mitm_cache.tasks import Tasks
from mitm_cache.upstream import leg as leg_module
from mitm_cache.upstream.client import Call, Client
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.upstream.dial import Dialer
from mitm_cache.upstream.fetching import Supply
from mitm_cache.upstream.flight import Flights
from mitm_cache.upstream.leg import DIALS, Leg
from mitm_cache.upstream.passage import Passage
from mitm_cache.wire.headers import Headers
from tests.proxy.doors import Nowhere, Unreachable


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


class _Waiting(Unreachable):
    """Lets every relay wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    @override
    def relay(self, call: Call, passage: Passage) -> None:
        super().relay(call, passage)
        assert self.gate.wait(20)


def push(target: str) -> Call:
    return Call(
        registry=DOCKER_HUB, repository=None, method="POST", target=target, headers=Headers(), credential=None
    )  # fmt: skip


@asynccontextmanager
async def a_leg(folder: Path, client: Client, dialer: Dialer | None = None) -> AsyncIterator[Leg]:
    blobs = Blobs(folder / "blobs")
    proofs = Proofs(blobs, Quarantine(folder / "quarantine", blobs), stopped=lambda: False)
    async with asyncio.timeout(20), Tasks() as tasks:
        yield Leg(
            client=client,
            dialer=dialer or Nowhere(),
            spool=Spool(folder / "spool", blobs),
            blobs=blobs,
            proofs=proofs,
            start=tasks.start,
            stopped=lambda: False,
        )
    proofs.close()


async def test_no_thread_for_a_relay(tmp_path: Path) -> None:
    """The client is told, and nothing is sent."""
    client = Unreachable()
    async with a_leg(tmp_path, client) as leg:
        leg.close()
        for size in (0, 5):
            with pytest.raises(StoreError, match="nothing can be relayed now"):
                await leg.relay(push("/v2/a/blobs/uploads/"), size).answer()
    assert client.asked == []


async def test_who_has_left_is_not_relayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits for a thread is not sent once its client has given up."""
    monkeypatch.setattr(leg_module, "RELAYS", 1)
    client = _Waiting()
    async with a_leg(tmp_path, client) as leg:
        with pytest.raises(UpstreamError):
            await leg.relay(push("/v2/first/blobs/uploads/"), 0).answer()
        leg.relay(push("/v2/second/blobs/uploads/"), 0).close()
        third = leg.relay(push("/v2/third/blobs/uploads/"), 0)
        client.gate.set()
        with pytest.raises(UpstreamError):
            await third.answer()
        leg.close()
    assert [call.target.split("/")[2] for call in client.asked] == ["first", "third"]


class _Deaf(Nowhere):
    """Hosts that are not configured let everybody wait for `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked = threading.Semaphore(0)

    @override
    def dial(self, host: str, port: int, *, trusted: bool) -> socket.socket:
        self.asked.release()
        assert trusted or self.gate.wait(20)
        return super().dial(host, port, trusted=trusted)


async def test_tunnels_that_lead_nowhere(tmp_path: Path) -> None:
    """However many clients wait for dead hosts: registries are asked, and hosts that issue tokens reached."""
    client, dialer = Unreachable(), _Deaf()

    async def wait(leg: Leg) -> None:
        with pytest.raises(UpstreamError, match="nowhere"):
            await leg.dial("dead.example", 443, trusted=False)

    async with a_leg(tmp_path, client, dialer) as leg:
        async with asyncio.TaskGroup() as crowd:
            for _ in range(2 * DIALS):
                crowd.create_task(wait(leg))
            for _ in range(DIALS):
                assert await asyncio.to_thread(dialer.asked.acquire, timeout=20)
            with pytest.raises(UpstreamError, match="no upstream"):
                await leg.exchange(push("/v2/"))
            with pytest.raises(UpstreamError, match="nowhere"):
                await leg.dial("auth.example", 443, trusted=True)
            dialer.gate.set()
        leg.close()
