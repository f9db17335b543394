"""What a filling is doing, and what it has done."""

import time
from dataclasses import dataclass, field
from typing import Any

from mitm_cache.units import counted, size

NEW, MOVED, SAME = "new", "updated", "unchanged"


@dataclass(slots=True)
class Filled:
    """One image that is here; `bytes` are those that came for it in this run."""

    image: str
    digest: str
    state: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be had, and why."""

    image: str
    error: str


@dataclass(slots=True)
class Progress:
    """Counts that grow while a filling runs: sizes in bytes, times in seconds of `time.monotonic`."""

    began: float = field(default_factory=time.monotonic)
    images: int = 0
    listing: bool = True
    """Whether more images may yet be found."""
    expected: int = 0
    """Bytes that are missing, as far as that is known."""
    arrived: int = 0
    contents: int = 0
    """Contents that were not here before."""
    reused: int = 0
    """Contents that were."""
    filled: list[Filled] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Images that are dealt with."""
        return len(self.filled) + len({failure.image for failure in self.failures} - {one.image for one in self.filled})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def count(self, state: str) -> int:
        """How many images are in a state."""
        return sum(one.state == state for one in self.filled)

    def summary(self) -> str:
        """One line for a log."""
        return (
            f"{counted(len(self.filled), 'image')}: {self.count(NEW)} new, {self.count(MOVED)} updated, "
            f"{self.count(SAME)} unchanged; {counted(self.contents, 'content')}, {size(self.arrived)} fetched; "
            f"{len(self.failures)} failed; {self.seconds:.1f} s"
        )

    def document(self, *, dry: bool) -> dict[str, Any]:
        """As JSON."""
        return {
            "dry_run": dry,
            "seconds": round(self.seconds, 3),
            "images": [
                {"image": one.image, "digest": one.digest, "state": one.state, "bytes": one.bytes}
                for one in sorted(self.filled, key=lambda one: one.image)
            ],
            "contents": {"fetched": 0 if dry else self.contents, "missing": self.contents if dry else 0,
                         "already_here": self.reused},
            "bytes": {"fetched": self.arrived, "missing": self.expected if dry else 0},
            "failures": [{"image": one.image, "error": one.error} for one in self.failures],
        }  # fmt: skip
