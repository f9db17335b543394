"""Anonymous tokens (Docker token authentication), for clients that bring no credential: mirror clients never do.

A realm is asked only where it belongs to the registry that names it: a hostile registry could otherwise send this
cache to any address (the class of CVE-2026-33540).
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlencode, urlsplit, urlunsplit

from mitm_cache.errors import UpstreamError
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import Registry
from mitm_cache.upstream.curl import Answer
from mitm_cache.wire.challenge import Bearer
from mitm_cache.wire.redirect import Origin

DEFAULT_SECONDS = 60
"""How long a token lives that does not say (distribution's token specification)."""
MARGIN = 10
"""Seconds before its end at which a token is no longer used."""
MAX_TOKENS = 4096


def belongs(realm: str, registry: Registry, home: Origin) -> bool:
    """Whether a token may be asked for at `realm`: the registry's own host, or one of its auth_hosts, by https."""
    try:
        origin = Origin.of(realm)
    except UpstreamError:
        return False
    if origin == home:
        return True
    return origin.scheme == "https" and origin.authority in (*registry.auth_hosts, *registry.names)


class AnonymousTokens:
    """Tokens by registry and repository, asked for when a challenge names their realm."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()

    def find(self, registry: Registry, repository: Repository) -> str | None:
        """A token that is still good, if there is one."""
        with self._lock:
            token, until = self._tokens.get((registry.name, repository.name), ("", 0.0))
        return token if until > self._clock() else None

    def drop(self, registry: Registry, repository: Repository) -> None:
        """Forget a token that was refused."""
        with self._lock:
            self._tokens.pop((registry.name, repository.name), None)

    def acquire(
        self, registry: Registry, repository: Repository, challenge: Bearer, get: Callable[[str], Answer]
    ) -> str | None:
        """Ask the challenge's realm for a token by `get`; None where it gives none to strangers."""
        answer = get(_token_url(challenge, repository))
        token, seconds = _parse_token(answer) if answer.ok else (None, 0)
        if token is not None:
            with self._lock:
                self._tokens[registry.name, repository.name] = (token, self._clock() + seconds - MARGIN)
                while len(self._tokens) > MAX_TOKENS:
                    self._tokens.popitem(last=False)
        return token


def _token_url(challenge: Bearer, repository: Repository) -> str:
    parts = urlsplit(challenge.realm)
    query = {"scope": challenge.scope or f"repository:{repository}:pull"}
    if challenge.service:
        query["service"] = challenge.service
    added = urlencode(query)
    return urlunsplit(parts._replace(query=f"{parts.query}&{added}" if parts.query else added, fragment=""))


def _parse_token(answer: Answer) -> tuple[str | None, float]:
    try:
        fields = json.loads(answer.body)
        token = fields.get("token") or fields.get("access_token")
        seconds = float(fields.get("expires_in") or DEFAULT_SECONDS)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return None, 0
    printable = isinstance(token, str) and token.isascii() and token.isprintable() and token != ""
    return (token, seconds) if printable else (None, 0)
