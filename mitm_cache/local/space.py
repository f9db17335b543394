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
from mitm_cache.errors import ClientError, MitmCacheError
from mitm_cache.oci.digest import Digest

MEASURED_SECONDS = 30.0
"""It is measured again after this, and after fifty times as long as measuring took; what comes meanwhile is added."""
TIGHT = 0.9
"""From this part of the limit on it is measured each time: other processes take room too."""

logger = logging.getLogger(__name__)


class Space:
    """Asked by the threads of pushes, and tells what each of them may write."""

    def __init__(
        self,
        layout: Layout,
        *,
        limit: Callable[[], int],
        collect: Callable[[int], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit`: bytes; `collect`: removes at least so many bytes that nobody needs, where it can."""
        self._layout = layout
        self._limit = limit
        self._collect = collect
        self._clock = clock
        self._lock = threading.Lock()
        self._measured = 0
        self._grown = 0
        self._promised = 0
        self._active: dict[str, int] = {}
        self._due = float("-inf")

    def take(self, size: int | None, upload: str = "", begun: int = 0) -> int:
        """Promise `size` bytes to a push, or what there is where it does not say how many it has; how many they are.

        `upload`: the name of its file, which has `begun` bytes. Raises ClientError (DENIED) where they are too many;
        StoreError. To be given back by `give_back`.
        """
        with self._lock:
            left = self._left(size or 0)
            if left < (size or 1):
                try:
                    self._collect((size or 1) - left)
                except (MitmCacheError, OSError) as error:
                    logger.warning("the local registry could not be collected: %s", error)
                self._due = float("-inf")
                left = self._left(size or 0)
            if left < (size or 1):
                raise ClientError(
                    f"the local registry is full: local.max_size is {self._limit():,} bytes, {max(left, 0):,} are "
                    f"left{f', and this has {size:,}' if size else ''}",
                    status=403,
                    code="DENIED",
                )
            promised = left if size is None else size
            self._promised += size or 0
            if size and upload:
                self._active[upload] = begun
            return promised

    def give_back(self, size: int | None, written: int, upload: str = "") -> None:
        """The push that was promised `size` bytes has ended, and written so many."""
        with self._lock:
            self._promised -= size or 0
            self._grown += written
            self._active.pop(upload, None)

    def _left(self, wanted: int) -> int:
        limit, now = self._limit(), self._clock()
        used = self._measured + self._grown + self._promised
        if now >= self._due or used + wanted > limit * TIGHT:
            # Of what is being written the promise counts, not what there is of it by now.
            self._measured, self._grown = measure(self._layout, self._active) + sum(self._active.values()), 0
            self._due = now + max(MEASURED_SECONDS, 50 * (self._clock() - now))
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
