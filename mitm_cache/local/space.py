"""The room that the local registry may take: what it holds, what is being pushed, and the limit of both.

All processes on a data directory share one account. What comes is added to it at once, and what leaves is not: so it is
never too low, and it is measured before anybody is refused, unless it was just now. Room that was looked for in vain is
looked for again when something was deleted, or a little later.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor

from mitm_cache.cache.evict import alone
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.owned import last_let_go, owned, removing
from mitm_cache.cache.room import Room
from mitm_cache.errors import ClientError, MitmCacheError, StoreError
from mitm_cache.local.account import NEVER, Account, Row, Sums
from mitm_cache.oci.digest import Digest

MEASURED_SECONDS = 60.0
"""It is measured again after this, and after a hundred times as long as measuring took: what was imported, or has left,
is not told."""

REST, MAX_REST = 10, 60.0
"""For who would be refused it is measured again, and collected again, after so many times as long as that took, and so
many seconds at most: a client that asks again and again would have it done without end."""

SPARE = 100
"""This part of the limit is collected at least, where there is so much: each push would have it done otherwise."""

PIECE, MAX_PIECE = 16 << 20, 256 << 20
"""Bytes that a push which does not say how many it has is promised at a time: as many as it has got, within these."""

logger = logging.getLogger(__name__)


class Share:
    """What one push has been promised, in bytes. To be closed, with what it has written; closing twice does nothing."""

    def __init__(self, space: "Space", upload: str, begun: int) -> None:
        self._space: Space | None = space
        self.row = Row(upload, begun)

    @property
    def room(self) -> int:
        """Bytes that it may write."""
        return self.row.room

    @property
    def closed(self) -> bool:
        """Whether nothing is promised any more."""
        return self._space is None

    def grow(self, least: int) -> None:
        """Have it promised so many bytes more at least: who does not say how much comes gets it piece by piece.

        Raises ClientError (DENIED), StoreError.
        """
        assert self._space is not None
        wanted = max(least, PIECE, min(self.room, MAX_PIECE))
        self._space.promise(self, least, wanted)

    def settle(self, written: int = 0) -> None:
        """Close it, and have it known to all processes then. Blocks on them, for a moment."""
        space, self._space = self._space, None
        if space is not None:
            space.end(self, written, wait=True)

    def keep(self, written: int, before: bool) -> None:
        """Settle it for content that is kept now; what was kept `before` takes no room."""
        self.settle(0 if before else written)

    def close(self, written: int = 0) -> None:
        """Close it, which all processes know soon. Does not block."""
        space, self._space = self._space, None
        if space is not None:
            space.end(self, written)


class Space:
    """Asked by the threads of pushes, and tells what each of them may write."""

    def __init__(
        self,
        layout: Layout,
        *,
        limit: Callable[[], int],
        room: Room,
        collect: Callable[[int], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit`: bytes; `room`: keeps some of the disk free; `collect`: removes at least so many bytes that nobody
        needs, where it can, and tells how many; `clock`: one that all processes have."""
        self._layout = layout
        self._limit = limit
        self._room = room
        self._collect = collect
        self._clock = clock
        self._account = Account(layout.run / "space")
        self._turn = layout.run / "space.lock"
        """The lock of whoever measures and collects, which may take long."""
        self._due = NEVER
        """When it is to be measured again, as far as this process knows."""
        self._ended: deque[tuple[Share, int]] = deque()
        """What is still to be told to the account."""
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="local-space")

    def take(self, size: int | None, upload: str = "", begun: int = 0, *, writes: bool = True) -> Share:
        """A push's share: `size` bytes, or some to begin with where it does not say how many it has.

        `upload`: the name of its file, which has `begun` bytes; `writes`: they are not on the disk yet. Raises
        ClientError (DENIED) where they are too many; StoreError.
        """
        share = Share(self, upload, begun)
        try:
            if size is None:
                share.grow(1)
            else:
                self.promise(share, size, size, writes=writes)
        except BaseException:
            if share.room:
                share.close()
            raise
        return share

    def promise(self, share: Share, least: int, wanted: int, *, writes: bool = True) -> None:
        """Give a share from `least` to `wanted` bytes more. Blocks; raises what `take` does."""
        least, came = max(least, 1), self._clock()
        try:
            if came >= self._due:
                self._measure_where_due(came)
            if self._left_after(share, least, wanted) < 0:
                self._make_room(share, least, wanted, came)
        except OSError as error:
            raise StoreError(f"the room of the local registry cannot be told: {error.strerror or error}") from error
        # Not before: nothing cached has to leave for what is refused here, which may say that it has any size.
        if writes:
            self._room.check(least)

    def end(self, share: Share, written: int, *, wait: bool = False) -> None:
        """A push has ended, and written so many bytes. `wait`: until all processes know; it blocks on the disk then."""
        self._ended.append((share, written))
        if wait:
            self._tell()
        else:
            try:
                self._clerk.submit(self._tell)
            except RuntimeError:
                pass  # the program ends, and its promises with it

    def measure_again(self) -> None:
        """Have it measured before anybody is refused: something has left that counts. Blocks for a moment."""
        try:
            with self._account.opened() as sums:
                sums.fresh = NEVER
        except OSError as error:  # it is measured a little later
            logger.warning("the room of the local registry cannot be told: %s", error.strerror)

    def close(self) -> None:
        """Give back what this process has promised. Blocks for a moment."""
        self._clerk.shutdown()
        self._account.close()

    def _left_after(self, share: Share, least: int, wanted: int) -> int:
        """Promise it where there is room: what is left then, and below 0 what is missing."""
        with self._account.opened() as sums:
            self._book(sums)
            self._due = sums.due
            left = self._limit() - sums.used - sums.promised if sums.due > NEVER else 0
            if left < least:
                return left - least
            promised = min(wanted, left)
            self._account.write(share.row, promised)
            sums.promised += promised
            return left - promised

    def _make_room(self, share: Share, least: int, wanted: int, came: float) -> None:
        """Promise it once it was measured, and collected where that is not enough. `came`: when it was asked for."""
        with alone(self._turn, wait=True):
            missing = -self._left_after(share, least, wanted)
            if missing > 0 and least <= self._limit():
                began, deletion = self._clock(), last_let_go(self._layout)
                measures, more = self._is_worth_it(came, began, deletion)
                if measures:
                    self._measure()
                    missing = -self._left_after(share, least, wanted)
                vain = more and missing > 0
                while missing > 0 and more:
                    # Others may take what is free now.
                    more = self._collected(max(missing, self._limit() // SPARE)) >= missing
                    self._measure()
                    missing = -self._left_after(share, least, wanted)
                if vain and missing > 0:
                    with self._account.opened() as sums:
                        sums.vain, sums.empty, sums.deletion = began, self._rest(began), deletion
        if missing > 0:
            raise ClientError(
                f"the local registry is full: local.max_size is {self._limit():,} bytes, {max(least - missing, 0):,} "
                f"are left, and this needs {least:,} more",
                status=403,
                code="DENIED",
            )

    def _is_worth_it(self, came: float, now: float, deletion: int) -> tuple[bool, bool]:
        """Whether to measure, and whether to collect, for who would be refused otherwise."""
        with self._account.opened() as sums:
            if sums.vain > came:
                return False, False  # somebody has done so since
            killed = sums.promised > sum(row.room for row in self._account.rows())
            deleted = deletion != sums.deletion
            return killed or deleted or now >= sums.fresh, deleted or now >= sums.empty

    def _rest(self, began: float) -> float:
        """Until when what began then, and ends now, is not done again."""
        now = self._clock()
        return now + min(REST * (now - began), MAX_REST)

    def _collected(self, wanted: int) -> int:
        try:
            return self._collect(wanted)
        except (MitmCacheError, OSError) as error:
            logger.warning("the local registry could not be collected: %s", error)
            return 0

    def _measure_where_due(self, now: float) -> None:
        """One process does, and the others go on, but for the first time."""
        if now >= self._look_when_due():
            with alone(self._turn, wait=self._due == NEVER) as mine:
                if mine and now >= self._look_when_due():
                    self._measure()

    def _look_when_due(self) -> float:
        with self._account.opened() as sums:
            self._due = sums.due
        return self._due

    def _measure(self) -> None:
        """Set the sums right; whoever has the turn does. Raises StoreError, OSError."""
        began = self._clock()
        # Who has linked something has told it before `removing` begins: it is found, or told later, and never both.
        with removing(self._layout):
            with self._account.opened() as sums:
                self._book(sums)
                rows = self._account.rows()
                used, lost = sums.used, sums.promised - sum(row.room for row in rows)
                # Of what is being written the promise counts, not what there is of it by now. An upload may have been
                # gone on with already while its last promise waits to be dropped.
                active: dict[str, int] = {}
                for row in rows:
                    if row.upload:
                        active[row.upload] = min(row.begun, active.get(row.upload, row.begun))
                there = _pushed(self._layout, active) + sum(active.values())
            held = owned(self._layout)
        there += _sizes(self._layout, held)
        with self._account.opened() as sums:
            # Both at once: what was written by a process that was killed counts as promised up to here, then as used.
            sums.used += there - used
            sums.promised -= lost
            now = self._clock()
            self._due = sums.due = now + max(MEASURED_SECONDS, 100 * (now - began))
            sums.fresh = self._rest(began)

    def _tell(self) -> None:
        try:
            if self._ended:
                with self._account.opened() as sums:
                    self._book(sums)
        except OSError as error:  # the next one tells it
            logger.warning("the room of the local registry cannot be told: %s", error.strerror)

    def _book(self, sums: Sums) -> None:
        """What has ended in this process. While the account is opened."""
        while self._ended:
            share, written = self._ended[0]
            self._account.drop(share.row)
            sums.promised -= share.row.room
            sums.used += written
            share.row.room = 0
            self._ended.popleft()


def measure(layout: Layout) -> int:
    """Bytes of what the local registry holds, each content once, and of uploads. Raises StoreError, OSError."""
    # Uploads first: one that becomes a blob meanwhile counts twice rather than not at all.
    return _pushed(layout) + _sizes(layout, owned(layout))


def _pushed(layout: Layout, leave_out: Container[str] = ()) -> int:
    """Bytes of uploads, but for those of these names."""
    total = 0
    try:
        with os.scandir(layout.uploads) as entries:
            for entry in entries:
                if entry.name not in leave_out:
                    total += _size(entry.path)
    except FileNotFoundError:
        pass  # nothing has been pushed yet
    return total


def _sizes(layout: Layout, digests: set[Digest]) -> int:
    return sum(_size(f"{layout.blobs}/{each.algorithm}/{each.hex[:2]}/{each.hex}") for each in digests)


def _size(path: str) -> int:
    """0 where it is not there."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
