"""The cache's own credentials for registries: which one is for what, kept as long as it is good.

A credential is given out for its own registry alone, and only to a question that asks for it; whether a client may
profit from it is decided in `rights` and `pull_through`.
"""

import hashlib
import logging
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Protocol

from mitm_cache.errors import ConfigError
from mitm_cache.oci.reference import Repository

logger = logging.getLogger(__name__)

ASK_SECONDS = 60.0
"""At most this often a source is asked again for a credential that was refused, or that it did not have."""
TELL_SECONDS = 600.0
"""At most this often the log says the same of one credential."""
_SECRET = re.compile(r"[^\x00-\x1f\x7f]+")


class Kind(Enum):
    """What a secret is: the password of a user, an identity token (OAuth 2's refresh token), or a bearer token."""

    PASSWORD = "password"  # noqa: S105 - the name of a kind
    IDENTITY = "identity token"
    BEARER = "bearer token"


@dataclass(frozen=True, slots=True, repr=False)
class Login:
    """A credential, which is never printed."""

    kind: Kind
    user: str
    secret: str

    def __repr__(self) -> str:
        return f"Login({self.kind.value})"

    @property
    def basic(self) -> str:
        """The `Authorization` of a user and a password (RFC 7617)."""
        return f"Basic {b64encode(f'{self.user}:{self.secret}'.encode()).decode()}"

    @property
    def fingerprint(self) -> str:
        """What tokens got with it are kept under."""
        return hashlib.sha256(f"{self.kind.value}\0{self.user}\0{self.secret}".encode()).hexdigest()


def parse_secret(key: str, text: str) -> Login:
    """`user:password`, or a bearer token: a text without a colon. Raises ConfigError, which does not show it."""
    text = text.strip()
    user, colon, password = text.partition(":")
    printable = _SECRET.fullmatch(text) and (text.isascii() or colon)
    if not printable or (colon and not (user and password)) or (not colon and " " in text):
        raise ConfigError(f"{key} holds neither user:password nor a token, in one line")
    return Login(Kind.PASSWORD, user, password) if colon else Login(Kind.BEARER, "", text)


class Source(Protocol):
    """Where a credential comes from."""

    @property
    def key(self) -> str:
        """The operator's name for it."""
        ...

    def check(self) -> None:
        """At the start of the service. Raises ConfigError where it can give nothing."""
        ...

    def stamp(self) -> object:
        """A value that changes with what is known of the source without asking it."""
        ...

    def read(self) -> Login:
        """Raises ConfigError, which names the key and shows no secret."""
        ...


class Keeper:
    """One credential, read when it is first needed, when its file changes, and when it was refused."""

    def __init__(self, pattern: str, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self.pattern = pattern
        self.key = source.key
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()  # held while the source is asked: one question is enough for all who wait
        self._login: Login | None = None
        self._stamp: object = None
        self._next = 0.0
        self._resting: tuple[Login | None, float] = (None, 0.0)
        self._told: dict[str, float] = {}

    @property
    def name(self) -> str:
        """What verdicts by this credential are kept under; nothing of the secret."""
        return f"{self.key} {self.pattern}"

    def login(self) -> Login | None:
        """The credential, None while the source has none. May take as long as a helper may."""
        with self._lock:
            stamp = self._source.stamp()
            if stamp != self._stamp or (self._login is None and self._due()):
                self._stamp = stamp
                self._read()
            wrong, until = self._resting
            return None if self._login == wrong and self._clock() < until else self._login

    def rest(self, wrong: Login) -> None:
        """Give a credential out no more for a minute: a wrong password that is tried again and again locks accounts."""
        with self._lock:
            self._resting = (wrong, self._clock() + ASK_SECONDS)

    def renew(self, refused: Login) -> Login | None:
        """Another credential than one that was refused, if the source has it by now."""
        with self._lock:
            if self._login == refused and self._due():
                self._read()
            return self._login if self._login != refused else None

    def tell(self, words: str) -> None:
        """Warn the operator, unless that was just done."""
        now = self._clock()
        if self._told.get(words, 0.0) <= now:
            if len(self._told) > 100:
                self._told.clear()
            self._told[words] = now + TELL_SECONDS
            about = "" if self.pattern == "*" else f" (for {self.pattern})"
            logger.warning("%s%s: %s", self.key, about, words)

    def _due(self) -> bool:
        return self._clock() >= self._next

    def _read(self) -> None:
        self._next = self._clock() + ASK_SECONDS
        try:
            self._login = self._source.read()
        except ConfigError as error:
            self._login = None
            self.tell(f"not used: {error.message}")


class Credentials:
    """Every credential of the cache, by registry and repository."""

    def __init__(self, keepers: Mapping[str, Iterable[Keeper]] | None = None) -> None:
        self._keepers = {registry: tuple(found) for registry, found in (keepers or {}).items()}

    def preferring(self, keepers: Mapping[str, Keeper]) -> "Credentials":
        """These, and before those of a registry the one that is named for it."""
        names = dict.fromkeys((*self._keepers, *keepers))
        first = {name: [keepers[name]] if name in keepers else [] for name in names}
        return Credentials({name: (*first[name], *self._keepers.get(name, ())) for name in names})

    def find(self, registry: str, repository: Repository) -> Keeper | None:
        """The first whose pattern covers the repository."""
        found = self._keepers.get(registry, ())
        return next((keeper for keeper in found if fnmatchcase(repository.name, keeper.pattern)), None)

    def name(self, registry: str, repository: Repository) -> str:
        """The name of the credential for a repository, "" where there is none."""
        keeper = self.find(registry, repository)
        return keeper.name if keeper is not None else ""
