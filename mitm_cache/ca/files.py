"""The CA's directory: who may read and write it, and how a key and its certificate are put there together."""

import fcntl
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mitm_cache.errors import ConfigError

CURRENT, NEXT = "ca", "next"
"""The CA, and the one that a rotation will put into its place: each a key and a certificate."""
KEY_FILE = f"{CURRENT}.key"
CERTIFICATE_FILE = f"{CURRENT}.crt"
LOCK_FILE = "ca.lock"
REQUEST_KEY_FILE = "request.key"
"""The key of a request that is to be signed elsewhere."""
DATE_FILE = "next.date"
"""From when on the next CA signs; without it, from `ca rotate --finish` on."""
_MAX_SIZE = 1 << 20


def read(path: Path, *, private: bool = False, missing: str = "'mitm-cache ca init' makes a CA") -> bytes:
    """A file's content. Raises ConfigError, for a private one also where others may read it or replace it; `missing`:
    what to do where there is none."""
    try:
        with path.open("rb") as file:
            if private and is_exposed(facts := os.fstat(file.fileno())):
                mode = stat.S_IMODE(facts.st_mode)
                raise ConfigError(f"{path} may be read by others (mode {mode:04o}): chmod 600 {path}")
            if private:
                check_directory(path.parent)
            return file.read(_MAX_SIZE)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; {missing}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def is_exposed(facts: os.stat_result) -> bool:
    """Whether others than its owner may read or write a key.

    A group may read it (0640) where root owns it and gave it to a group other than root's own: so a service reads a
    key that it cannot change.
    """
    given = facts.st_uid == 0 and facts.st_gid != 0
    return bool(facts.st_mode & (0o037 if given else 0o077))


def check_directory(directory: Path) -> None:
    """Raise ConfigError when others may put files into the directory: a key of theirs in the place of ours."""
    facts = directory.stat()
    mode = stat.S_IMODE(facts.st_mode)
    if mode & 0o002 or (mode & 0o020 and not _is_private_group(facts)):
        raise ConfigError(
            f"{directory} may be written by others (mode {mode:04o}), who could replace files: chmod go-w {directory}"
        )


def _is_private_group(facts: os.stat_result) -> bool:
    """Whether the group is the owner's alone, as systems make one for each user (with umask 002)."""
    try:
        owner, group = pwd.getpwuid(facts.st_uid), grp.getgrgid(facts.st_gid)
    except KeyError:
        return False
    return owner.pw_gid == facts.st_gid and group.gr_name == owner.pw_name and set(group.gr_mem) <= {owner.pw_name}


def write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that nobody else can open before it has its mode, whatever the umask."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_pair(directory: Path, stem: str, key: bytes, certificates: bytes) -> None:
    """Put a key and its certificate in place, over what is there. Called with the lock held."""
    for name, content, mode in ((f"{stem}.key", key, 0o600), (f"{stem}.crt", certificates, 0o644)):
        write_new(directory / f"{name}.new", content, mode=mode)
    for name in (f"{stem}.key", f"{stem}.crt"):
        (directory / f"{name}.new").rename(directory / name)


def keep_copies(directory: Path, stem: str, *, now: datetime) -> None:
    """Keep what is there of a pair under names that end in the time. It stays in place too, so that a crash leaves
    no gap in which a start would make a new CA."""
    end = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    copies = {path: path.with_name(f"{path.name}.{end}") for path in present(directory, stem)}
    for copy in copies.values():
        if copy.exists():
            raise ConfigError(f"{copy} exists: this CA was replaced a moment ago")
    for path, copy in copies.items():
        write_new(copy, path.read_bytes(), mode=0o644 if path.suffix == ".crt" else 0o600)


def present(directory: Path, stem: str = CURRENT) -> list[Path]:
    """What is there of a pair."""
    return [path for path in (directory / f"{stem}.key", directory / f"{stem}.crt") if os.path.lexists(path)]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory for writing; it is made, for its owner only, when it is not there. Raises ConfigError."""
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        with open(os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ConfigError(f"the CA directory {directory} cannot be written: {error}") from error
