"""Whether what a daemon has by a name is newer than what has been pushed here. Pure."""

import json
from dataclasses import dataclass
from typing import Self

from mitm_cache.errors import StoreError
from mitm_cache.local.daemon import Held


@dataclass(frozen=True, slots=True)
class Ours:
    """What a tag is here: the digest of its manifest, every digest that this refers to, and when it was given."""

    digest: str
    within: frozenset[str]
    given: float


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of the last push of a name by the daemon: its image's id, and the digest that the tag then had here."""

    id: str
    digest: str

    def to_json(self) -> str:
        return json.dumps({"id": self.id, "digest": self.digest})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; raises StoreError for anything else."""
        try:
            fields = json.loads(text)
            return cls(str(fields["id"]), str(fields["digest"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"a note about a push is damaged: {text[:80]!r}") from error


def is_same(held: Held, ours: Ours) -> bool:
    """Whether it is the image that we have, by the id of either kind of daemon or by what registries have called it."""
    return held.id == ours.digest or held.id in ours.within or ours.digest in held.digests


def is_newer(held: Held, ours: Ours | None, brought: Brought | None) -> bool:
    """Whether the daemon's image is to be pushed."""
    if ours is None:
        return True
    if is_same(held, ours):
        return False
    if brought is not None and brought.digest == ours.digest:
        # Nobody else has pushed since: whatever it has now it got later. What it pushes need not have the id of its
        # image: of an image for several platforms it may have only one.
        return held.id != brought.id
    return held.given > ours.given
