"""What the admin room is told of the service that it looks at."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mitm_cache.admin.usage import Usage
from mitm_cache.ca import Description
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import Layout
from mitm_cache.upstream.breaker import Absence


async def _known() -> None:
    """What is told is told by this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts of the service, and functions for those that change. All of it is asked in the event loop."""

    layout: Layout
    blobs: Blobs
    addresses: tuple[tuple[str, str, int], ...]
    ca: Callable[[], Mapping[str, Description]]
    """Every CA in use by its role; `signing` is always there."""
    limit: Callable[[], int]
    in_flight: Callable[[], int]
    listeners: Callable[[], str]
    """Whether connections are accepted, in the words of the checks."""
    clock: Callable[[], datetime]
    started: datetime
    version: str
    freshen: Callable[[], Awaitable[None]] = _known
    """Awaited before anything else is asked: others have their say."""
    alive: Callable[[], bool] = lambda: True
    workers: Callable[[], Sequence[int]] = lambda: (os.getpid(),)
    """The processes that serve."""
    replaced: Callable[[], int] = lambda: 0
    usage: Callable[[], Usage] = Usage.own
    away: Callable[[], Mapping[str, Absence]] = dict
    """Who is away upstream, by name."""
