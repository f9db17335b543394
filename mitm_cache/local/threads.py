"""Threads of the local registry: its disk work waits neither for pulls nor for hashes of what is large, and who only
looks waits for nobody who changes anything."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from mitm_cache.tasks import in_pool, leave_to

LOOKS = 8
CHORES = 16
PROOFS = 4


class Closing(Protocol):
    """Something that is open."""

    def close(self) -> None: ...


class Threads:
    """Asked in the event loop. Raises StoreError where there is no thread to be had."""

    def __init__(self) -> None:
        self._looks = ThreadPoolExecutor(LOOKS, thread_name_prefix="local-look")
        self._chores = ThreadPoolExecutor(CHORES, thread_name_prefix="local")
        self._proofs = ThreadPoolExecutor(PROOFS, thread_name_prefix="local-proof")
        self.reading = threading.Lock()
        """Held while a manifest is parsed: 4 MiB of it may be a hundred in memory."""

    async def look[T](self, work: Callable[[], T]) -> T:
        """Do something that only reads, and waits for no lock; in no case go on before it has ended."""
        return await _end(in_pool(self._looks, work))

    async def run[T](self, work: Callable[[], T]) -> T:
        """The same of something that changes what is there: it may wait for locks, and for room."""
        return await _end(in_pool(self._chores, work))

    async def prove[T](self, work: Callable[[], T]) -> T:
        """The same of something that reads for as long as a whole layer takes."""
        return await _end(in_pool(self._proofs, work))

    async def open[T: Closing | None](self, work: Callable[[], T]) -> T:
        """Open something; it is closed again where nobody waits for it any more."""
        opening = in_pool(self._chores, work)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise

    def later(self, work: Callable[[], None]) -> None:
        """Do something that nobody waits for; at once where there is no thread."""
        leave_to(self._chores, work)

    def close(self) -> None:
        """Wait for all of them."""
        self._looks.shutdown()
        self._chores.shutdown()
        self._proofs.shutdown()


async def _end[T](done: asyncio.Future[T]) -> T:
    """What comes of work in a thread. Whoever is cancelled waits for it: it may use what is closed next, such as the
    lock of an upload that is about to become a blob."""
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        if not done.cancelled():
            done.exception()  # nobody else asks for it
        raise


def _close[T: Closing | None](opening: asyncio.Future[T]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opened = opening.result()
        if opened is not None:
            opened.close()
