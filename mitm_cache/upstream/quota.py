"""What registries say of their pull quotas, as Docker Hub does with each answer about a manifest."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from mitm_cache.wire.headers import Headers

_VALUE = re.compile(r"\s*([0-9]{1,9})\s*(?:;\s*w=([0-9]{1,9})\s*)?(?:;.*)?")


@dataclass(frozen=True, slots=True)
class Quota:
    """How many pulls are `left` of `limit` in a `window` (seconds, 0 where it is not said), as it was at `at`
    (seconds of the epoch). It is the quota of who asked last: this cache's address, or an account."""

    left: int
    limit: int | None
    window: int
    at: float


class Quotas:
    """The last word of each registry. Any thread may note one."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: dict[str, Quota] = {}

    def note(self, registry: str, headers: Headers) -> None:
        """Take in an answer's `ratelimit-limit` and `ratelimit-remaining`, such as `76;w=21600`, if it has them."""
        left = _VALUE.fullmatch(headers.get("ratelimit-remaining") or "")
        if left is None:
            return
        limit = _VALUE.fullmatch(headers.get("ratelimit-limit") or "")
        window = left[2] or (limit[2] if limit else None) or 0
        self._last[registry] = Quota(int(left[1]), int(limit[1]) if limit else None, int(window), self._clock())

    def all(self) -> dict[str, Quota]:
        """By the registry's name."""
        return dict(self._last)
