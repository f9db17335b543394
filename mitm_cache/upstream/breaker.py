"""A registry that is away is not asked again and again: whoever asks is told at once, until it is back."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from mitm_cache.errors import MitmCacheError, UnreachableError
from mitm_cache.registries import Registry
from mitm_cache.wire.redirect import Origin

FIRST_SECONDS = 0.5
"""Until it is looked whether a registry is back; doubled each time it is not."""
LAST_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a registry is asked: its own host, or one that issues its tokens. `sign`: what a sign of life is had by."""

    registry: Registry
    origin: Origin
    sign: str
    home: bool = True

    def __str__(self) -> str:
        return self.registry.name if self.home else f"{self.origin.host}, which issues tokens for {self.registry.name},"


@dataclass(slots=True, eq=False)
class Waiting:
    """Somebody waits for an answer: `place` is who owes it, None while nobody that is watched does.

    `patient`: there is nothing else that could be served; `abandoned`: the answer is not wanted any more.
    """

    patient: bool = True
    place: Place | None = None
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class Absence:
    """Since when a place is away (seconds of the clock), why, and how long until it is looked for again.

    Where it is but doubted, it is looked for at once, and only who has something else to serve does not wait.
    """

    since: float
    reason: str
    pause: float = FIRST_SECONDS
    doubted: bool = False


class Breaker:
    """Which places are away. Any thread may ask and tell."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._absent: dict[Place, Absence] = {}
        self.opened: Callable[[Place], None] = lambda _place: None
        """Called with a place that has just gone away, or is doubted: somebody has to look for it."""

    def check(self, place: Place, *, patient: bool = True) -> None:
        """Raise UnreachableError where a place is away, or doubted by who need not wait for it."""
        absence = self._absent.get(place)
        if absence is None or (absence.doubted and patient):
            return
        since = self._clock() - absence.since
        words = "has not answered" if absence.doubted else "has been away"
        raise UnreachableError(
            f"{place} {words} for {since:.0f} s: {absence.reason}", status=503, retry_after=f"{absence.pause + 1:.0f}"
        )

    def fail(self, place: Place, error: MitmCacheError) -> None:
        """Record that a place does not answer."""
        with self._lock:
            known = self._absent.get(place)
            if known is None or known.doubted:
                since = self._clock() if known is None else known.since
                self._absent[place] = Absence(since, error.message)
        if known is None:
            self.opened(place)

    def doubt(self, place: Place, seconds: float) -> None:
        """Record that a place has let somebody wait for so long."""
        with self._lock:
            if place in self._absent:
                return
            reason = "it lets requests wait"
            self._absent[place] = Absence(self._clock() - seconds, reason, pause=0.0, doubted=True)
        self.opened(place)

    def postpone(self, place: Place, error: MitmCacheError) -> None:
        """Record that a place that was looked for is still away."""
        with self._lock:
            absence = self._absent.get(place)
            if absence is not None:
                pause = min(LAST_SECONDS, max(FIRST_SECONDS, absence.pause * 2))
                self._absent[place] = replace(absence, reason=error.message, pause=pause, doubted=False)

    def pause(self, place: Place) -> float | None:
        """Seconds until a place that is away is looked for; None where it is there."""
        absence = self._absent.get(place)
        return absence.pause if absence is not None else None

    def is_away(self, place: Place) -> bool:
        """Whether it is known to be away, and not only doubted."""
        absence = self._absent.get(place)
        return absence is not None and not absence.doubted

    def answer(self, place: Place, *, looked: bool = False) -> None:
        """Record that a place answers; doubts are only cleared by who `looked` for it."""
        absence = self._absent.get(place)
        if absence is not None and (looked or not absence.doubted):
            with self._lock:
                self._absent.pop(place, None)

    def away(self) -> dict[str, Absence]:
        """Who is away, by a registry's name or a token host's."""
        with self._lock:
            absent = list(self._absent.items())
        return {
            place.registry.name if place.home else place.origin.host: absence
            for place, absence in absent
            if not absence.doubted
        }
