"""Tokens (Docker token authentication) for clients that bring no credential, as mirror clients never do: those that
strangers get, and those that the cache's own credentials get, apart from each other.

A realm is asked only where it belongs to the registry that names it: a hostile registry could otherwise send this
cache to any address (the class of CVE-2026-33540).
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit, urlunsplit

from mitm_cache.errors import UpstreamError
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import Registry
from mitm_cache.upstream.credentials import Credentials, Kind, Login
from mitm_cache.upstream.curl import Answer
from mitm_cache.wire.challenge import Bearer
from mitm_cache.wire.redirect import Origin

DEFAULT_SECONDS = 60
"""How long a token lives that does not say (distribution's token specification)."""
MARGIN = 10
"""Seconds before its end at which a token is no longer used."""
MAX_TOKENS = 4096
CLIENT_ID = "mitm-cache"
"""Who asks, where OAuth 2 wants to know it."""


def belongs(realm: str, registry: Registry, home: Origin) -> bool:
    """Whether a token may be asked for at `realm`: the registry's own host, or one of its auth_hosts, by https."""
    try:
        origin = Origin.of(realm)
    except UpstreamError:
        return False
    if origin == home:
        return True
    return origin.scheme == "https" and origin.authority in (*registry.auth_hosts, *registry.names)


@dataclass(frozen=True, slots=True)
class Question:
    """What a realm is asked: a GET, or a POST of `form`, with an `Authorization` if that is not empty."""

    url: str
    form: bytes = field(default=b"", repr=False)
    authorization: str = field(default="", repr=False)


class Tokens:
    """Tokens by registry, repository and credential, asked for when a challenge names their realm."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, credentials: Credentials | None = None) -> None:
        """`credentials`: the cache's own."""
        self.credentials = credentials or Credentials()
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: OrderedDict[tuple[str, str, str], tuple[str, float]] = OrderedDict()

    def find(self, registry: Registry, repository: Repository, login: Login | None = None) -> str | None:
        """A token that is still good, if there is one; a stranger's where there is no login."""
        with self._lock:
            token, until = self._tokens.get(_key(registry, repository, login), ("", 0.0))
        return token if until > self._clock() else None

    def drop(self, registry: Registry, repository: Repository, login: Login | None = None) -> None:
        """Forget a token that was refused."""
        with self._lock:
            self._tokens.pop(_key(registry, repository, login), None)

    def acquire(
        self,
        registry: Registry,
        repository: Repository,
        challenge: Bearer,
        ask: Callable[[Question], Answer],
        login: Login | None = None,
    ) -> str | None:
        """Ask the challenge's realm for a token by `ask`; None where it gives none. The realm must belong to the
        registry: a login is told to it."""
        answer = ask(_question(challenge, repository, login))
        token, seconds = _parse_token(answer) if answer.ok else (None, 0)
        if token is not None:
            with self._lock:
                self._tokens[_key(registry, repository, login)] = (token, self._clock() + seconds - MARGIN)
                while len(self._tokens) > MAX_TOKENS:
                    self._tokens.popitem(last=False)
        return token


def _key(registry: Registry, repository: Repository, login: Login | None) -> tuple[str, str, str]:
    return (registry.name, repository.name, login.fingerprint if login is not None else "")


def _question(challenge: Bearer, repository: Repository, login: Login | None) -> Question:
    parts = urlsplit(challenge.realm)._replace(fragment="")
    fields = {"scope": challenge.scope or _pull(repository.name)}
    if login is not None:
        # By our own credential a registry gets tokens to pull, whatever it asks for.
        fields["scope"] = _only_pull(challenge.scope) or _pull(repository.name)
    if challenge.service:
        fields["service"] = challenge.service
    if login is not None and login.kind is Kind.IDENTITY:
        form = fields | {"grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": login.secret}
        return Question(urlunsplit(parts), urlencode(form).encode())
    added = urlencode(fields)
    url = urlunsplit(parts._replace(query=f"{parts.query}&{added}" if parts.query else added))
    return Question(url, authorization=login.basic if login is not None else "")


def _pull(repository: str) -> str:
    return f"repository:{repository}:pull"


def _only_pull(scope: str) -> str:
    """The scope for the same repository, by the name that the registry has for it; "" where it names none."""
    words = scope.split(":")
    return _pull(words[1]) if len(words) == 3 and words[0] == "repository" and words[1] and " " not in scope else ""


def _parse_token(answer: Answer) -> tuple[str | None, float]:
    try:
        fields = json.loads(answer.body)
        token = fields.get("token") or fields.get("access_token")
        seconds = float(fields.get("expires_in") or DEFAULT_SECONDS)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return None, 0
    printable = isinstance(token, str) and token.isascii() and token.isprintable() and token != ""
    return (token, seconds) if printable else (None, 0)
