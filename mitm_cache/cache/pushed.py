"""Which tags were pushed through this cache, and when, for all its processes: what it knew of them is void."""

import math
import time
from collections.abc import Callable

from mitm_cache.cache.confirmed import KEEP_SECONDS
from mitm_cache.cache.index import Index
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Reference, Repository, Tag


class Pushed:
    """Rows of the index: one for each tag, and one for each repository, whose lists are void with any push."""

    def __init__(self, index: Index, clock: Callable[[], float] = time.time) -> None:
        self._index = index
        self._clock = clock

    def keep(self, registry: str, repository: Repository, reference: Reference) -> None:
        """Record a push of a tag, or of a manifest by its digest. Waits for the index."""
        row = f"{self._clock():.3f}"
        if not isinstance(reference, Digest):
            self._index.put(_key(registry, repository, reference), row, seconds=KEEP_SECONDS)
        self._index.put(_key(registry, repository, None), row, seconds=KEEP_SECONDS)

    def since(self, registry: str, repository: Repository, tag: Tag | None, seconds: float) -> bool:
        """Whether a tag, or with None anything of the repository, was pushed within the last `seconds`."""
        key = _key(registry, repository, tag)
        row = self._index.get(key)
        if row is None:
            return False
        now = self._clock()
        age = now - _at(row)
        if not age >= 0:
            # Damaged, or the clock has been put back: when it was is not known, but that it was.
            self._index.put_soon(key, f"{now:.3f}", seconds=KEEP_SECONDS)
            return True
        return age <= seconds


def _at(row: object) -> float:
    try:
        return float(row) if isinstance(row, str) else math.nan
    except ValueError:
        return math.nan


def _key(registry: str, repository: Repository, tag: Tag | None) -> str:
    return f"pushed:{registry}/{repository}:{tag or ''}"
