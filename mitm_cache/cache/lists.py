"""Lists as upstream last gave them (tags, referrers), for as long as it cannot be asked.

`links/<registry>/<repository>/_lists/<name>`: one line with what is known of the list, then its bytes.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mitm_cache.errors import StoreError
from mitm_cache.oci.reference import Repository

_MEDIA_TYPE = re.compile("[ -~]{0,256}")
MAX_SIZE = 1 << 20
"""Bytes of a list that is kept."""


@dataclass(frozen=True, slots=True)
class KeptList:
    """A list, its Content-Type, and how many seconds ago upstream was asked for it, None where that is not known."""

    content: bytes = field(repr=False)
    media_type: str
    age: float | None

    def is_fresh(self, ttl: float) -> bool:
        """Whether upstream need not be asked, as it was within `ttl` seconds."""
        return self.age is not None and self.age < ttl

    @property
    def told(self) -> str:
        """How old that is, for people."""
        return "at some time" if self.age is None else f"{self.age:.0f} s ago"


class Lists:
    """The tree of these files."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def now(self) -> float:
        """The time, as ages are counted from it: seconds of the epoch."""
        return self._clock()

    def keep(
        self, registry: str, repository: Repository, name: str, content: bytes, media_type: str, at: float
    ) -> None:
        """Keep a list that was asked for at `at`, unless it is too long. Blocks on the disk; raises StoreError."""
        if len(content) > MAX_SIZE:
            return
        path = self._path(registry, repository, name)
        draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        head = json.dumps({"at": round(at, 3), "media_type": media_type})
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_bytes(head.encode() + b"\n" + content)
            draft.replace(path)
        except OSError as error:
            raise StoreError(f"list {path} cannot be written: {error.strerror}") from error

    def find(self, registry: str, repository: Repository, name: str) -> KeptList | None:
        """The list, or None where there is none, or it is damaged. Blocks on the disk."""
        try:
            head, newline, content = self._path(registry, repository, name).read_bytes().partition(b"\n")
            fields = json.loads(head)
            age = self._clock() - float(fields["at"])
            json.loads(content)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        media_type = fields.get("media_type")
        if not newline or not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
            return None
        return KeptList(content, media_type, age if age >= 0 else None)

    def _path(self, registry: str, repository: Repository, name: str) -> Path:
        return self._folder / registry / str(repository) / "_lists" / name
