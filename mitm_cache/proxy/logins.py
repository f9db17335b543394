"""Who asks: what an `Authorization` says that is for the cache itself, and where clients get a token of it.

Passwords and tokens of the cache never go upstream. A token counts at the local registry, and for what is asked of the
cache as a mirror, whose ping has asked for it; other registries have asked for one of their own.
"""

import re
from dataclasses import dataclass, replace
from typing import Protocol

from mitm_cache.answers import explain
from mitm_cache.errors import ClientError, TokenError
from mitm_cache.users import OwnTokens, Users
from mitm_cache.users.tokens import Token, is_bearer, parse_bearer
from mitm_cache.wire.basic import Basic, parse_basic
from mitm_cache.wire.challenge import Realm
from mitm_cache.wire.message import Request, Response

_AUTHORITY = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Connected:
    """The user of a connection, who may be none any more."""


type Login = Basic | Token | Connected
"""What has to be judged, which may take a while."""


class Asking(Protocol):
    """A request and whose it is, or the answer that it has already; `hash` is of the password by which its connection
    was let in, where it was."""

    client: str
    user: str
    hash: str
    request: Request | None
    response: Response | None


class Logins:
    """Finds out who asks, before anything is done for it."""

    def __init__(self, users: Users | None, tokens: OwnTokens | None = None) -> None:
        """`users`: whose passwords are for the cache itself; `tokens`: what it gives out, where it does."""
        self._users = users
        self._tokens = tokens

    def realm(self, *, tls: bool, authority: str, local: bool, mirror: bool) -> Realm | None:
        """Where a client gets a token: at the very host and port by which it came, so that it needs no other way.

        Below `local/` at a mirror, where any other path may be another registry's. None where there are no tokens.
        """
        if self._tokens is None or not (local or mirror) or not _AUTHORITY.fullmatch(authority):
            return None
        return Realm(f"{'https' if tls else 'http'}://{authority}/v2/{'local/' if mirror else ''}token", authority)

    def sort(self, asking: Asking) -> Login | None:
        """What `settle` has to judge of a request; None where there is nothing, and where all is known already."""
        if self._users is None or asking.request is None or asking.response is not None:
            return None
        if asking.hash:
            if not self._users.is_current():
                return Connected()
            self._hold(self._users, asking)
        return self._sort(self._users, asking)

    def _sort(self, users: Users, asking: Asking) -> Basic | Token | None:
        request = asking.request
        assert request is not None
        if request.credential is None:
            return None
        values = request.headers.get_all("authorization")
        if self._tokens is not None and self._is_for_us(self._tokens, request, values):
            token = parse_bearer(values)
            if token is not None and not users.is_current():
                return token
            self._judge(self._tokens, asking, token)
            return None
        login = parse_basic(values)
        if login is None:
            return None
        right = users.recall(login)
        if right:
            _take(asking, login.name)
        return login if right is None else None

    async def settle(self, asking: Asking, login: Login) -> None:
        """Keep what is for the cache itself from going upstream; anything else is for the registry."""
        assert self._users is not None
        if isinstance(login, Connected):
            await self._users.look()
            self._hold(self._users, asking)
            if (more := self._sort(self._users, asking)) is None:
                return
            login = more
        if isinstance(login, Token):
            assert self._tokens is not None
            await self._users.look()
            self._judge(self._tokens, asking, login)
            return
        try:
            if await self._users.check(asking.client, login):
                _take(asking, login.name)
        except ClientError as error:
            if self._users.knows(login.name):  # it may be the right password, and upstream is not to see that
                asking.response = explain(error, asking.request)

    def _hold(self, users: Users, asking: Asking) -> None:
        """A connection is its user's for as long as that one has the password which let it in; then a stranger's."""
        assert asking.request is not None
        if users.hash_of(asking.user) != asking.hash:
            asking.user = ""
            asking.request = replace(asking.request, user="")

    def _is_for_us(self, tokens: OwnTokens, request: Request, values: list[str]) -> bool:
        if request.registry.is_local and is_bearer(values):
            return True
        return request.credential is not None and tokens.are_in(request.credential.header)

    def _judge(self, tokens: OwnTokens, asking: Asking, token: Token | None) -> None:
        """`token`: None where it is malformed."""
        request = asking.request
        assert request is not None
        if not (request.registry.is_local or request.mirror):
            asking.request = _without(request)
            return
        name = tokens.holder(token) if token is not None else None
        if name is None:
            error = TokenError("this token is not one of this cache's, or is good no more: get another one")
            asking.response = explain(error, request)
        else:
            _take(asking, name, bearer=True)


def _take(asking: Asking, name: str, *, bearer: bool = False) -> None:
    """`name`: "" for a stranger, who may be known by other means."""
    assert asking.request is not None
    asking.user = name or asking.user
    asking.request = replace(_without(asking.request), user=asking.user, bearer=bearer)


def _without(request: Request) -> Request:
    return replace(request, headers=request.headers.without(["authorization"]), credential=None)
