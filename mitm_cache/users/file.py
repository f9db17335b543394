"""The users file on disk: read by nobody but its owner, read again when it changes, and written as a whole."""

import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mitm_cache.errors import ConfigError
from mitm_cache.users.table import Table, check_name, make_hash, parse, replace

MAX_SIZE = 1 << 20
"""Bytes of a users file: some ten thousand users."""
YOUNG_SECONDS = 2.0
"""A file that was changed so lately may change again without another time or size."""

logger = logging.getLogger(__name__)

type Stamp = tuple[int, ...]


class UsersFile:
    """What a file says, as long as it says something; used by one thread at a time."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        """Raises ConfigError where the file is not there, is open to others, or is malformed."""
        self._path = path
        self._now = now
        self._stamp: Stamp | None = None
        self._complaint = ""
        self.table = self._read()

    def look(self) -> Table:
        """What it says now. Where it has become unreadable or malformed, what it said before, and one warning."""
        try:
            if self._stamp is None or self._stamp != _stamp_of(self._path):
                self.table = self._read()
                if self._complaint:
                    logger.warning("clients.users_file: %s can be read again", self._path)
                self._complaint = ""
        except ConfigError as error:
            if error.message != self._complaint:
                logger.warning("clients.users_file: %s; the users are those of before", error.message)
            self._complaint, self._stamp = error.message, None
        return self.table

    def _read(self) -> Table:
        content, facts = _content(self._path)
        table = parse(content, where=str(self._path))
        young = abs(self._now() - facts.st_mtime) < YOUNG_SECONDS
        self._stamp = None if young else _stamp(facts)
        return table


def _stamp(facts: os.stat_result) -> Stamp:
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size, facts.st_mode, facts.st_uid, facts.st_gid


def _stamp_of(path: Path) -> Stamp | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None  # reading it says why


def _content(path: Path) -> tuple[bytes, os.stat_result]:
    """Raises ConfigError."""
    try:
        # A pipe in its place would be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            facts = os.fstat(file.fileno())  # before the content: a change in between is seen by the next look
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigError(f"{path} is not a file")
            if _is_exposed(facts):
                mode = stat.S_IMODE(facts.st_mode)
                raise ConfigError(f"{path} may be read by others (mode {mode:04o}): chmod 600 {path}")
            content = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; 'mitm-cache user add NAME' makes it") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_SIZE:
        raise ConfigError(f"{path} has more than {MAX_SIZE} bytes")
    return content, facts


def _is_exposed(facts: os.stat_result) -> bool:
    """Whether others than its owner may read or write it; a group may read what root owns and gave to it (0640)."""
    given = facts.st_uid == 0 and facts.st_gid != 0
    return bool(facts.st_mode & (0o037 if given else 0o077))


def read(path: Path) -> Table:
    """The table in a file. Raises ConfigError."""
    return parse(_content(path)[0], where=str(path))


def add(path: Path, name: str, password: str) -> bool:
    """Give a user a password, and say whether the user is new. Raises ConfigError."""
    hash_ = make_hash(password)
    with _edited(path) as draft:
        new = check_name(name) not in parse(draft.content, where=str(path)).hashes
        draft.content = replace(draft.content, name, hash_, where=str(path))
    return new


def remove(path: Path, name: str) -> None:
    """Take a user out. Raises ConfigError, also where there is no such user."""
    with _edited(path) as draft:
        if name not in parse(draft.content, where=str(path)).hashes:
            raise ConfigError(f"{path} has no user {name[:40]!r}")
        draft.content = replace(draft.content, name, None, where=str(path))


class _Draft:
    def __init__(self, content: bytes) -> None:
        self.content = content


@contextmanager
def _edited(path: Path) -> Iterator[_Draft]:
    """A file's content, which is written when the block ends well: all of it or nothing, and one editor at a time."""
    real = path.resolve()
    directory = None
    try:
        directory = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(directory, fcntl.LOCK_EX)
        content, facts = _content(path) if os.path.lexists(real) else (b"", None)
        draft = _Draft(content)
        yield draft
        _write(real, draft.content, facts)
        os.fsync(directory)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        if directory is not None:
            os.close(directory)


def _write(path: Path, content: bytes, before: os.stat_result | None) -> None:
    """Put a new file into the place of one, for the same owner, group and mode."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            if before is not None:
                mine = os.fstat(file.fileno())
                if (mine.st_uid, mine.st_gid) != (before.st_uid, before.st_gid):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
