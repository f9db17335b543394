"""Keeping the blobs below a limit: the least recently used leave, counted in exact bytes, by one sweeper per host.

A blob of the last minutes is never removed, nor are the spool's files while somebody writes them. Removing a file
that is being delivered is safe: its readers keep the inode.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.links import Links
from mitm_cache.oci.digest import Digest

LOW_WATER = 0.9
"""A sweep ends at this part of the limit, so that the next one is not due at once."""
KEEP_SECONDS = 300.0
"""A blob younger than this is somebody's current pull."""
ABANDONED_SECONDS = 24 * 3600.0
"""A part file that nobody writes is kept this long for whoever comes back for it."""
NOTE_SECONDS = 60.0
"""How long the note of a download that has ended may stay for readers in other processes."""


@dataclass(frozen=True, slots=True)
class Used:
    """A blob as the choice of what to remove sees it; `used` in seconds of the epoch."""

    digest: Digest
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found and did, in bytes and numbers of blobs."""

    total: int
    freed: int
    removed: int


def choose(blobs: list[Used], *, limit: int, now: float) -> list[Used]:
    """Which blobs leave so that the rest is below the low-water mark; none while the limit holds."""
    total = sum(blob.size for blob in blobs)
    if total <= limit:
        return []
    leaving = []
    for blob in sorted(blobs, key=lambda blob: (blob.used, blob.size, blob.digest)):
        if total <= limit * LOW_WATER:
            break
        if now - blob.used > KEEP_SECONDS:
            leaving.append(blob)
            total -= blob.size
    return leaving


class Sweeper:
    """Sweeps a data directory; blocks on the disk, so it runs in a thread."""

    def __init__(
        self,
        *,
        blobs: Blobs,
        links: Links,
        spool: Path,
        lock: Path,
        limit: Callable[[int], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`limit`: bytes of blobs allowed, given the size in bytes of the file system."""
        self._blobs = blobs
        self._links = links
        self._spool = spool
        self._lock = lock
        self._limit = limit
        self._clock = clock

    def sweep(self) -> Swept | None:
        """Remove what is over the limit and what downloads left behind; None while another process sweeps."""
        with self._alone() as alone:
            if not alone:
                return None
            now = self._clock()
            self._tidy_spool(now)
            found = [Used(digest, status.st_size, status.st_mtime) for digest, status in self._blobs.scan()]
            leaving = choose(found, limit=self._limit(shutil.disk_usage(self._spool).total), now=now)
            for blob in leaving:
                self._blobs.remove(blob.digest)
            if leaving:
                self._links.forget({blob.digest for blob in leaving})
            return Swept(sum(b.size for b in found), sum(b.size for b in leaving), len(leaving))

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def _tidy_spool(self, now: float) -> None:
        parts = {path.stem for path in self._spool.glob("*.part")}
        for path in self._spool.iterdir():
            try:
                age = now - path.stat().st_mtime
                if path.suffix == ".part":
                    if age > ABANDONED_SECONDS:
                        self._remove_abandoned(path)
                elif path.stem not in parts and age > NOTE_SECONDS:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # its download ended meanwhile

    @staticmethod
    def _remove_abandoned(path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # somebody writes it
        finally:
            os.close(fd)
