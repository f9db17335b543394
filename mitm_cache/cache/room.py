"""Whether the disk has room: what is to be kept free, and making some before a download has to go without."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mitm_cache.cache.evict import Swept
from mitm_cache.errors import StoreError

SWEEP_SECONDS = 5.0
"""A sweep that has freed too little is not tried again before."""
PATIENCE = 10.0
"""Seconds that somebody else's sweep is waited for."""
TICK = 0.05


class Room:
    """Asked by the threads that write."""

    def __init__(
        self,
        folder: Path,
        *,
        least: Callable[[int], int],
        sweep: Callable[[int], Swept | None],
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`least`: bytes to keep free, given the size in bytes of the file system; `sweep`: removes at least so many
        bytes of blobs where it can, None while another process does; `stopped`: whether the service is ending."""
        self._folder = folder
        self._least = least
        self._sweep = sweep
        self._stopped = stopped
        self._clock = clock
        self._lock = threading.Lock()
        self._tried = float("-inf")
        self.swept: deque[Swept] = deque(maxlen=1000)
        """What sweeps have found since somebody last looked."""

    def short(self, wanted: int) -> int:
        """Bytes that are missing for `wanted` more; 0 or less where there is room. Raises StoreError."""
        try:
            status = os.statvfs(self._folder)
        except OSError as error:
            raise StoreError(f"the cache cannot be read: {error.strerror}") from error
        least = self._least(status.f_frsize * status.f_blocks)
        return wanted + least - status.f_frsize * status.f_bavail

    def check(self, wanted: int) -> None:
        """Make room for `wanted` bytes. Raises StoreError where there is none to be had."""
        if self.short(wanted) > 0 and not self.make(wanted):
            raise StoreError("the disk is full: cache.min_free is to stay free, and nothing old can be evicted")

    def make(self, wanted: int) -> bool:
        """Evict so much that `wanted` bytes have room; whether they have. One thread evicts, the others wait for it."""
        with self._lock:
            missing = self.short(wanted)
            if missing > 0 and self._clock() - self._tried >= SWEEP_SECONDS:
                missing = self._free(wanted, missing)
                # Who has made room may do so at once again: downloads come by dozens.
                self._tried = self._clock() if missing > 0 else float("-inf")
        return missing <= 0

    def _free(self, wanted: int, missing: int) -> int:
        """Bytes that are still missing after a sweep; where somebody else sweeps, by other needs, after both."""
        until = self._clock() + PATIENCE
        while missing > 0:
            try:
                swept = self._sweep(missing)
            except OSError:
                break
            if swept is not None:
                self.swept.append(swept)
                return self.short(wanted)
            if self._clock() >= until or self._stopped():
                break
            time.sleep(TICK)
            missing = self.short(wanted)
        return missing
