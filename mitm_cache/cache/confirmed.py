"""What upstream last said a tag is, and when: how fresh the cache's own idea of it is.

Rows of the index, for all processes; when they are lost, upstream is asked once more.
"""

import time
from collections.abc import Callable

from mitm_cache.cache.entry import Link
from mitm_cache.cache.index import Index
from mitm_cache.errors import StoreError
from mitm_cache.oci.manifest import Accept
from mitm_cache.oci.reference import Repository, Tag

KEEP_SECONDS = 90 * 86400.0


class Confirmed:
    """Tags as upstream last had them, for clients that take the same types."""

    def __init__(self, index: Index, clock: Callable[[], float] = time.time) -> None:
        self._index = index
        self._clock = clock

    def keep(self, registry: str, repository: Repository, tag: Tag, accept: Accept, link: Link, at: float) -> None:
        """Record what upstream said when it was asked at `at`, in seconds of the epoch."""
        row = f"{at:.3f} {link.to_json()}"
        self._index.put_soon(_key(registry, repository, tag, accept), row, seconds=KEEP_SECONDS)

    def find(self, registry: str, repository: Repository, tag: Tag, accept: Accept) -> tuple[Link, float] | None:
        """What upstream said, and how many seconds ago; None where that is not known, or lies in the future."""
        row = self._index.get(_key(registry, repository, tag, accept))
        if not isinstance(row, str):
            return None
        at, _, text = row.partition(" ")
        try:
            age, link = self._clock() - float(at), Link.from_json(text)
        except (ValueError, StoreError):
            return None
        return (link, age) if 0 <= age <= KEEP_SECONDS else None


def _key(registry: str, repository: Repository, tag: Tag, accept: Accept) -> str:
    return f"tag:{registry}/{repository}:{tag} {accept.key}"
