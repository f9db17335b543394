"""Which blobs are here: their names, and of those that are asked for their sizes and when they were last used."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import batched

from mitm_cache.cache.survey import Kept, Survey
from mitm_cache.oci.digest import Digest

READERS = 8
"""Threads that look at all blobs: that is waiting for the disk where nobody has done so for some time."""
BATCH = 500


class Presence(Mapping[Digest, Kept]):
    """Blobs by their digest, each looked at once. Looking raises StoreError where it may not be done."""

    def __init__(self, survey: Survey, names: Collection[Digest] | None) -> None:
        """`names`: all that are here; None where each is to be looked for."""
        self._survey = survey
        self._is_whole = names is not None
        self._seen: dict[Digest, Kept | None] = dict.fromkeys(names or ())
        self._missing: set[Digest] = set()

    def __contains__(self, digest: object) -> bool:
        if digest in self._seen:
            return True
        return not self._is_whole and isinstance(digest, Digest) and digest not in self._missing and self.look(digest)

    def __getitem__(self, digest: Digest) -> Kept:
        kept = self._seen.get(digest)
        if kept is None and digest in self:
            self.look(digest)
            kept = self._seen.get(digest)
        if kept is None:
            raise KeyError(digest)
        return kept

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def look(self, digest: Digest) -> bool:
        """Look once more whether a blob is here."""
        return self._note(digest, self._survey.kept(digest))

    def look_at_all(self) -> None:
        """Look at all that are here: quicker than one after another."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="blobs") as pool:
            unseen = [digest for digest, kept in self._seen.items() if kept is None]
            for batch, found in pool.map(self._find, batched(unseen, BATCH)):
                for digest, kept in zip(batch, found, strict=True):
                    self._note(digest, kept)

    def _find(self, digests: tuple[Digest, ...]) -> tuple[tuple[Digest, ...], list[Kept | None]]:
        return digests, [self._survey.kept(digest) for digest in digests]

    def _note(self, digest: Digest, kept: Kept | None) -> bool:
        if kept is None:
            self._seen.pop(digest, None)
            self._missing.add(digest)
        else:
            self._seen[digest] = kept
            self._missing.discard(digest)
        return kept is not None
