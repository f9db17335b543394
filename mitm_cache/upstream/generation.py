"""One generation of a part file as this process sees it, and the clients that read along."""

import asyncio
from collections.abc import Callable

from mitm_cache.cache.entry import Head
from mitm_cache.cache.spool import Outcome, Part, Spool, State
from mitm_cache.errors import MitmCacheError, StoreError, UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.upstream.bypass import Bypass
from mitm_cache.upstream.writer import Moved, Refused, Supply


class Flight:
    """One generation as this process sees it. Lives in the event loop; a writer thread only calls `announce`."""

    def __init__(self, part: Part, spool: Spool, loop: asyncio.AbstractEventLoop) -> None:
        """Takes over `part`, and closes it where it cannot be looked at. Raises StoreError."""
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
        try:
            self.observe()
        except BaseException:
            part.close()
            raise

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
        elif self.head is None or self.ended:
            self._read_note()
        changed = before != (self.state, self.size, self.head)
        if changed or self.failure is not None:
            self.wake()
        return changed

    def _read_note(self) -> None:
        note = self._spool.note(self._part)
        if note is not None and note.head.size >= 0:
            self.head = note.head
        if self.state is State.ABANDONED and self.failure is None and not self.writing:
            self.failure = StoreError("the disk takes no more")
        # Our own writer says itself why it failed, and knows whose request it was.
        if self.state is State.FAILED and self.failure is None and not self.writing:
            self.failure = _failure(note.outcome if note else None)

    def wake(self) -> None:
        """Let every reader look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def announce(self, head: Head | None) -> None:
        """Called by the writer's thread: the file has changed. Its note is gone once it has ended, so that its head is
        told here."""
        self._loop.call_soon_threadsafe(self._hear, head)

    def _hear(self, head: Head | None) -> None:
        self.head = self.head or head
        self.observe()

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
    """One client's reading of a flight: a source whose bytes come as they arrive.

    Where the disk takes no more of them, the rest comes past it, for this client alone.
    """

    __slots__ = ("_bypass", "_divert", "_flight", "_part", "_supply", "head")

    def __init__(self, flight: Flight, part: Part, supply: Supply, head: Head, divert: "Divert") -> None:
        self._flight = flight
        self._part = part
        self._supply = supply
        self._divert = divert
        self._bypass: Bypass | None = None
        self.head = head

    @property
    def reason(self) -> str:
        """Why the rest comes past the disk, if it does."""
        return self._bypass.reason if self._bypass is not None else ""

    def fileno(self) -> int:
        return self._part.fileno()

    async def readable(self, position: int, stop: int) -> int:
        """Where reading may go to: all but the last byte of the range, until the whole content is proven."""
        flight = self._flight
        while flight.state is not State.VERIFIED:
            try:
                flight.check(self._supply)
            except Refused as error:
                # What this client was let have when it came it may get by another's request.
                if flight.failure is not None or not (flight.supplies or flight.writing):
                    raise UpstreamError("the download failed and cannot be carried on") from error
            except Moved as error:
                raise UpstreamError("the download failed and cannot be carried on") from error
            except StoreError as error:
                self._bypass = self._divert(self._part, self.head, self._supply, error, position)
                return await self._bypass.readable(position, stop)
            limit = min(flight.size, stop - 1)
            if limit > position:
                return limit
            await flight.changed()
        if flight.size != self.head.size:
            raise UpstreamError(f"the content has {flight.size} bytes where {self.head.size} were announced")
        return stop

    async def receive(self) -> bytes:
        """What comes past the disk."""
        return await self._bypass.receive() if self._bypass is not None else b""

    def doubt(self) -> None:
        """Nothing to do: it counts as proven only once it is a blob, and is doubted as that."""

    def close(self) -> None:
        if self._bypass is not None:
            self._bypass.close()
        if self._part.fileno() >= 0:
            self._part.close()
            self._flight.leave(self._supply)


type Divert = Callable[[Part, Head, Supply, StoreError, int], Bypass]
