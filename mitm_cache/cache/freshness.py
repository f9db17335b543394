"""What to do for a tag, given what is kept of it and what upstream says of it now. Pure."""

from dataclasses import dataclass

from mitm_cache.cache.entry import Link
from mitm_cache.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Kept:
    """What a tag was when it was last seen, whose bytes are here; `age`: seconds since upstream said so, None where
    that is not known."""

    link: Link
    age: float | None

    def is_fresh(self, ttl: float) -> bool:
        """Whether upstream need not be asked, as it was within `ttl` seconds."""
        return self.age is not None and self.age < ttl

    @property
    def told(self) -> str:
        """How old that is, for people."""
        return "at some time" if self.age is None else f"{self.age:.0f} s ago"


@dataclass(frozen=True, slots=True)
class Serve:
    """The content is here and is what upstream has under the tag."""

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """The content has to be fetched."""

    digest: Digest
    reason: str


def plan(kept: Link | None, current: Digest, *, present: bool) -> Serve | Fetch:
    """`kept` is the tag's last known manifest, `current` upstream's, `present` whether its bytes are here."""
    if present:
        return Serve(current, "tag unchanged" if kept and kept.digest == current else "tag moved to a known manifest")
    if kept is None:
        return Fetch(current, "tag not known")
    return Fetch(current, "tag moved" if kept.digest != current else "manifest was evicted")
