"""Who could read a repository when its registry was last asked, where that is nobody's secret: strangers, and the
cache's own credential. It is what is left to go by while the registry is away.

`links/<registry>/<repository>/_readers/<name>` is an empty file; its modification time says when it was last so. What
a client's credential could read is not kept beyond minutes.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from mitm_cache.errors import StoreError
from mitm_cache.oci.reference import Repository


class Readers:
    """The tree of these files."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def keep(self, registry: str, repository: Repository, who: str) -> None:
        """Record that `who` can read a repository. Blocks on the disk; raises StoreError."""
        path = self._path(registry, repository, who)
        now = self._clock()
        try:
            try:
                os.utime(path, (now, now))
            except FileNotFoundError:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.touch(mode=0o600)
                os.utime(path, (now, now))
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error

    def drop(self, registry: str, repository: Repository, who: str) -> None:
        """Record that `who` cannot. Blocks on the disk; raises StoreError."""
        path = self._path(registry, repository, who)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StoreError(f"{path} cannot be removed: {error.strerror}") from error

    def age(self, registry: str, repository: Repository, who: str) -> float | None:
        """Seconds since `who` was last seen to read a repository; None where that was never."""
        try:
            seen = self._path(registry, repository, who).stat().st_mtime
        except OSError:
            return None
        return max(0.0, self._clock() - seen)

    def _path(self, registry: str, repository: Repository, who: str) -> Path:
        name = hashlib.sha256(who.encode()).hexdigest()[:32]
        return self._folder / registry / str(repository) / "_readers" / name
