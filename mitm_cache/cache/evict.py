"""Keeping the blobs below a limit: the least recently used leave, counted in exact bytes, by one sweeper per host.

A blob of the last minutes is never removed, nor are the spool's files while somebody writes them. Removing a file
that is being delivered is safe: its readers keep the inode.

What a manifest needs counts as used when the manifest was, and leaves after it: an image without its layers is never
left behind. Images that are pinned or imported do not leave, and those that were synced leave last. What the local
registry holds is not looked at: it does not count, and has a limit of its own.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.catalog import Cached, Catalog
from mitm_cache.cache.entry import Origin
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.links import Links
from mitm_cache.cache.owned import owned, removing
from mitm_cache.oci.digest import Digest
from mitm_cache.registries import LOCAL

LOW_WATER = 0.9
"""A sweep ends at this part of the limit, so that the next one is not due at once."""
KEEP_SECONDS = 300.0
"""A blob younger than this is somebody's current pull."""
ABANDONED_SECONDS = 24 * 3600.0
"""A part file that nobody writes is kept this long for whoever comes back for it."""
QUARANTINE_SECONDS = 7 * 24 * 3600.0
"""How long a damaged blob can be looked at."""
NOTE_SECONDS = 60.0
"""How long the note of a download that has ended may stay for readers in other processes; and a draft of a link."""
TIDY_SECONDS = 3600.0
"""How often drafts are looked for among all links."""


