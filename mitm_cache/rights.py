"""Who may have what: sharing bytes must not share rights.

A client may have cached content of a repository when its own credential, or none at all, has been seen to work there
within the last minutes; where a registry's rights are shared, the cache's own credential stands for clients that bring
none; where they are open, nobody is asked. What is not known, upstream is asked with that credential; verdicts are
kept under hashed keys, so that the index holds no credential.
"""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from mitm_cache.cache.index import Index
from mitm_cache.config import Config
from mitm_cache.oci.reference import Repository
from mitm_cache.parsing import Rights
from mitm_cache.wire.message import Credential

logger = logging.getLogger(__name__)

KEEP_SECONDS = 300.0
"""How long a yes holds."""
LONGEST = KEEP_SECONDS
"""What lies further ahead was written by a clock that has been put back since."""
MAX_KEPT = 65536
PREFIX = "verdict:"
ANYONE = "anyone"
NOBODY = "no stranger"
"""Under this name a no is kept, the only one: that strangers may not read a repository."""


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


@dataclass(frozen=True, slots=True)
class Modes:
    """Whose right counts at each registry; without a configuration it is the client's everywhere.

    `owner`: the name of the cache's own credential for a repository of a registry, "" where it has none.
    """

    config: Config | None = None
    owner: Callable[[str, Repository], str] = lambda _registry, _repository: ""

    def rights(self, registry: str) -> Rights:
        """The mode of a registry."""
        upstream = self.config.upstreams.get(registry) if self.config is not None else None
        return upstream.rights if upstream is not None else Rights.CLIENT

    def lends(self, registry: str, credential: Credential | None) -> bool:
        """Whether the cache's own credential stands for a client with this one, or with none."""
        return credential is None and self.rights(registry) is not Rights.CLIENT

    def fills(self, registry: str, repository: Repository, credential: Credential | None) -> bool:
        """Whether content is fetched by the cache's own credential for a client whose right was proven without it."""
        return credential is None and self.rights(registry) is Rights.CLIENT and self.owner(registry, repository) != ""

    def who(self, registry: str, repository: Repository, credential: Credential | None) -> str:
        """For whom a yes to a question is one: the name that it is kept under, which tells the modes apart."""
        if credential is not None:
            return credential.fingerprint
        owner = self.owner(registry, repository) if self.lends(registry, None) else ""
        return f"{self.rights(registry)} {owner}" if owner else ANYONE


def open_warning(name: str) -> str:
    """What the operator is told at each start."""
    return (
        f"registries.{name}.rights is open: whoever may connect (clients.allow) gets what is cached of it, private "
        "repositories too, and nobody is asked"
    )


def begin(config: Config, verdicts: "Verdicts") -> None:
    """What is done once when the service starts or its configuration changes: no verdict of before counts."""
    verdicts.wipe()
    for name in (name for name, upstream in config.upstreams.items() if upstream.rights is Rights.OPEN):
        logger.warning("%s", open_warning(name))


class Verdicts:
    """The yeses of the last minutes, shared by every process on the data directory."""

    def __init__(self, index: Index, clock: Callable[[], float] = time.time, modes: Modes | None = None) -> None:
        self.modes = modes or Modes()
        self._index = index
        self._clock = clock
        self._kept: OrderedDict[str, float] = OrderedDict()

    def wipe(self) -> None:
        """Forget everything: at the start of the service."""
        self._kept.clear()
        self._index.drop_prefix(PREFIX)

    def allow(self, registry: str, repository: Repository, credential: Credential | None) -> bool:
        """Whether this client is known to be let read this repository; what strangers may read everybody may."""
        if self.modes.rights(registry) is Rights.OPEN:
            return True
        who = self.modes.who(registry, repository, credential)
        return self._known(_key(registry, repository, ANYONE)) or (
            who != ANYONE and self._known(_key(registry, repository, who))
        )

    def keep(self, registry: str, repository: Repository, credential: Credential | None) -> None:
        """Record a yes."""
        self._keep(_key(registry, repository, self.modes.who(registry, repository, credential)))

    def close(self, registry: str, repository: Repository) -> None:
        """Record that strangers may not read a repository."""
        self._keep(_key(registry, repository, NOBODY))

    def is_closed(self, registry: str, repository: Repository) -> bool:
        """Whether strangers are known not to be let read a repository."""
        return self._known(_key(registry, repository, NOBODY))

    def _keep(self, key: str) -> None:
        until = self._clock() + KEEP_SECONDS
        self._remember(key, until)
        self._index.put_soon(key, str(until), seconds=KEEP_SECONDS)

    def _known(self, key: str) -> bool:
        now = self._clock()
        if now < self._kept.get(key, 0.0) <= now + LONGEST:
            return True
        until = _until(self._index.get(key))
        if not now < until <= now + LONGEST:
            return False
        self._remember(key, until)
        return True

    def _remember(self, key: str, until: float) -> None:
        self._kept.pop(key, None)  # to its end; other threads may be here too
        self._kept[key] = until
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)


def _until(row: object) -> float:
    try:
        return float(row) if isinstance(row, str) else 0.0
    except ValueError:
        return 0.0


def _key(registry: str, repository: Repository, who: str) -> str:
    return PREFIX + hashlib.sha256(f"{who}\0{registry}\0{repository}".encode()).hexdigest()
