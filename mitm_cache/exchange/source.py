"""Where an import is read from: a tar archive, or a folder. Only plain files in it count, and no link leads out."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from mitm_cache.errors import ClientError, StoreError
from mitm_cache.exchange.tar import CHUNK, FileTape, Member, read_members

MAX_FOLDERS = 100_000
MAX_DEPTH = 16
"""Of folders that are looked through."""
MAX_LINKS = 8
"""Links of an archive that lead to one another."""


class Source(Protocol):
    """Files by their names, with slashes between the parts. Its methods raise ClientError and StoreError."""

    label: str

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content, a MiB at a time."""

    def names(self) -> Iterator[str]:
        """Every file's name."""

    def close(self) -> None: ...


def read(source: Source, name: str, limit: int) -> bytes | None:
    """A small file, None where there is none. Raises ClientError where it has more than `limit` bytes."""
    size = source.size(name)
    if size is None:
        return None
    if size > limit:
        raise ClientError(f"{source.label}: {name} has {size:,} bytes; {limit:,} are allowed")
    return b"".join(source.chunks(name))


def open_source(path: Path) -> "TarSource | FolderSource":
    """Raises ClientError where there is neither a folder nor a tar archive."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror}") from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            return FolderSource(path, fd)
        if not stat.S_ISREG(mode):
            raise ClientError(f"{path} is neither a folder nor a file")
        return TarSource(path, fd)
    except BaseException:
        os.close(fd)
        raise


class Below:
    """A folder of another source."""

    def __init__(self, source: Source, folder: str, names: Iterable[str]) -> None:
        """`names`: those of the files in it."""
        self.label = f"{source.label}/{folder}"
        self._source = source
        self._folder = folder
        self._names = tuple(names)

    def size(self, name: str) -> int | None:
        return self._source.size(f"{self._folder}/{name}")

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._source.chunks(f"{self._folder}/{name}")

    def names(self) -> Iterator[str]:
        yield from self._names

    def close(self) -> None:
        """The other source is closed by itself."""


class Members:
    """What an archive has turned out to hold, file by file; links are other names of its files."""

    def __init__(self) -> None:
        self._files: dict[str, Member] = {}
        self._links: dict[str, str] = {}

    def add(self, member: Member) -> bool:
        """Take a member in; whether it is a file. Raises ClientError where there is one by its name."""
        if member.target:
            self._links[member.name] = member.target
        elif member.name in self._files:
            raise ClientError(f"the archive holds {member.name!r} twice: it is refused")
        else:
            self._files[member.name] = member
        return not member.target

    def find(self, name: str) -> Member | None:
        """A file, by its own name or by a link's."""
        for _ in range(MAX_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        return self._files.get(name)

    def names(self) -> Iterator[str]:
        """Every file's name, and every link's."""
        yield from self._files
        yield from self._links


def read_at(fd: int, offset: int, size: int, label: str) -> Iterator[bytes]:
    """A part of a file, a MiB at a time. Raises ClientError where it is not there any more, and StoreError."""
    while size:
        try:
            chunk = os.pread(fd, min(CHUNK, size), offset)
        except OSError as error:
            raise StoreError(f"{label} cannot be read: {error.strerror}") from error
        if not chunk:
            raise ClientError(f"{label} was cut off while it was read")
        yield chunk
        offset, size = offset + len(chunk), size - len(chunk)


class TarSource:
    """A tar archive, whose heads are read once."""

    def __init__(self, path: Path, fd: int) -> None:
        self.label = str(path)
        self._fd = fd
        self._members = Members()
        try:
            for member in read_members(FileTape(fd)):
                self._members.add(member)
        except ClientError as error:
            raise ClientError(f"{path}: {error.message}") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error

    def size(self, name: str) -> int | None:
        found = self._members.find(name)
        return None if found is None else found.size

    def names(self) -> Iterator[str]:
        return self._members.names()

    def chunks(self, name: str) -> Iterator[bytes]:
        found = self._members.find(name)
        if found is None:
            raise ClientError(f"{self.label} has no {name}")
        return read_at(self._fd, found.offset, found.size, self.label)

    def close(self) -> None:
        os.close(self._fd)


class FolderSource:
    """A folder, and what is in it, links left out."""

    def __init__(self, path: Path, fd: int) -> None:
        self.label = str(path)
        self.path = path
        self._fd = fd

    def _open(self, name: str) -> int | None:
        """The descriptor of a plain file. Every part is opened by itself, so that none can be a link."""
        here = self._fd
        *folders, last = name.split("/")
        if not {"", ".", ".."}.isdisjoint((*folders, last)) or not name.isprintable():
            raise ClientError(f"{self.label}: {name!r} is refused as the name of a file")
        try:
            for part in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(part, flags, dir_fd=here)
                if here != self._fd:
                    os.close(here)
                here = below
            fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
        except (FileNotFoundError, NotADirectoryError) as error:
            if error.errno == errno.ENOTDIR and os.path.exists(self.path / name):
                raise ClientError(f"{self.label}: a link leads to {name}; links are refused") from None
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ClientError(f"{self.label}: {name} is a link; links are refused") from None
            raise StoreError(f"{self.label}/{name} cannot be read: {error.strerror}") from error
        finally:
            if here != self._fd:
                os.close(here)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ClientError(f"{self.label}: {name} is no plain file; it is refused")
        return fd

    def names(self) -> Iterator[str]:
        """Every file's name, not too deep. No link is followed."""
        for count, (here, folders, files) in enumerate(os.walk(self.path, onerror=_raise)):
            if count >= MAX_FOLDERS:
                raise ClientError(f"{self.label} has more than {MAX_FOLDERS:,} folders")
            relative = os.path.relpath(here, self.path)
            front = "" if relative == "." else f"{relative}/"
            folders[:] = sorted(folders) if front.count("/") < MAX_DEPTH else []
            yield from (f"{front}{file}" for file in files)

    def size(self, name: str) -> int | None:
        fd = self._open(name)
        if fd is None:
            return None
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def chunks(self, name: str) -> Iterator[bytes]:
        fd = self._open(name)
        if fd is None:
            raise ClientError(f"{self.label} has no {name}")
        try:
            left = os.fstat(fd).st_size
            while left and (chunk := os.read(fd, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
        except OSError as error:
            raise StoreError(f"{self.label}/{name} cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)

    def close(self) -> None:
        os.close(self._fd)


def _raise(error: OSError) -> None:
    raise StoreError(f"{error.filename} cannot be read: {error.strerror}") from error
