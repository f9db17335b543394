"""What the cache knows about a piece of content. Pure."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest


class Origin(StrEnum):
    """How content came here: it decides whose rights apply when it is served."""

    PULLED = "pulled"
    IMPORTED = "imported"
    SYNCED = "synced"
    LOCAL = "local"
    """Pushed to the cache's own registry: there may be no other copy."""


@dataclass(frozen=True, slots=True)
class Link:
    """A repository holds this content. `media_type` is the Content-Type upstream gave it; `size` is in bytes."""

    digest: Digest
    media_type: str
    size: int
    origin: Origin = Origin.PULLED

    def to_json(self) -> str:
        """One line, as it stands in a link file and in the index."""
        return json.dumps(
            {"digest": str(self.digest), "media_type": self.media_type, "size": self.size, "origin": self.origin}
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; raises StoreError for anything else."""
        try:
            fields = json.loads(text)
            return cls(
                Digest.parse(str(fields["digest"])),
                str(fields["media_type"]),
                int(fields["size"]),
                Origin(fields["origin"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ClientError) as error:
            raise StoreError(f"a link is damaged: {text[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of content before its first byte: its size in bytes and its Content-Type."""

    size: int
    media_type: str
