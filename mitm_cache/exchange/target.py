"""Where an export is written to: a folder or a tar archive, by another name until all of it is there."""

import os
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from mitm_cache.errors import ConfigError, StoreError

_END = 2 * tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE


class Target(Protocol):
    """Takes one file after the other."""

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """A file of exactly `size` bytes. Raises OSError."""


class TarTarget:
    """A stream of tar; the same files give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._written = 0

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._write(info.tobuf(tarfile.PAX_FORMAT))
        for chunk in chunks:
            self._write(chunk)
        self._write(bytes(-size % tarfile.BLOCKSIZE))

    def finish(self) -> None:
        """Mark the end, without which the archive counts as cut off."""
        self._write(bytes(_END + -(self._written + _END) % _RECORD))
        self._file.flush()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = self._file.write(view)
            view, self._written = view[count:], self._written + count


class FolderTarget:
    """Files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())


def check(path: Path) -> None:
    """Raise ConfigError where an export would have to overwrite something, or there is no place for it."""
    try:
        if path.is_dir() and any(path.iterdir()):
            since = f"with --since {path} it holds only what is new"
            raise ConfigError(f"{path} is there already, and not empty; name a new one, {since}")
        if path.resolve().is_mount():  # what is written gets its name in the end, from a draft beside it
            raise ConfigError(f"{path} is a file system of its own; name a new folder in it, such as {path / 'export'}")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is there already; name a new one")
        if not path.resolve().parent.is_dir():
            raise ConfigError(f"{path.resolve().parent} is no folder")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {getattr(error, 'strerror', error)}") from None


@contextmanager
def open_target(path: Path) -> Iterator[Target]:
    """A tar archive where the name ends in .tar, else a folder; it gets its name when all went well.

    Raises ConfigError and StoreError.
    """
    check(path)
    final = path.resolve()  # a link to an empty folder stays a link
    draft = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    try:
        if path.suffix == ".tar" and not path.is_dir():
            with draft.open("xb", buffering=0) as file:
                target = TarTarget(file)
                yield target
                target.finish()
                os.fsync(file.fileno())
        else:
            draft.mkdir()
            yield FolderTarget(draft)
        draft.replace(final)
        _sync(final.parent)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


@contextmanager
def stream_target(file: BinaryIO) -> Iterator[Target]:
    """A tar archive to a stream. Raises StoreError."""
    try:
        target = TarTarget(file)
        yield target
        target.finish()
    except OSError as error:
        raise StoreError(f"the archive cannot be written: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
