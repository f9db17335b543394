"""Tokens of our own, for the local registry: who has one is known by it for an hour. Nothing is kept but the key.

A token says who it is for and until when, under a MAC that covers the user's password hash too: a user who is removed,
or has another password, has no token from then on. What its holder may do is judged with each request.
"""

import hmac
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mitm_cache.errors import TokenError
from mitm_cache.users.key import read_or_make
from mitm_cache.users.users import Users
from mitm_cache.wire.basic import Basic

SECONDS = 3600
"""How long a token is good. Some clients get one before a push and no other in the middle of it; a shorter time would
protect little, since what a user loses ends at once."""
SLACK_SECONDS = 60
"""How far ahead of now plus SECONDS an expiry may be: the clock may have been set back meanwhile, a little."""
MAX_SIZE = 2048
"""Characters of a token; a name has at most 255, of four bytes each."""
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+)[ \t]*", re.IGNORECASE)
_TOKEN = re.compile(r"mitm-cache\.([0-9a-f]{1,64})\.([1-9][0-9]{0,11})\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says, true or not: `issuer` is a cache's identity, `name` a user's or "" for a stranger, `expires`
    seconds of the epoch. The MAC is never printed."""

    issuer: str
    name: str
    expires: int
    mac: bytes = field(repr=False)

    def __str__(self) -> str:
        """As it is sent."""
        return f"mitm-cache.{self.issuer}.{self.expires}.{_encode(self.name.encode())}.{_encode(self.mac)}"


def parse_token(text: str) -> Token | None:
    """A token as it is sent, or None where it is none: there is one way to write each."""
    matched = _TOKEN.fullmatch(text) if len(text) <= MAX_SIZE else None
    if matched is None:
        return None
    issuer, expires, name, mac = matched.groups()
    try:
        token = Token(issuer, _decode(name).decode(), int(expires), _decode(mac))
    except (NotBase64, UnicodeDecodeError):
        return None
    return token if str(token) == text else None


def is_bearer(values: Sequence[str]) -> bool:
    """Whether the values of an `Authorization` are a token of any kind (RFC 6750, 2.1)."""
    return any(value[:6].lower() == "bearer" for value in values)


def parse_bearer(values: Sequence[str]) -> Token | None:
    """The token that is the one value of an `Authorization`, or None where there is none or more."""
    matched = _BEARER.fullmatch(values[0]) if len(values) == 1 and len(values[0]) <= 2 * MAX_SIZE else None
    return parse_token(matched[1]) if matched is not None else None


class OwnTokens:
    """Issues them and knows them again, in all processes over one data directory."""

    def __init__(self, key: bytes, users: Users, *, issuer: str, now: Callable[[], float] = time.time) -> None:
        """`issuer`: the identity of the cache, which is no secret."""
        self._key = key
        self._users = users
        self._issuer = issuer
        self._mark = f"mitm-cache.{issuer}."
        self._now = now

    @classmethod
    def open(cls, path: Path, users: Users, *, issuer: str) -> Self:
        """With the key in a file, which is made if it is missing. Raises ConfigError."""
        return cls(read_or_make(path), users, issuer=issuer)

    def are_in(self, text: str) -> bool:
        """Whether something that looks like a token of this cache is anywhere in a text."""
        return self._mark in text

    def issue(self, name: str) -> Token:
        """A token for a user, or for a stranger (""). Raises TokenError where there is no such user any more."""
        expires = int(self._now()) + SECONDS
        mac = self._mac(name, expires)
        if mac is None:
            raise TokenError("there is no such user any more")
        return Token(self._issuer, name, expires, mac)

    async def fit(self, client: str, login: Basic) -> bool:
        """Whether a password is right. Raises ClientError (429) where a client, or all of them, try too many."""
        return await self._users.check(client, login)

    def holder(self, token: Token) -> str | None:
        """The user whose token it is, "" for a stranger's; None where it is no token of this cache, or none any
        more."""
        mac = self._mac(token.name, token.expires)
        right = token.issuer == self._issuer and mac is not None and hmac.compare_digest(mac, token.mac)
        left = token.expires - self._now()
        return token.name if right and 0 < left <= SECONDS + SLACK_SECONDS else None

    def _mac(self, name: str, expires: int) -> bytes | None:
        hash_ = self._users.hash_of(name) if name else ""
        if hash_ is None:
            return None
        parts = (b"token 1", self._issuer.encode(), name.encode(), expires.to_bytes(8), hash_.encode())
        return hmac.digest(self._key, b"".join(len(part).to_bytes(4) + part for part in parts), "sha256")


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
