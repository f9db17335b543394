"""Whose turn it is to have an image pushed: one process's, for each name.

`run/demand/<name>` is a file that whoever pushes holds by `flock`. It tells the mark of the push meanwhile, by which
any process knows the daemon's requests, and for a while afterwards why it has failed.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from pathlib import Path

from mitm_cache.errors import StoreError
from mitm_cache.oci.reference import Repository, Tag

FAILED_SECONDS = 10.0
"""That an image which could not be pushed is not tried again: clients ask several times in one pull."""

_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}")


class Turn:
    """A lock that is held until `finish`."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path, self._fd = path, fd
        self.mark = f"{path.name}.{secrets.token_urlsafe(32)}"

    def failure(self, image: str) -> str:
        """Why this image, by its id, could not be pushed a moment ago; "" where that is not known to be so."""
        try:
            note = json.loads(os.pread(self._fd, 4096, 0))
            recent = 0 <= time.monotonic() - float(note["at"]) < FAILED_SECONDS
            return str(note["error"]) if recent and note["image"] == image else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def begin(self) -> None:
        """Say by which mark the push is known. Raises StoreError."""
        try:
            self._write({"mark": self.mark})
        except OSError as error:
            raise StoreError(f"{self._path} cannot be written: {error.strerror}") from error

    def fail(self, image: str, error: str) -> None:
        """Say why an image, by its id, could not be pushed, to those who ask next."""
        try:
            self._write({"image": image, "error": error, "at": time.monotonic()})  # one clock for all processes
        except OSError:
            pass  # whoever comes next tries again

    def finish(self, *, failed: bool) -> None:
        """Let go; of a failure the note stays."""
        try:
            if not failed:
                self._path.unlink(missing_ok=True)
        except OSError:
            pass  # it says of no failure
        finally:
            os.close(self._fd)

    def _write(self, note: dict[str, str | float]) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(note).encode(), 0)


class Turns:
    """The lock files of one data directory. Everything here blocks on the disk, shortly."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where they are; it is made with the first of them."""
        self._folder = folder

    def take(self, repository: Repository, tag: Tag) -> Turn | None:
        """The turn to push a name; None where another process has it. Raises StoreError."""
        path = self._folder / f"{_hash(repository)}-{_hash(tag)}"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            while True:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if not _lock(fd, fcntl.LOCK_EX):
                    os.close(fd)
                    return None
                if _is_named(fd, path):
                    return Turn(path, fd)
                os.close(fd)  # whoever had it has removed it since we opened it
        except OSError as error:
            raise StoreError(f"{path} cannot be used: {error.strerror}") from error

    def knows(self, mark: str, repository: Repository | None) -> bool:
        """Whether this is the mark of a push that is under way, to this repository, where one is asked for."""
        name, _, _ = mark.partition(".")
        if not _NAME.fullmatch(name) or (repository is not None and not name.startswith(f"{_hash(repository)}-")):
            return False
        try:
            note = json.loads((self._folder / name).read_bytes())
            return hmac.compare_digest(str(note["mark"]).encode(), mark.encode())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def is_busy(self, repository: Repository, tag: Tag | None = None) -> bool:
        """Whether an image of a repository, or one of its tags, is being pushed."""
        ending = _hash(tag) if tag else "*"
        return any(_is_taken(path) for path in self._folder.glob(f"{_hash(repository)}-{ending}"))


def _hash(name: Repository | Tag) -> str:
    """A name as a part of a file's: repositories may be longer than those, and have slashes."""
    return hashlib.sha256(str(name).encode()).hexdigest()[:32]


def _is_taken(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_named(fd: int, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False
