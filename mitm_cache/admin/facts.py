"""What the admin room is told of the service that it looks at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from mitm_cache.ca import Description
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts of this process, and functions for those that change. All of it is asked in the event loop."""

    layout: Layout
    blobs: Blobs
    addresses: tuple[tuple[str, str, int], ...]
    ca: Callable[[], Mapping[str, Description]]
    """Every CA in use by its role; `signing` is always there."""
    limit: Callable[[], int]
    in_flight: Callable[[], int]
    accepting: Callable[[], bool]
    clock: Callable[[], datetime]
    started: datetime
    version: str