@dataclass(frozen=True, slots=True)
class Used:
    """A blob as the choice of what to remove sees it; `used` in seconds of the epoch.

    `late` ones leave when no others are left; of those used at once the lower `rank` leaves first.
    """

    digest: Digest
    size: int
    used: float
    late: bool = False
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found and did, in bytes and numbers of blobs."""

    total: int
    freed: int
    removed: int


def choose(
    blobs: list[Used], *, limit: int, now: float, room: int = 0, keep: Container[Digest] = frozenset()
) -> list[Used]:
    """Which blobs leave so that the rest is below the low-water mark; none while the limit holds.

    `room`: so many bytes leave in any case. What is in `keep` counts, and stays.
    """
    total = sum(blob.size for blob in blobs)
    mark = min(limit * LOW_WATER if total > limit else total, total - room)
    leaving = []
    old = [blob for blob in blobs if is_old(blob.used, now) and blob.digest not in keep]
    for blob in sorted(old, key=lambda blob: (blob.late, blob.used, blob.rank, blob.size, blob.digest)):
        if total <= mark:
            break
        leaving.append(blob)
        total -= blob.size
    return leaving


def is_old(used: float, now: float) -> bool:
    """Whether a blob is no part of a pull that goes on; a time to come is that of a clock which was wrong, and as far
    away."""
    return abs(now - used) > KEEP_SECONDS


def is_kept(image: Cached) -> bool:
    """Whether an image stays until somebody removes it: it is pinned, or there may be no other copy."""
    return image.pinned or image.origin is Origin.IMPORTED


def ranked(blobs: list[Used], catalog: Catalog) -> list[Used]:
    """Each blob used as late as any manifest that needs it, and after that manifest in the order of leaving."""
    own = {blob.digest: blob.used for blob in blobs}
    used, rank = dict(own), dict.fromkeys(own, 0)
    for manifest in catalog.manifests():
        for position, digest in enumerate(catalog.needs(manifest)):
            if digest in own and manifest in own:
                used[digest] = max(used[digest], own[manifest])
                rank[digest] = max(rank[digest], position)
    late = catalog.needed_by(image for image in catalog.images if image.origin is Origin.SYNCED)
    return [
        Used(blob.digest, blob.size, used[blob.digest], late=blob.digest in late, rank=rank[blob.digest])
        for blob in blobs
    ]


@contextmanager
def alone(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Nobody else removes blobs, or says which are to stay, meanwhile; False where somebody does and `wait` is not."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


class Sweeper:
    """Sweeps a data directory; blocks on the disk, so it runs in a thread."""

    def __init__(
        self,
        *,
        layout: Layout,
        blobs: Blobs,
        links: Links,
        limit: Callable[[int], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`limit`: bytes of blobs allowed, given the size in bytes of the file system."""
        self._layout = layout
        self._blobs = blobs
        self._links = links
        self._spool = layout.spool
        self._quarantine = layout.quarantine
        self._limit = limit
        self._clock = clock
        self._tidied = -TIDY_SECONDS

    def sweep(self, room: int = 0, *, whole: bool = False) -> Swept | None:
        """Remove what is over the limit, and `room` bytes in any case, and what downloads left behind.

        `whole`: all of `room` or nothing, for who can do nothing with less: the size that a registry or a client says
        may be any, and is not to empty the cache. None while another process sweeps.
        """
        with alone(self._layout.evicting) as free:
            if not free:
                return None
            now = self._clock()
            self._tidy_spool(now)
            self._tidy_quarantine(now)
            self._tidy_links(now)
            own = owned(self._layout)
            found = [Used(digest, status.st_size, status.st_mtime) for digest, status in self._blobs.scan()]
            found = [blob for blob in found if blob.digest not in own]
            leaving = self._remove(*self._choose(found, now, room, whole=whole))
            if leaving:
                self._links.forget({blob.digest for blob in leaving})
            return Swept(sum(b.size for b in found), sum(b.size for b in leaving), len(leaving))

    def _remove(self, leaving: list[Used], catalog: Catalog | None) -> list[Used]:
        """Remove these blobs, but for those that were pushed, or linked by a push, meanwhile, or used by anybody."""
        if catalog is None:
            return []
        with removing(self._layout):
            # Choosing may have taken long: who has found one of them here since counts on all of its image.
            again = [blob.digest for blob in leaving if not self._is_old(blob.digest)]
            stay = owned(self._layout) | {digest for each in again for digest in (each, *catalog.needs(each))}
            removed = []
            for blob in leaving:
                if blob.digest not in stay and self._is_old(blob.digest):
                    self._blobs.remove(blob.digest)
                    removed.append(blob)
        return removed

    def _is_old(self, digest: Digest) -> bool:
        try:
            return is_old(self._blobs.path(digest).stat().st_mtime, self._clock())
        except FileNotFoundError:
            return True

    def _choose(self, found: list[Used], now: float, room: int, *, whole: bool) -> tuple[list[Used], Catalog | None]:
        """What leaves, and the catalog that it was chosen by; None where nothing does."""
        limit = self._limit(shutil.disk_usage(self._spool).total)
        if not choose(found, limit=limit, now=now, room=room):
            return [], None
        catalog = Catalog(self._layout.root)
        catalog.save()
        keep = catalog.needed_by(image for image in catalog.images if is_kept(image))
        blobs = ranked(found, catalog)
        leaving = choose(blobs, limit=limit, now=now, room=room, keep=keep)
        if whole and sum(blob.size for blob in leaving) < room:
            leaving = choose(blobs, limit=limit, now=now, keep=keep)
        return leaving, catalog

    def _tidy_spool(self, now: float) -> None:
        parts = {path.stem for path in self._spool.glob("*.part")}
        for path in self._spool.iterdir():
            try:
                age = abs(now - path.stat().st_mtime)
                if path.suffix == ".part":
                    if age > ABANDONED_SECONDS:
                        self._remove_abandoned(path)
                elif path.stem not in parts and age > NOTE_SECONDS:
                    path.unlink(missing_ok=True)
            except (FileNotFoundError, IsADirectoryError):
                continue  # its download ended meanwhile; or somebody has put a folder here

    def _tidy_links(self, now: float) -> None:
        """Remove what a process that was killed was about to make a link, and the folders of tags of which nothing is
        known any more. Walks the whole tree, so not each time."""
        if abs(now - self._tidied) < TIDY_SECONDS:
            return
        self._tidied = now
        for root, _, names in os.walk(self._layout.links):
            for name in names:
                path = Path(root, name)
                try:
                    if name.startswith(".") and abs(now - path.stat().st_mtime) > NOTE_SECONDS:
                        path.unlink(missing_ok=True)
                except FileNotFoundError:
                    continue  # it is a link by now
            within = Path(root).relative_to(self._layout.links).parts
            if within[-2:-1] == ("_tags",) and within[0] != LOCAL:  # whose collection does that
                with suppress(OSError):  # something is known of it
                    os.rmdir(root)

    def _tidy_quarantine(self, now: float) -> None:
        if not self._quarantine.is_dir():
            return
        for path in self._quarantine.iterdir():
            with suppress(FileNotFoundError, IsADirectoryError):  # somebody looks after it too
                if now - path.stat().st_mtime > QUARANTINE_SECONDS:
                    path.unlink()

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
