"""One download, many readers: how this process takes part in the spool's downloads.

A flight is one generation of a part file as this process sees it. Its writer is a thread here, or another process;
its readers are the clients that wait here. Growth is announced by our own writer, and looked for every 20 ms where
another process writes. When nothing grows for 250 ms a reader's process probes the lock: if it is free the writer has
died, and one of the readers' own requests carries on from the last byte.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass

from mitm_cache.cache.blobs import Blob, Blobs
from mitm_cache.cache.entry import Head
from mitm_cache.cache.proof import Proofs
from mitm_cache.cache.spool import Part, Reading, Spool, State, Writing
from mitm_cache.errors import MitmCacheError, StoreError, UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.tasks import in_pool
from mitm_cache.upstream.bypass import Bypass
from mitm_cache.upstream.generation import Flight, Passenger
from mitm_cache.upstream.writer import Moved, Refused, Supply, Writer

TICK = 0.02
"""Seconds between looks at a file that another process writes."""
SILENCE = 0.25
"""Seconds without growth after which the lock is probed."""
RETRY_SECONDS = 0.005
NOTE_LINGERS = 1.0
"""Seconds that the reason of a failure stays for readers in other processes."""
PATIENCE = 10.0
"""Seconds that a generation may take from its mark as failed to its unlinking."""
MAX_BOARDINGS = 20
"""How often one request joins anew, when generations end under it, before it gives up."""


type Start = Callable[[Coroutine[None, None, None]], object]


@dataclass(frozen=True, slots=True)
class Landed:
    """The content is here, whole."""

    blob: Blob


@dataclass(frozen=True, slots=True)
class Boarded:
    """The content is coming; `first` where this request started the download, by which nothing is kept where there is
    a `reason`."""

    passenger: Passenger | Bypass
    first: bool
    reason: str = ""


class Flights:
    """All downloads that this process takes part in."""

    def __init__(
        self,
        *,
        spool: Spool,
        blobs: Blobs,
        proofs: Proofs,
        downloads: Executor,
        start: Start,
        stopped: Callable[[], bool],
        per_registry: int = 16,
    ) -> None:
        """`start` runs a coroutine beside us until it ends or the service does, which `stopped` tells; `downloads` are
        the threads that write, of which one registry may occupy `per_registry`."""
        self._proofs = proofs
        self._stopped = stopped
        self._spool = spool
        self._blobs = blobs
        self._downloads = downloads
        self._start = start
        self._per_registry = per_registry
        self._slots: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._flights: dict[int, Flight] = {}

    async def board(self, digest: Digest, supply: Supply, ask: Callable[[], Awaitable[None]]) -> Landed | Boarded:
        """The content, there or on its way. `ask` is awaited before bytes that came by another's right are shared;
        what it raises ends the boarding.

        Raises Refused where upstream refused this very request, MitmCacheError where the download failed for all.
        """
        asked = False
        for _ in range(MAX_BOARDINGS):
            try:
                found = await self._find(digest)
                if isinstance(found, Blob) and not await self._is_sound(digest, found):
                    continue
            except StoreError as error:
                return await self._pass_by(digest, supply, error)
            first = isinstance(found, Writing) and found.part.stat()[1] == 0
            if not first and not asked:
                try:
                    await ask()
                except BaseException:
                    _release(found)
                    raise
                asked = True
            if isinstance(found, Blob):
                return Landed(found)
            try:
                return Boarded(await self._ride(found, supply), first)
            except Moved:
                await asyncio.sleep(RETRY_SECONDS)
            except StoreError as error:
                return await self._pass_by(digest, supply, error)
        raise UpstreamError(f"the download of {digest} failed again and again")

    async def _is_sound(self, digest: Digest, blob: Blob) -> bool:
        sound = False
        try:
            sound = await self._proofs.admit(digest, blob)
        finally:
            if not sound:
                blob.close()
        return sound

    async def _pass_by(self, digest: Digest, supply: Supply, error: StoreError) -> Boarded:
        """The disk takes nothing: bring the content for this client alone, by its own right."""
        self._spool.trouble.report(error)
        bypass = Bypass(digest, supply, error, stopped=self._stopped)
        self._fly(bypass)
        await bypass.ready()
        return Boarded(bypass, first=True, reason=bypass.reason)

    def _divert(self, part: Part, head: Head, supply: Supply, error: StoreError, position: int) -> Bypass:
        """The disk takes no more: bring the rest for one of the clients that read."""
        self._spool.trouble.report(error)
        try:
            shared = part.share()
        except OSError as broken:
            raise StoreError(f"the spool cannot be read: {broken.strerror}") from broken
        bypass = Bypass(part.digest, supply, error, stopped=self._stopped, head=head, part=shared, start=position)
        self._fly(bypass)
        return bypass

    def _fly(self, bypass: Bypass) -> None:
        try:
            in_pool(self._downloads, bypass.run).add_done_callback(_take_note)
        except StoreError:
            bypass.close()
            raise

    async def _find(self, digest: Digest) -> Blob | Writing | Reading:
        """The content or a part in its download; between two generations there is neither for a moment."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            found = self._blobs.open(digest) or self._spool.join(digest)
            if found is not None:
                return found
            await asyncio.sleep(RETRY_SECONDS)
        raise StoreError(f"the spool's file of {digest} stays locked")

    async def _ride(self, role: Writing | Reading, supply: Supply) -> Passenger:
        part, flight = self._enter(role, supply)
        try:
            head = await flight.ready(supply)
        except BaseException:
            part.close()
            flight.leave(supply)
            raise
        return Passenger(flight, part, supply, head, self._divert)

    def _enter(self, role: Writing | Reading, supply: Supply) -> tuple[Part, Flight]:
        """A reader's own descriptor, and its flight."""
        part = role.part
        known = self._flights.get(part.inode)
        try:
            # The writer's descriptor belongs to its thread: this reader, and the flight, have their own.
            if isinstance(role, Writing):
                part = role.part.reopen()
            flight = known or Flight(part.reopen(), self._spool, asyncio.get_running_loop())
        except (OSError, StoreError) as error:
            role.part.close()
            part.close()
            raise StoreError(f"the spool cannot be read: {error}") from error
        flight.enter(supply)
        if isinstance(role, Writing):
            self._launch(flight, role.part, supply)
        if known is None:
            self._flights[part.inode] = flight
            # Tasks may start at once: a flight without a reader would be over.
            self._start(self._accompany(flight))
        return part, flight

    async def _accompany(self, flight: Flight) -> None:
        """Watch a flight until it has ended and nobody rides; take over where its writer has died."""
        grown = time.monotonic()
        try:
            while flight.writing or (flight.readers and not flight.ended):
                await asyncio.sleep(TICK)
                # Our own writer announces growth but now and then: what came last before a pause is found here.
                if _look(flight) or flight.writing:
                    grown = time.monotonic()
                elif time.monotonic() - grown > SILENCE and flight.supplies and flight.failure is None:
                    grown = time.monotonic()
                    self._take_over(flight)
        except Exception as error:
            flight.failure = _mistake(error)
            raise
        finally:
            self._part_with(flight)
            flight.close()
            flight.wake()

    def _part_with(self, flight: Flight) -> None:
        """Who comes from now on has nothing to do with it: its file may go on, by another flight."""
        if self._flights.get(flight.inode) is flight:
            del self._flights[flight.inode]

    def _take_over(self, flight: Flight) -> None:
        try:
            part = self._spool.take_over(flight.part)
        except StoreError as error:
            flight.failure = error
            return
        if part is not None:
            self._launch(flight, part, flight.supplies[0])

    def _launch(self, flight: Flight, part: Part, supply: Supply) -> None:
        flight.writers += 1
        self._start(self._write(flight, part, supply))

    async def _write(self, flight: Flight, part: Part, supply: Supply) -> None:
        # Manifests have slots of their own: slow layers would hold up every pull that has yet to begin.
        kind = (supply.registry, supply.max_size is not None)
        slots = self._slots.setdefault(kind, asyncio.Semaphore(self._per_registry))
        writer = Writer(self._spool, part, supply, flight.announce, stopped=self._stopped)
        download: asyncio.Future[None] | None = None
        try:
            async with slots:
                download = in_pool(self._downloads, writer.run)
                download.add_done_callback(_take_note)
                await asyncio.wait([download])
            self._conclude(flight, supply, download.exception())
        except StoreError as error:
            self._conclude(flight, supply, error)
        finally:
            if download is None:
                part.close()  # the writer's turn has not come: the service ends, or has no thread for it
            flight.writers -= 1
            if not _look(flight):
                flight.wake()

    def _conclude(self, flight: Flight, supply: Supply, error: BaseException | None) -> None:
        match error:
            case None:
                return
            case Refused():
                flight.refusals[supply] = error
                if supply in flight.supplies:
                    flight.supplies.remove(supply)
            case MitmCacheError():
                flight.failure = error
            case _:  # a mistake of ours ends this download, not the service
                flight.failure = _mistake(error)
        if flight.failure is not None:
            self._part_with(flight)
        if flight.state is State.FAILED:
            forget = self._spool.forget_failure
            asyncio.get_running_loop().call_later(NOTE_LINGERS, forget, flight.inode, flight.digest)


def _mistake(error: BaseException) -> MitmCacheError:
    return MitmCacheError(f"internal error: {type(error).__name__}: {error}")


def _take_note(download: asyncio.Future[None]) -> None:
    """What went wrong is known to whoever waits, if the service did not end before."""
    if not download.cancelled():
        download.exception()


def _release(found: Blob | Writing | Reading) -> None:
    (found if isinstance(found, Blob) else found.part).close()


def _look(flight: Flight) -> bool:
    try:
        return flight.observe()
    except StoreError as error:
        flight.failure = error
        return False
