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
from mitm_cache.cache.spool import Outcome, Part, Reading, Spool, State, Writing
from mitm_cache.errors import MitmCacheError, StoreError, UpstreamError
from mitm_cache.oci.digest import Digest
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


class Flight:
    """One generation as this process sees it. Lives in the event loop; a writer thread only calls `announce`."""

    def __init__(self, part: Part, spool: Spool, loop: asyncio.AbstractEventLoop) -> None:
        self._part = part
        self._spool = spool
        self._loop = loop
        self._changed = asyncio.Event()
        self._readers = 0
        self.supplies: list[Supply] = []
        self.writers = 0
        self.refusals: dict[Supply, Refused] = {}
        self.state = State.GROWING
        self.size = 0
        self.head: Head | None = None
        self.failure: MitmCacheError | None = None
        self.observe()

    @property
    def digest(self) -> Digest:
        return self._part.digest

    @property
    def inode(self) -> int:
        return self._part.inode

    @property
    def part(self) -> Part:
        return self._part

    @property
    def ended(self) -> bool:
        return self.state is not State.GROWING

    @property
    def writing(self) -> bool:
        """Whether a writer of this process is at work."""
        return self.writers > 0

    @property
    def readers(self) -> int:
        return self._readers

    def observe(self) -> bool:
        """Look at the file; true where something has changed since the last look, and wake the readers then."""
        if self._part.fileno() < 0:
            return False  # closed: it had ended
        before = (self.state, self.size, self.head)
        self.state, self.size = self._part.stat()
        if self.state is State.VERIFIED and self.head is None:
            note = self._spool.note(self._part)
            # Without the note the type is lost with the writer; the blob's link has it.
            self.head = note.head if note else Head(self.size, "")
        elif self.head is None or self.state is State.FAILED:
            self._read_note()
        changed = before != (self.state, self.size, self.head)
        if changed or self.failure is not None:
            self.wake()
        return changed

    def _read_note(self) -> None:
        note = self._spool.note(self._part)
        if note is not None and note.head.size >= 0:
            self.head = note.head
        # Our own writer says itself why it failed, and knows whose request it was.
        if self.state is State.FAILED and self.failure is None and not self.writing:
            self.failure = _failure(note.outcome if note else None)

    def wake(self) -> None:
        """Let every reader look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def announce(self) -> None:
        """Called by the writer's thread: the file has changed."""
        self._loop.call_soon_threadsafe(self.observe)

    async def changed(self) -> None:
        """Wait until the readers are woken next."""
        await self._changed.wait()

    def enter(self, supply: Supply) -> None:
        """Count a reader, whose request can carry the download on."""
        self._readers += 1
        self.supplies.append(supply)

    def leave(self, supply: Supply) -> None:
        """Count a reader out."""
        self._readers -= 1
        if supply in self.supplies:
            self.supplies.remove(supply)

    async def ready(self, supply: Supply) -> Head:
        """Wait until the size is known. Raises Refused (own request), Moved, or the failure that all share."""
        while True:
            self.check(supply)
            if self.head is not None:
                return self.head
            await self.changed()

    def check(self, supply: Supply) -> None:
        """Raise what ends this reader's wait, if anything does."""
        refusal = self.refusals.get(supply)
        if refusal is not None:
            raise refusal
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self._part.close()


def _failure(outcome: Outcome | None) -> MitmCacheError:
    if outcome is None or not outcome.shared:
        return Moved("the download ended before its end")
    return UpstreamError(outcome.message, status=outcome.status, code=outcome.code, retry_after=outcome.retry_after)


class Passenger:
    """One client's reading of a flight: a source whose bytes come as they arrive."""

    __slots__ = ("_flight", "_part", "_supply", "head")

    def __init__(self, flight: Flight, part: Part, supply: Supply, head: Head) -> None:
        self._flight = flight
        self._part = part
        self._supply = supply
        self.head = head

    def fileno(self) -> int:
        return self._part.fileno()

    async def readable(self, position: int, stop: int) -> int:
        """Where reading may go to: all but the last byte of the range, until the whole content is proven."""
        flight = self._flight
        while flight.state is not State.VERIFIED:
            try:
                flight.check(self._supply)
            except (Refused, Moved) as error:
                raise UpstreamError("the download failed and cannot be carried on") from error
            limit = min(flight.size, stop - 1)
            if limit > position:
                return limit
            await flight.changed()
        if flight.size != self.head.size:
            raise UpstreamError(f"the content has {flight.size} bytes where {self.head.size} were announced")
        return stop

    def close(self) -> None:
        if self._part.fileno() >= 0:
            self._part.close()
            self._flight.leave(self._supply)


@dataclass(frozen=True, slots=True)
class Landed:
    """The content is here, whole."""

    blob: Blob


@dataclass(frozen=True, slots=True)
class Boarded:
    """The content is coming; `first` where this request started the download."""

    passenger: Passenger
    first: bool


class Flights:
    """All downloads that this process takes part in."""

    def __init__(
        self, *, spool: Spool, blobs: Blobs, downloads: Executor, start: Start, per_registry: int = 16
    ) -> None:
        """`start` runs a coroutine beside us until it ends or the service does; `downloads` are the threads that write,
        of which one registry may occupy `per_registry`."""
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
            found = await self._find(digest)
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
        raise UpstreamError(f"the download of {digest} failed again and again")

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
        return Passenger(flight, part, supply, head)

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
                elif time.monotonic() - grown > SILENCE and flight.supplies:
                    grown = time.monotonic()
                    self._take_over(flight)
        finally:
            self._flights.pop(flight.inode, None)
            flight.close()
            flight.wake()

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
        loop = asyncio.get_running_loop()
        writer = Writer(self._spool, part, supply, flight.announce)
        download: asyncio.Future[None] | None = None
        try:
            async with slots:
                download = loop.run_in_executor(self._downloads, writer.run)
                download.add_done_callback(_take_note)
                await asyncio.wait([download])
            self._conclude(flight, supply, download.exception())
        finally:
            if download is None:
                part.close()  # the service ends before the writer's turn has come
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
                flight.failure = MitmCacheError(f"internal error: {type(error).__name__}: {error}")
        if flight.state is State.FAILED:
            forget = self._spool.forget_failure
            asyncio.get_running_loop().call_later(NOTE_LINGERS, forget, flight.inode, flight.digest)


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
