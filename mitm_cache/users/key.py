"""The key of the tokens: random bytes in a file, the same for all processes, made by whoever needs it first."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from mitm_cache.errors import ConfigError

SIZE = 32
"""Bytes: as many as SHA-256 gives."""


def read_or_make(path: Path) -> bytes:
    """The key in a file. Raises ConfigError where it is damaged, open to others, or cannot be read or made."""
    try:
        if not os.path.lexists(path):
            _make(path)
        # A pipe in its place would be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            facts = os.fstat(file.fileno())
            key = file.read(SIZE + 1) if stat.S_ISREG(facts.st_mode) else b""
    except OSError as error:
        raise ConfigError(f"{path}, the key of the tokens, cannot be used: {error.strerror}") from error
    if len(key) != SIZE:
        raise ConfigError(f"{path} is damaged: the key of the tokens has {SIZE} bytes; remove it, and another is made")
    if facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise ConfigError(
            f"{path} may be read by others (mode {mode:04o}), who could make tokens: remove it, and another is made"
        )
    return key


def _make(path: Path) -> None:
    """Raises OSError."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(SIZE))
            file.flush()
            os.fsync(file.fileno())  # after a power failure an empty file would stop the start
        # A link, not a rename: of several processes that start at once the first one's key stays.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
