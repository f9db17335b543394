"""Who may pull what from the demo registry: users, private repositories, challenges and tokens."""

import base64
import binascii
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mitm_cache.demo.message import Answer, Incoming, document, problem


@dataclass(frozen=True, slots=True)
class _Token:
    repositories: frozenset[str]
    expires: float


@dataclass(slots=True)
class Access:
    """The rules; all of them may be changed while the registry serves.

    A repository that `private` does not name is public. With "bearer" public ones need an anonymous token, as on
    Docker Hub; with "basic" they need nothing. `denied` is the status for a known user without the right.
    """

    scheme: Literal["none", "basic", "bearer"] = "none"
    users: dict[str, str] = field(default_factory=dict)
    private: dict[str, set[str]] = field(default_factory=dict)
    anonymous: bool = True
    denied: int = 401
    lifetime: int = 300
    realm: str | None = None
    clock: Callable[[], float] = time.time
    _tokens: dict[str, _Token] = field(default_factory=dict, repr=False)

    def refuse(self, incoming: Incoming, repository: str | None) -> Answer | None:
        """The refusal of a request for `repository` (None: for the registry itself), or nothing if it is allowed."""
        if self.scheme == "none":
            return None
        kind, _, credential = incoming.headers.get("authorization", "").partition(" ")
        if self.scheme == "basic":
            return self._refuse_basic(incoming, repository, kind, credential)
        token = self._tokens.get(credential) if kind.lower() == "bearer" else None
        if token is None or token.expires <= self.clock():
            return self.challenge(incoming, repository, "invalid_token" if kind else None)
        if repository is not None and repository not in token.repositories:
            return self._deny(incoming, repository)
        return None

    def token(self, incoming: Incoming) -> Answer:
        """What the token endpoint says: tokens carry only the rights that the asker has."""
        user = None
        if "authorization" in incoming.headers:
            user = self._login(*incoming.headers["authorization"].partition(" ")[::2])
            if user is None:
                return problem(401, "UNAUTHORIZED", "incorrect username or password")
        if incoming.method != "GET" or (user is None and not self.anonymous):
            return problem(405 if user or self.anonymous else 401, "UNAUTHORIZED", "no token for this request")
        asked = [scope.split(":") for scope in incoming.query.get("scope", "").split()]
        names = {scope[1] for scope in asked if len(scope) == 3 and scope[0] == "repository" and "pull" in scope[2]}
        value = secrets.token_urlsafe(24)
        granted = frozenset(name for name in names if self.allows(user, name))
        self._tokens[value] = _Token(granted, self.clock() + self.lifetime)
        return document(200, {"token": value, "access_token": value, "expires_in": self.lifetime})

    def allows(self, user: str | None, repository: str) -> bool:
        """Whether this user, or nobody in particular, may pull."""
        return repository not in self.private or user in self.private[repository]

    def revoke(self) -> None:
        """Forget every token handed out."""
        self._tokens.clear()

    def challenge(self, incoming: Incoming, repository: str | None, error: str | None = None) -> Answer:
        """401, and how to do better."""
        host = incoming.headers.get("host", "")
        if self.scheme == "basic":
            value = 'Basic realm="demo"'
        else:
            # The realm follows the name by which we are known, so that a client behind any address finds it.
            value = f'Bearer realm="{self.realm or f"https://{host}/token"}",service="demo"'
            value += f',scope="repository:{repository}:pull"' if repository else ""
            value += f',error="{error}"' if error else ""
        return problem(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": value})

    def _refuse_basic(self, incoming: Incoming, repository: str | None, kind: str, credential: str) -> Answer | None:
        user = self._login(kind, credential)
        if user is None and (kind or repository is None or repository in self.private):
            return self.challenge(incoming, repository)
        if repository is not None and not self.allows(user, repository):
            return self._deny(incoming, repository)
        return None

    def _deny(self, incoming: Incoming, repository: str) -> Answer:
        if self.denied == 401:
            return self.challenge(incoming, repository, "insufficient_scope")
        code = "NAME_UNKNOWN" if self.denied == 404 else "DENIED"
        return problem(self.denied, code, f"requested access to {repository} is denied")

    def _login(self, kind: str, credential: str) -> str | None:
        if kind.lower() != "basic":
            return None
        try:
            user, _, password = base64.b64decode(credential, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return user if self.users.get(user) == password else None
