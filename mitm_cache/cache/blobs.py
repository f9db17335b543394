"""Verified content as plain files named by digest: existence is the index, a rename is the commit."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mitm_cache.errors import ClientError, IntegrityError, StoreError
from mitm_cache.oci.digest import Digest

RECENCY = 3600.0
"""Seconds: how fine the record of a blob's last use is. A HIT writes at most this often."""

MAX_PROVEN = 1 << 18
"""Files that are known to be undamaged; beyond it they are proven anew."""


_DOUBTED = -1
"""In place of the size of a file that was found undamaged."""


class Blob:
    """An open, complete blob; it can be read to its end even when its file is evicted meanwhile.

    `proof`: what will tell whether it is damaged; None where it is known not to be.
    """

    __slots__ = ("_doubt", "_fd", "inode", "proof", "size")

    reason = ""

    def __init__(
        self, fd: int, status: os.stat_result | None = None, doubt: Callable[[int], None] = lambda _: None
    ) -> None:
        """`doubt` is told the inode of what the disk does not give back."""
        self._fd = fd
        self._doubt = doubt
        status = status or os.fstat(fd)
        self.size = status.st_size
        self.inode = status.st_ino
        self.proof: asyncio.Future[bool] | None = None

    def fileno(self) -> int:
        return self._fd

    async def readable(self, position: int, stop: int) -> int:
        """Up to `stop`, at once, unless it is still being proven: then all but the last byte."""
        if self.proof is None:
            return stop
        if not self.proof.done() and position < stop - 1:
            return stop - 1
        if not await asyncio.shield(self.proof):
            raise IntegrityError("the cached content was damaged; it is fetched anew when it is asked for again")
        return stop

    async def receive(self) -> bytes:
        """All of it is in the file."""
        return b""

    def doubt(self) -> None:
        """The disk has not given it back: it is to be proven before anybody is given it again."""
        self._doubt(self.inode)

    def at_hand(self, start: int, length: int) -> bytes | None:
        """Bytes that the page cache holds; None where the disk, or a proof, would have to be waited for."""
        if self.proof is not None:
            return None
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
        self._proven: dict[int, int] = {}

    def is_proven(self, blob: Blob) -> bool:
        """Whether this very file, in this size, was found undamaged since the start."""
        return self._proven.get(blob.inode) == blob.size

    def is_doubted(self, blob: Blob) -> bool:
        """Whether the disk has not given this file back when it was last read."""
        return self._proven.get(blob.inode) == _DOUBTED

    def doubt(self, inode: int) -> None:
        """Record that a file could not be read."""
        self._proven[inode] = _DOUBTED

    def vouch(self, inode: int, size: int) -> None:
        """Record that a file is undamaged. Any thread may call it."""
        if len(self._proven) >= MAX_PROVEN:
            self._proven.clear()
        self._proven[inode] = size

    def path(self, digest: Digest) -> Path:
        """Where a blob is, or would be."""
        return Path(self.name(digest))

    def name(self, digest: Digest) -> str:
        """The same as text: building Path objects is a good part of what a small HIT costs, or a look at all blobs."""
        return f"{self._folder}/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here."""
        return os.path.exists(self.name(digest))

    def renew(self, digest: Digest) -> bool:
        """Whether the blob is here; it counts as new then, and nobody removes it within minutes: it is to be linked."""
        try:
            os.utime(self.name(digest))
        except FileNotFoundError:
            return False
        except OSError:
            return self.has(digest)  # a read-only disk removes nothing
        return True

    def open(self, digest: Digest) -> Blob | None:
        """The blob, marked as used, or None where it is not here. Raises StoreError where it cannot be read."""
        try:
            fd = os.open(self.name(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be read: {error.strerror}") from error
        status = os.fstat(fd)
        self._touch(fd, status.st_mtime)
        return Blob(fd, status, self.doubt)

    @staticmethod
    def _touch(fd: int, used: float) -> None:
        now = time.time()
        # A time to come is that of a clock which was wrong: it would keep the blob for ever.
        if abs(now - used) > RECENCY:
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
        """Every blob with its status, in no order; what is no blob, or cannot be looked at, is passed over."""
        for digest, entry in self._entries():
            try:
                yield digest, entry.stat()
            except OSError:
                continue  # it has left meanwhile; or the disk is damaged there, and the others count all the same

    def names(self) -> Iterator[Digest]:
        """Every blob, in no order; none of them is looked at."""
        return (digest for digest, _ in self._entries())

    def _entries(self) -> Iterator[tuple[Digest, os.DirEntry[str]]]:
        for shard in self._folder.glob("*/*/"):
            algorithm = shard.parent.name
            try:
                with os.scandir(shard) as found:
                    entries = list(found)
            except OSError:
                continue
            for entry in entries:
                try:
                    yield Digest.parse(f"{algorithm}:{entry.name}"), entry
                except ClientError:
                    continue
