"""What all processes on a data directory have promised to pushes, and what is there: sums and rows in small files.

`run/space/account` has the sums. Each process has a file of rows beside it, one for each promise, which it holds by
`flock` for as long as it lives: what a process that was killed has promised ends with it. Nothing here is worth an
fsync: the first process on a data directory finds nothing but what it measures itself.
"""

import fcntl
import math
import os
import secrets
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SUMS = struct.Struct("<8sqqddddq")
_ROW = struct.Struct("<48sqq")
_MARK = b"space 2\n"
"""What the sums begin with."""
NEVER = -math.inf


@dataclass(slots=True)
class Sums:
    """`used` and `promised` in bytes; times in seconds of the clock that all processes have.

    `used` may be too high, since nobody tells what leaves, and is right when it has been measured.
    """

    used: int = 0
    promised: int = 0
    due: float = NEVER
    """When it is to be measured again; `NEVER` where it has not been yet."""
    fresh: float = NEVER
    """Until when it is not measured for who would be refused."""
    vain: float = NEVER
    """When somebody last began to look for room and found too little."""
    empty: float = NEVER
    """Until when nothing is looked for then, unless there is another deletion than this."""
    deletion: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """One promise: `room` bytes more for an upload that has `begun` bytes; "" is for what has no upload."""

    upload: str = ""
    begun: int = 0
    room: int = 0
    place: int = -1
    """Its number in the file of its process; -1 while it is not there."""


class Account:
    """Its methods block on the disk and on other processes, for moments, and raise OSError. For any thread."""

    def __init__(self, folder: Path) -> None:
        """`folder`: made when it is first needed."""
        self._folder = folder
        self._path = folder / "account"
        self._own: tuple[str, int] | None = None
        """The name of this process's file, and its descriptor."""
        self._let_go: Callable[[], object] = lambda: None
        self._places = 0
        self._free: list[int] = []

    def close(self) -> None:
        """Let go of this process's file, as if the process had ended."""
        self._own = None
        self._let_go()

    @contextmanager
    def opened(self) -> Iterator[Sums]:
        """The sums, which nobody else sees or changes meanwhile; they are kept as they are in the end."""
        fd = self._open()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if self._own is None:
                self._join(fd)
            before = os.pread(fd, _SUMS.size, 0)
            sums = _parse(before)
            yield sums
            times = sums.due, sums.fresh, sums.vain, sums.empty
            after = _SUMS.pack(_MARK, sums.used, sums.promised, *times, sums.deletion)
            if after != before:
                os.pwrite(fd, after, 0)
        finally:
            os.close(fd)

    def write(self, row: Row, more: int) -> None:
        """Have others see that a row is so many bytes more. While it is `opened`."""
        if row.place < 0:
            if not self._free:
                self._free.append(self._places)
                self._places += 1
            row.place = self._free.pop()
        self._put(row.place, _ROW.pack(row.upload.encode(), row.begun, row.room + more))
        row.room += more

    def drop(self, row: Row) -> None:
        """Have nobody see a row any more. While it is `opened`."""
        if row.place >= 0:
            self._put(row.place, bytes(_ROW.size))
            self._free.append(row.place)
            row.place = -1

    def rows(self) -> list[Row]:
        """Those of all processes that live; the files of others are removed. While it is `opened`."""
        found = []
        for path in self._files():
            data = self._read(path)
            if data is None:
                path.unlink(missing_ok=True)
                continue
            whole = len(data) - len(data) % _ROW.size
            for upload, begun, room in _ROW.iter_unpack(data[:whole]):
                if room:
                    found.append(Row(upload.rstrip(b"\0").decode(), begun, room))
        return found

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            return os.open(self._path, flags, 0o600)

    def _join(self, fd: int) -> None:
        """Begin this process's file. Who is alone begins the sums anew: they may be from before a power failure."""
        if all(self._read(path) is None for path in self._files()):
            os.ftruncate(fd, 0)
        name = f"{os.getpid()}.{secrets.token_hex(4)}"
        own = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._let_go = weakref.finalize(self, os.close, own)
        fcntl.flock(own, fcntl.LOCK_EX)
        self._own, self._places, self._free = (name, own), 0, []

    def _files(self) -> list[Path]:
        return [self._folder / name for name in os.listdir(self._folder) if name[:1].isdigit()]

    def _read(self, path: Path) -> bytes | None:
        """The rows of a process, None where it lives no more."""
        if self._own is None or path.name != self._own[0]:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # it holds it
            else:
                return None
            finally:
                os.close(fd)
        return path.read_bytes()

    def _put(self, place: int, data: bytes) -> None:
        assert self._own is not None
        os.pwrite(self._own[1], data, place * _ROW.size)


def _parse(data: bytes) -> Sums:
    if len(data) != _SUMS.size or not data.startswith(_MARK):
        return Sums()
    return Sums(*_SUMS.unpack(data)[1:])
