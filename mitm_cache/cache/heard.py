"""When it was first heard that a tag is some digest: what the minimum age of a tag is counted from.

`links/<registry>/<repository>/_heard/<tag>/<alg>-<hex>` holds the seconds of the epoch. A registry's own dates are
no evidence: whoever pushes an image writes them.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository, Tag


class Heard:
    """The tree of these files."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def age(self, registry: str, repository: Repository, tag: Tag, digest: Digest, known: float | None = None) -> float:
        """Seconds since a tag was first heard to be a digest; it is now where nothing is recorded, or `known`.

        Blocks on the disk; raises StoreError.
        """
        path = self._folder / registry / str(repository) / "_heard" / str(tag) / digest.filename
        now = self._clock()
        try:
            since = self._read(path)
            if since is None or not since <= now:
                # What lies ahead was written by a clock that has been put back since.
                since = now if known is None else min(now, known)
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                draft = path.with_name(f".{path.name}.{os.getpid()}")
                draft.write_text(f"{since:.0f}\n")
                draft.replace(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be used: {error.strerror}") from error
        return max(0.0, now - since)

    def _read(self, path: Path) -> float | None:
        try:
            return float(path.read_text(errors="replace"))
        except FileNotFoundError:
            return None
        except ValueError:
            return path.stat().st_mtime  # damaged by a power cut, soon after it was made
