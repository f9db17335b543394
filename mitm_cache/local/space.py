"""The room that the local registry may take: what it holds, what is being pushed, and the limit of both."""

import logging
import os
import threading
import time
from collections.abc import Callable, Container
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.owned import owned
from mitm_cache.cache.room import Room
from mitm_cache.errors import ClientError, MitmCacheError
from mitm_cache.oci.digest import Digest

MEASURED_SECONDS = 30.0
"""It is measured again after this, and after fifty times as long as measuring took; what comes meanwhile is added."""
TIGHT = 0.9
"""From this part of the limit on it is measured each time: other processes take room too."""

PIECE, MAX_PIECE = 16 << 20, 256 << 20
"""Bytes that a push which does not say how many it has is promised at a time: as many as it has got, within these."""

logger = logging.getLogger(__name__)


class Share:
    """What one push has been promised, in bytes. To be closed, with what it has written; closing twice does nothing."""

    def __init__(self, space: "Space", upload: str, begun: int) -> None:
        self._space: Space | None = space
        self.upload, self.begun = upload, begun
        self.room = 0

    def grow(self, least: int) -> None:
        """Have it promised so many bytes more at least: who does not say how much comes gets it piece by piece.

        Raises ClientError (DENIED), StoreError.
        """
        assert self._space is not None
        wanted = max(least, PIECE, min(self.room, MAX_PIECE))
        self._space.promise(self, least, wanted)

    def close(self, written: int = 0) -> None:
        """Blocks for no longer than a moment."""
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
        collect: Callable[[int], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit`: bytes; `room`: keeps some of the disk free; `collect`: removes at least so many bytes that nobody
        needs, where it can."""
        self._layout = layout
        self._limit = limit
        self._room = room
        self._collect = collect
        self._clock = clock
        self._turn = threading.Lock()
        """One measures and collects at a time, which may take long."""
        self._lock = threading.Lock()
        """Of the numbers below, for moments: the event loop takes it too."""
        self._measured = 0
        self._grown = 0
        self._promised = 0
        self._active: dict[str, int] = {}
        self._due = float("-inf")

    def take(self, size: int | None, upload: str = "", begun: int = 0, *, writes: bool = True) -> Share:
        """A push's share: `size` bytes, or some to begin with where it does not say how many it has.

        `upload`: the name of its file, which has `begun` bytes; `writes`: they are not on the disk yet. Raises
        ClientError (DENIED) where they are too many; StoreError.
        """
        share = Share(self, upload, begun)
        if size is None:
            share.grow(1)
        else:
            self.promise(share, size, size, writes=writes)
        return share

    def promise(self, share: Share, least: int, wanted: int, *, writes: bool = True) -> None:
        """Give a share from `least` to `wanted` bytes more. Blocks; raises what `take` does."""
        if writes:
            self._room.check(least)
        least = max(least, 1)
        with self._turn:
            left = self._left(wanted)
            if left < least:
                try:
                    self._collect(least - left)
                except (MitmCacheError, OSError) as error:
                    logger.warning("the local registry could not be collected: %s", error)
                self._due = float("-inf")
                left = self._left(wanted)
            if left < least:
                raise ClientError(
                    f"the local registry is full: local.max_size is {self._limit():,} bytes, {max(left, 0):,} are "
                    f"left, and this needs {least:,} more",
                    status=403,
                    code="DENIED",
                )
            promised = min(wanted, left)
            with self._lock:
                self._promised += promised
                share.room += promised
                if share.upload:
                    self._active[share.upload] = share.begun

    def end(self, share: Share, written: int) -> None:
        """A push has ended, and written so many bytes."""
        with self._lock:
            self._promised -= share.room
            self._grown += written
            self._active.pop(share.upload, None)

    def _left(self, wanted: int) -> int:
        limit, now = self._limit(), self._clock()
        with self._lock:
            used = self._measured + self._grown + self._promised
            active, grown = dict(self._active), self._grown
        if now >= self._due or used + wanted > limit * TIGHT:
            # Of what is being written the promise counts, not what there is of it by now. What ends meanwhile counts
            # as grown.
            measured = measure(self._layout, active) + sum(active.values())
            with self._lock:
                self._measured, self._grown = measured, self._grown - grown
            self._due = now + max(MEASURED_SECONDS, 50 * (self._clock() - now))
        with self._lock:
            return limit - self._measured - self._grown - self._promised


def measure(layout: Layout, leave_out: Container[str] = ()) -> int:
    """Bytes of what the local registry holds, each content once, and of uploads but for those of these names."""
    blobs = Blobs(layout.blobs)
    total = sum(size_of(blobs, digest) for digest in owned(layout))
    try:
        with os.scandir(layout.uploads) as entries:
            return total + sum(_size(Path(entry.path)) for entry in entries if entry.name not in leave_out)
    except FileNotFoundError:
        return total


def size_of(blobs: Blobs, digest: Digest) -> int:
    """Bytes of a blob, 0 where it is not here."""
    return _size(blobs.path(digest))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
