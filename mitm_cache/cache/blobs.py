"""Verified content as plain files named by digest: existence is the index, a rename is the commit."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest

RECENCY = 3600.0
"""Seconds: how fine the record of a blob's last use is. A HIT writes at most this often."""


class Blob:
    """An open, complete blob; it can be read to its end even when its file is evicted meanwhile."""

    __slots__ = ("_fd", "size")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def fileno(self) -> int:
        return self._fd

    async def readable(self, position: int, stop: int) -> int:
        """All of it is proven: up to `stop`, at once."""
        return stop

    def at_hand(self, start: int, length: int) -> bytes | None:
        """Bytes that the page cache holds; None where the disk would have to be waited for."""
        data = bytearray(length)
        try:
            size = os.preadv(self._fd, [data], start, os.RWF_NOWAIT)
        except OSError:  # not in the page cache, or a file system that cannot tell
            return None
        return bytes(data) if size == length else None

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Blobs:
    """The tree `<algorithm>/<first two hex digits>/<hex>`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: Digest) -> Path:
        """Where a blob is, or would be."""
        return Path(self._name(digest))

    def _name(self, digest: Digest) -> str:
        # As text: building Path objects is a good part of what a small HIT costs.
        return f"{self._folder}/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here."""
        return os.path.exists(self._name(digest))

    def open(self, digest: Digest) -> Blob | None:
        """The blob, marked as used, or None where it is not here. Raises StoreError where it cannot be read."""
        try:
            fd = os.open(self._name(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be read: {error.strerror}") from error
        self._touch(fd)
        return Blob(fd)

    @staticmethod
    def _touch(fd: int) -> None:
        now = time.time()
        status = os.fstat(fd)
        if status.st_mtime < now - RECENCY:
            try:
                os.utime(fd, (now, now))
            except OSError:
                pass  # a read-only disk still serves

    def adopt(self, digest: Digest, path: Path) -> None:
        """Make a verified file of the same file system the blob."""
        target = self.path(digest)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.replace(target)

    def remove(self, digest: Digest) -> None:
        """Unlink a blob; who has it open reads on."""
        self.path(digest).unlink(missing_ok=True)

    def measure(self) -> tuple[int, int]:
        """How many blobs there are, and their bytes; a pass over all of them."""
        count = size = 0
        for _, status in self.scan():
            count += 1
            size += status.st_size
        return count, size

    def scan(self) -> Iterator[tuple[Digest, os.stat_result]]:
        """Every blob with its status, in no order; what is no blob is passed over."""
        for shard in self._folder.glob("*/*/"):
            with os.scandir(shard) as entries:
                for entry in entries:
                    try:
                        yield Digest.parse(f"{shard.parent.name}:{entry.name}"), entry.stat()
                    except (ClientError, FileNotFoundError):
                        continue
