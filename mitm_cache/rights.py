"""Who may have what: sharing bytes must not share rights.

A client may have cached content of a repository when its own credential, or none at all, has been seen to work there
within the last minutes. Where that is not known, upstream is asked with that credential; verdicts are kept under
hashed keys, so that the index holds no credential, and only a yes is kept.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum

from mitm_cache.cache.index import Index
from mitm_cache.oci.reference import Repository
from mitm_cache.wire.message import Credential

KEEP_SECONDS = 300.0
"""How long a yes holds."""
MAX_KEPT = 65536
PREFIX = "verdict:"


class Verdict(Enum):
    """What a registry's answer to a question about rights means."""

    YES = "yes"
    NO = "no"
    NONE = "no verdict"


def judge(status: int) -> Verdict:
    """A registry's own 2xx or 3xx is a yes; 401, 403 and 404 are a no; anything else says nothing about rights."""
    if 200 <= status < 400:
        return Verdict.YES
    return Verdict.NO if status in (401, 403, 404) else Verdict.NONE


class Verdicts:
    """The yeses of the last minutes, shared by every process on the data directory."""

    def __init__(self, index: Index, clock: Callable[[], float] = time.time) -> None:
        self._index = index
        self._clock = clock
        self._kept: OrderedDict[str, float] = OrderedDict()

    def wipe(self) -> None:
        """Forget everything: at the start of the service."""
        self._kept.clear()
        self._index.drop_prefix(PREFIX)

    def allow(self, registry: str, repository: Repository, credential: Credential | None) -> bool:
        """Whether this credential is known to read this repository; what strangers may read everybody may."""
        return self._known(_key(registry, repository, None)) or (
            credential is not None and self._known(_key(registry, repository, credential))
        )

    def keep(self, registry: str, repository: Repository, credential: Credential | None) -> None:
        """Record a yes."""
        key = _key(registry, repository, credential)
        until = self._clock() + KEEP_SECONDS
        self._remember(key, until)
        self._index.put_soon(key, str(until), seconds=KEEP_SECONDS)

    def _known(self, key: str) -> bool:
        now = self._clock()
        if self._kept.get(key, 0.0) > now:
            return True
        until = _until(self._index.get(key))
        if not until > now:
            return False
        self._remember(key, until)
        return True

    def _remember(self, key: str, until: float) -> None:
        self._kept[key] = until
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)


def _until(row: object) -> float:
    try:
        return float(row) if isinstance(row, str) else 0.0
    except ValueError:
        return 0.0


def _key(registry: str, repository: Repository, credential: Credential | None) -> str:
    who = credential.fingerprint if credential else "anyone"
    return PREFIX + hashlib.sha256(f"{who}\0{registry}\0{repository}".encode()).hexdigest()
