"""The asynchronous face of the upstream leg: pools of threads that the event loop hands work to.

Exchanges have threads of their own, so that slow downloads never hold up a question about rights.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from socket import socket
from urllib.parse import urlsplit

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.spool import Spool
from mitm_cache.errors import MitmCacheError, StoppingError
from mitm_cache.oci.digest import Digest
from mitm_cache.upstream.client import Call, Client
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.dial import Dialer
from mitm_cache.upstream.flight import Boarded, Flights, Landed, Start
from mitm_cache.upstream.passage import Passage
from mitm_cache.upstream.upgrade import Upgraded, upgrade
from mitm_cache.upstream.writer import Supply

EXCHANGES = 32
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
        start: Start,
        stopped: Callable[[], bool],
    ) -> None:
        """`start`: begins a task of the service; `stopped`: whether the service is ending."""
        self.client = client
        self._dialer = dialer
        self._exchanges = ThreadPoolExecutor(EXCHANGES, thread_name_prefix="exchange")
        self._downloads = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download")
        self._relays = ThreadPoolExecutor(RELAYS, thread_name_prefix="relay")
        self._uploads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._stopped = stopped
        self._flights = Flights(spool=spool, blobs=blobs, downloads=self._downloads, start=start)

    async def exchange(self, call: Call) -> Answer:
        """Ask, and wait for a small answer. Raises UpstreamError."""
        return await asyncio.get_running_loop().run_in_executor(self._exchanges, self.client.exchange, call)

    def relay(self, call: Call, size: int | None) -> Passage:
        """Begin to pass a request on, whose body has `size` bytes, None where that is not known yet."""
        passage = Passage(size, stopped=self._stopped)
        (self._relays if size == 0 else self._uploads).submit(self._relay, call, passage)
        return passage

    def _relay(self, call: Call, passage: Passage) -> None:
        try:
            if self._stopped():
                raise StoppingError("the cache is shutting down")  # it has waited for a thread
            self.client.relay(call, passage)
        except MitmCacheError as error:
            passage.finish(error)
        except BaseException:
            # Nobody looks at how this thread's work ends: whoever waits for the answer would wait for ever.
            logger.exception("a relay failed for no known reason")
            passage.finish(MitmCacheError("internal error", status=502))
            raise

    async def upgrade(self, call: Call) -> Upgraded | None:
        """Ask a registry for a WebSocket; None where it does not give one. Raises UpstreamError."""
        line = await asyncio.get_running_loop().run_in_executor(self._exchanges, self.client.connect, call.registry)
        base = urlsplit(self.client.base(call.registry)).path.rstrip("/")
        return await upgrade(line, base + call.target, self.client.marked(call.headers))

    async def dial(self, host: str, port: int, *, trusted: bool) -> socket:
        """See `Dialer.dial`."""
        work = partial(self._dialer.dial, host, port, trusted=trusted)
        return await asyncio.get_running_loop().run_in_executor(self._exchanges, work)

    async def run[T](self, work: Callable[[], T]) -> T:
        """Do something that blocks on the disk in a thread of this leg."""
        return await asyncio.get_running_loop().run_in_executor(self._exchanges, work)

    async def board(self, digest: Digest, supply: Supply, ask: Callable[[], Awaitable[None]]) -> Landed | Boarded:
        """See `Flights.board`."""
        return await self._flights.board(digest, supply, ask)

    def close(self) -> None:
        """Wait for the threads; the transport has been told to stop before."""
        self._downloads.shutdown()
        self._relays.shutdown()
        self._uploads.shutdown()
        self._exchanges.shutdown()
