"""The writer of a download: brings one generation of a part file to its end, in a thread of its own."""

import time
from collections.abc import Callable

from mitm_cache.cache.entry import Head, Link
from mitm_cache.cache.spool import Outcome, Part, Spool
from mitm_cache.errors import LoopError, MitmCacheError, StoppingError, StoreError, UpstreamError
from mitm_cache.upstream.fetching import PROGRESS, Fetching, Hopeless, Moved, Refused, Supply, Uncacheable

__all__ = ["Moved", "Refused", "Supply", "Uncacheable", "Writer"]

NOTICE_BYTES = 256 << 10
NOTICE_SECONDS = 0.01
"""How often readers are woken at most: libcurl brings 16 KiB at a time."""
ROOM_BYTES = 16 << 20
"""How often it is looked whether the disk has room for the rest."""


class Writer:
    """Brings one generation to its end, in a download thread. Owns the part's lock."""

    def __init__(
        self,
        spool: Spool,
        part: Part,
        supply: Supply,
        announce: Callable[[Head | None], None],
        *,
        stopped: Callable[[], bool],
    ) -> None:
        """`announce` is told that the file has changed, and of its head once that is known."""
        self._spool = spool
        self._part = part
        self._supply = supply
        self._announce = announce
        self._fetching = Fetching(part.digest, supply, self, stopped=stopped)
        self._checked = 0
        self._size = 0
        self._inherited = 0
        self._noticed = (0, 0.0)

    def run(self) -> None:
        """Download, prove, keep.

        Raises Refused where upstream refuses this client: the generation is left to others if it has any bytes.
        Raises StoreError where the disk takes no more: its bytes are good as far as they go, and it has been dropped.
        Raises MitmCacheError where the generation is bad, after it has been discarded; and where upstream has gone
        away in the middle, which the next request carries on.
        """
        try:
            self._run()
        finally:
            self._part.close()  # unlocks, last
            self._announce(None)

    def _run(self) -> None:
        try:
            self._inherit()
            head = self._fetching.run()
            self._land(head)  # first: with the last byte in hand a client may ask again
            self._spool.seal(self._part)
        except Refused as refusal:
            if self._fetching.size == 0:
                self._discard(
                    Outcome(refusal.answer.status, "UNKNOWN", "upstream refused another client", shared=False)
                )
            raise
        except StoppingError:
            raise  # the next start carries on
        except StoreError:
            self._spool.abandon(self._part)
            raise
        except MitmCacheError as error:
            if self._may_be_carried_on(error):
                raise
            retry_after = error.retry_after if isinstance(error, UpstreamError) else None
            shared = not isinstance(error, Moved | Uncacheable)
            self._discard(Outcome(error.status, error.code, error.message, shared, retry_after))
            raise

    def _inherit(self) -> None:
        """Hash what a writer before us has left."""
        note = self._spool.note(self._part)
        _, size = self._part.stat()
        if note is None or note.head.size < 0 or note.head.size < size:
            if size:
                raise Moved("a download that was broken off left bytes of unknown size")
            return
        while self._size < size:
            chunk = self._part.read(self._size, 1 << 20)
            self._fetching.inherit(note.head, chunk)
            self._size += len(chunk)
        self._inherited = self._size

    def _may_be_carried_on(self, error: MitmCacheError) -> bool:
        """Whether what has come is worth keeping when upstream gives no more: it may only be away.

        Who has carried on without getting any further discards it, since it may be Range that does not work there.
        """
        final = not isinstance(error, UpstreamError) or isinstance(error, Hopeless | Uncacheable | LoopError)
        return not final and self._size - self._inherited >= PROGRESS

    def promise(self, head: Head) -> None:
        """The size is known: tell the readers, in other processes too."""
        self._check_room(head.size)
        self._spool.write_note(self._part, head)
        self._announce(head)

    def take(self, data: bytes) -> None:
        """Append; wake the readers now and then."""
        head = self._fetching.head
        if head is not None and self._size - self._checked >= ROOM_BYTES:
            self._check_room(head.size - self._size)
        self._spool.append(self._part, data)
        self._size += len(data)
        size, when = self._noticed
        now = time.monotonic()
        if self._size - size >= NOTICE_BYTES or now - when >= NOTICE_SECONDS:
            self._noticed = (self._size, now)
            self._announce(None)

    def _check_room(self, missing: int) -> None:
        self._checked = self._size
        self._spool.check_room(missing)

    def _land(self, head: Head) -> None:
        try:
            self._supply.landed(Link(self._part.digest, head.media_type, head.size))
        except StoreError:
            pass  # the content is here and proven; only who holds it has to be asked again

    def _discard(self, outcome: Outcome) -> None:
        try:
            self._spool.discard(self._part, outcome)
        except OSError as error:
            raise StoreError(f"the spool cannot be written: {error.strerror}") from error
