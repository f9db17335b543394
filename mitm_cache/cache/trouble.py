"""What the disk refuses: said loudly, but not a thousand times."""

import logging
import threading
import time
from collections.abc import Callable

from mitm_cache.errors import StoreError

SAY_SECONDS = 60.0
"""A warning at most this often."""

logger = logging.getLogger(__name__)


class Trouble:
    """Told of every refusal, from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._said = float("-inf")
        self.count = 0

    def report(self, error: StoreError) -> None:
        """Count a refusal, and log it unless one has been logged within the minute."""
        with self._lock:
            self.count += 1
            now = self._clock()
            if now - self._said < SAY_SECONDS:
                return
            self._said = now
            count = self.count
        logger.warning("%s: pulls are passed through uncached (%d so far; mitm-cache doctor)", error.message, count)
