"""Uploads: files that grow, whose size is the offset. Any process can carry on with them, also after a crash.

Who writes holds the file's lock. The hash of what there is is kept in memory where this process has written it; any
other one reads the file once. An identity cannot be guessed, and is good for one repository only.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from mitm_cache.cache.proof import CHUNK
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.reference import Repository

if TYPE_CHECKING:
    from hashlib import _Hash

ALGORITHM = "sha256"
"""What is hashed on the way; another algorithm reads the file at the end."""
MAX_KEPT = 1024
"""Uploads of which the hash is kept between two requests."""
MAX_BEGUN = 10_000
"""Uploads that are begun and not ended: to begin one costs a client nothing."""
LOOK = 256
"""So many are begun between two counts of them."""
_ID = re.compile(r"[0-9a-f]{48}")
_OWN = 16
"""Digits of an identity that are its repository's."""


class Upload:
    """One upload, while a request works on it: nobody else does. To be closed."""

    def __init__(self, uploads: "Uploads", name: str, fd: int) -> None:
        self._uploads = uploads
        self.name = name
        self.path = uploads.folder / name
        self._fd = fd
        status = os.fstat(fd)
        self.inode = status.st_ino
        self.removed = False
        self.size = status.st_size
        self._known = uploads.recall(name, self.size)
        """How many of the first bytes have been hashed, and to what."""
        self._hash: _Hash | None = None
        """Of all bytes."""
        if self._known is not None and self._known[0] == self.size:
            self._hash = self._known[1]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write at the end. Raises StoreError; what was written before it stays."""
        view = memoryview(data).cast("B")
        while view:
            try:
                written = os.write(self._fd, view)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                words = "the disk is full" if full else error.strerror
                raise StoreError(f"the upload cannot be written: {words}") from error
            if self._hash is not None:
                self._hash.update(view[:written])
            self.size += written
            view = view[written:]

    def prove(self, algorithm: str) -> str:
        """The hash of all of it, which is on the disk then. Blocks for as long as that takes; raises StoreError."""
        try:
            os.fdatasync(self._fd)
            if algorithm != ALGORITHM or self._hash is None:
                return self._read(hashlib.new(algorithm), 0).hexdigest()
        except OSError as error:
            raise StoreError(f"the upload cannot be kept: {error.strerror}") from error
        return self._hash.hexdigest()

    def catch_up(self) -> None:
        """Hash what another process, or a life before, has written. Blocks; raises StoreError."""
        if self._hash is None:
            position, state = self._known or (0, hashlib.new(ALGORITHM))
            self._known = None
            try:
                self._hash = self._read(state, position)
            except OSError as error:
                raise StoreError(f"the upload cannot be read: {error.strerror}") from error

    def _read(self, state: "_Hash", position: int) -> "_Hash":
        buffer = memoryview(bytearray(CHUNK))
        while size := os.preadv(self._fd, [buffer], position):
            state.update(buffer[:size])
            position += size
        return state

    def remove(self) -> None:
        """It is wanted no more."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.removed = True
        self._hash = self._known = None

    def adopted(self) -> None:
        """Its file is a blob now."""
        self._hash = self._known = None

    def close(self) -> None:
        """Let others work on it; what was written stays. Closing twice does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._hash is not None:
                self._uploads.keep(self.name, self.size, self._hash)
            elif self._known is not None:
                self._uploads.keep(self.name, *self._known)
            if self.removed:
                self._uploads.later(partial(os.close, fd))  # now the disk is freed: of gigabytes that takes seconds
            else:
                os.close(fd)


class Uploads:
    """The folder of uploads. Its methods block on the disk."""

    def __init__(self, folder: Path, later: Callable[[Callable[[], None]], None] = lambda work: work()) -> None:
        """`later`: has something done that nobody waits for."""
        self.folder = folder
        self.later = later
        self._lock = threading.Lock()
        self._hashes: OrderedDict[str, tuple[int, _Hash]] = OrderedDict()
        self._begun = count()

    def begin(self, repository: Repository) -> Upload:
        """A new one; where there are too many, others leave. Raises StoreError."""
        if next(self._begun) % LOOK == 0:
            self._drop_some()
        name = secrets.token_hex(16) + _mark(repository)
        self.keep(name, 0, hashlib.new(ALGORITHM))
        try:
            fd = os.open(self.folder / name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise StoreError(f"an upload cannot be begun: {error.strerror}") from error
        return Upload(self, name, fd)

    def size(self, repository: Repository, name: str) -> int:
        """How much there is of an upload, in bytes. Raises ClientError (BLOB_UPLOAD_UNKNOWN), StoreError."""
        _check(repository, name)
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            raise unknown() from None
        except OSError as error:
            raise StoreError(f"upload {name} cannot be read: {error.strerror}") from error

    def open(self, repository: Repository, name: str) -> Upload | None:
        """Carry on with an upload; None while another request works on it. Raises ClientError and StoreError."""
        _check(repository, name)
        try:
            fd = os.open(self.folder / name, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            raise unknown() from None
        except OSError as error:
            raise StoreError(f"upload {name} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have become a blob between the two.
            here = os.stat(self.folder / name).st_ino == os.fstat(fd).st_ino
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            here = False
        if not here:
            os.close(fd)
            raise unknown()
        return Upload(self, name, fd)

    def keep(self, name: str, size: int, state: "_Hash") -> None:
        """Remember the hash of an upload's first bytes. Any thread may call it."""
        with self._lock:
            self._hashes[name] = size, state
            self._hashes.move_to_end(name)
            while len(self._hashes) > MAX_KEPT:
                self._hashes.popitem(last=False)

    def recall(self, name: str, size: int) -> "tuple[int, _Hash] | None":
        """How many of the first bytes of an upload that has this size have been hashed here, and to what; once."""
        with self._lock:
            found = self._hashes.pop(name, None)
        # Files only grow: what another process has written since comes behind it.
        return found if found is not None and found[0] <= size else None

    def _drop_some(self) -> None:
        """Empty ones leave first, then those that nobody has gone on with for the longest time."""
        found = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if _ID.fullmatch(entry.name):
                        with suppress(FileNotFoundError):  # it has ended meanwhile
                            status = entry.stat()
                            found.append((status.st_size > 0, status.st_mtime, entry.path))
            if len(found) > MAX_BEGUN:
                for _, _, path in sorted(found)[: len(found) - MAX_BEGUN + LOOK]:
                    with suppress(FileNotFoundError):
                        drop(Path(path))
        except OSError as error:
            raise StoreError(f"an upload cannot be begun: {error.strerror}") from error


def drop(path: Path) -> bool:
    """Whether an upload was removed: one that somebody works on stays. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _mark(repository: Repository) -> str:
    return hashlib.sha256(str(repository).encode()).hexdigest()[:_OWN]


def _check(repository: Repository, name: str) -> None:
    if not _ID.fullmatch(name) or not name.endswith(_mark(repository)):
        raise unknown()


def unknown() -> ClientError:
    """The error for an upload that is not there, or not there any more."""
    return ClientError("there is no such upload here", status=404, code="BLOB_UPLOAD_UNKNOWN")
