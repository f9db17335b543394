"""The asynchronous face of the upstream leg: pools of threads that the event loop hands work to.

Exchanges have threads of their own, so that slow downloads never hold up a question about rights.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from socket import socket
from urllib.parse import urlsplit

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.proof import Proofs
from mitm_cache.cache.spool import Spool
from mitm_cache.errors import MitmCacheError, StoppingError, StoreError, UnreachableError
from mitm_cache.oci.digest import Digest
from mitm_cache.tasks import in_pool
from mitm_cache.upstream.breaker import Place, Waiting
from mitm_cache.upstream.client import Call, Client
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.dial import Dialer
from mitm_cache.upstream.flight import Boarded, Flights, Landed, Start
from mitm_cache.upstream.passage import Passage
from mitm_cache.upstream.upgrade import Upgraded, upgrade
from mitm_cache.upstream.writer import Supply

EXCHANGES = 32
EXCHANGES_OF_ONE = 24
"""Of one registry: where it lets all of them wait, others are still asked."""
CHORES = 8
"""Threads for what blocks on the disk."""
LOOKS = 4
"""Threads that look for registries that are away."""
PATIENCE = 3.0
"""Seconds that upstream may take to answer where something else could be served, and until it is doubted."""
DIALS = 32
"""Apart, and those to hosts that are not configured once more: where none of them answers, logins still get through."""
DOWNLOADS = 128
RELAYS = 64
UPLOADS = 128
"""Apart: uploads wait for their clients, and a login must not wait for uploads."""

logger = logging.getLogger(__name__)


class Leg:
    """Questions and downloads, off the event loop."""

    def __init__(
        self,
        *,
        client: Client,
        dialer: Dialer,
        spool: Spool,
        blobs: Blobs,
        proofs: Proofs,
        start: Start,
        stopped: Callable[[], bool],
    ) -> None:
        """`start`: begins a task of the service; `stopped`: whether the service is ending."""
        self.client = client
        self._dialer = dialer
        self._exchanges = ThreadPoolExecutor(EXCHANGES, thread_name_prefix="exchange")
        self._chores = ThreadPoolExecutor(CHORES, thread_name_prefix="chore")
        self._dials = ThreadPoolExecutor(DIALS, thread_name_prefix="dial")
        self._dials_elsewhere = ThreadPoolExecutor(DIALS, thread_name_prefix="dial-elsewhere")
        self._looks = ThreadPoolExecutor(LOOKS, thread_name_prefix="look")
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._looking: set[Place] = set()
        self._downloads = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download")
        self._relays = ThreadPoolExecutor(RELAYS, thread_name_prefix="relay")
        self._uploads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._stopped = stopped
        self._trouble = spool.trouble
        self._flights = Flights(
            spool=spool, blobs=blobs, proofs=proofs, downloads=self._downloads, start=start, stopped=stopped
        )
        self._start = start
        self._loop = asyncio.get_running_loop()
        client.breaker.opened = self._on_absence

    async def exchange(self, call: Call, *, patient: bool = True) -> Answer:
        """Ask, and wait for a small answer; not `patient` is who has something else to serve. Raises UpstreamError."""
        return await self._ask(call, self.client.exchange, patient=patient)

    async def prove(self, call: Call, *, patient: bool = True) -> Answer:
        """See `Client.prove`."""
        return await self._ask(call, self.client.prove, patient=patient)

    async def _ask(self, call: Call, ask: Callable[[Call], Answer], *, patient: bool) -> Answer:
        """Who lets somebody wait for too long is doubted: it is looked whether anybody is there at all."""
        waiting = Waiting(patient)
        work = partial(ask, replace(call, waiting=waiting))
        slots = self._slots.setdefault(call.registry.name, asyncio.Semaphore(EXCHANGES_OF_ONE))
        doubting = self._loop.call_later(PATIENCE, self._doubt, waiting)
        try:
            async with asyncio.timeout(None if patient else PATIENCE), slots:
                return await in_pool(self._exchanges, work)
        except TimeoutError:
            words = f"{call.registry.name} has not answered within {PATIENCE:.0f} s"
            raise UnreachableError(words, status=504) from None
        finally:
            doubting.cancel()
            waiting.abandoned = True

    def _doubt(self, waiting: Waiting) -> None:
        if waiting.place is not None:
            self.client.breaker.doubt(waiting.place, PATIENCE)

    def relay(self, call: Call, size: int | None) -> Passage:
        """Begin to pass a request on, whose body has `size` bytes, None where that is not known yet."""
        passage = Passage(size, stopped=self._stopped)
        try:
            (self._relays if size == 0 else self._uploads).submit(self._relay, call, passage)
        except RuntimeError as error:  # the system has no thread left for it, or the pool has been closed
            passage.finish(StoreError(f"nothing can be relayed now: {error}"))
        return passage

    def _relay(self, call: Call, passage: Passage) -> None:
        try:
            if self._stopped():
                raise StoppingError("the cache is shutting down")  # it has waited for a thread
            if not passage.abandoned():
                self.client.relay(call, passage)
        except MitmCacheError as error:
            passage.finish(error)
        except BaseException:
            # Nobody looks at how this thread's work ends: whoever waits for the answer would wait for ever.
            logger.exception("a relay failed for no known reason")
            passage.finish(MitmCacheError("internal error", status=502))
            raise

    def _on_absence(self, place: Place) -> None:
        """Somebody has gone away: look for it until it is back, so that no client has to."""
        if not self._stopped():
            self._loop.call_soon_threadsafe(self._begin_looking, place)

    def _begin_looking(self, place: Place) -> None:
        if place not in self._looking and not self._stopped():
            self._looking.add(place)
            self._start(self._look_for(place))

    async def _look_for(self, place: Place) -> None:
        try:
            while (pause := self.client.breaker.pause(place)) is not None:
                await asyncio.sleep(pause)
                try:
                    await in_pool(self._looks, partial(self.client.look_for, place))
                except StoreError:
                    await asyncio.sleep(PATIENCE)  # who is doubted would be looked for at once again
        finally:
            self._looking.discard(place)

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside the requests, for as long as the service lasts."""
        self._start(work)

    async def upgrade(self, call: Call) -> Upgraded | None:
        """Ask a registry for a WebSocket; None where it does not give one. Raises UpstreamError."""
        line = await in_pool(self._dials, partial(self.client.connect, call.registry))
        base = urlsplit(self.client.base(call.registry)).path.rstrip("/")
        return await upgrade(line, base + call.target, self.client.marked(call.headers))

    async def dial(self, host: str, port: int, *, trusted: bool) -> socket:
        """See `Dialer.dial`."""
        work = partial(self._dialer.dial, host, port, trusted=trusted)
        return await in_pool(self._dials if trusted else self._dials_elsewhere, work)

    async def run[T](self, work: Callable[[], T]) -> T:
        """Do something that blocks on the disk in a thread of this leg."""
        return await in_pool(self._chores, work)

    async def record(self, work: Callable[[], object]) -> None:
        """Write down, in a thread of this leg, what pulls can do without where the disk takes nothing."""
        try:
            await self.run(work)
        except StoreError as error:
            self._trouble.report(error)

    async def board(self, digest: Digest, supply: Supply, ask: Callable[[], Awaitable[None]]) -> Landed | Boarded:
        """See `Flights.board`."""
        return await self._flights.board(digest, supply, ask)

    def close(self) -> None:
        """Wait for the threads; the transport has been told to stop before."""
        self._downloads.shutdown()
        self._relays.shutdown()
        self._uploads.shutdown()
        self._exchanges.shutdown()
        self._dials.shutdown()
        self._dials_elsewhere.shutdown()
        self._looks.shutdown()
        self._chores.shutdown()
