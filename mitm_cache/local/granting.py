"""Where clients get their tokens (Docker's "Token Authentication Specification"): a stranger one for strangers, a user
one by a password, which is in the header of a GET or, by OAuth 2 (RFC 6749, 4.3), in the form of a POST.

A token holds nothing of what is asked for: it says who somebody is, and what that one may do is judged with each
request.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import parse_qs

from mitm_cache.answers import API_VERSION, explain, small
from mitm_cache.errors import ClientError, LoginError, MitmCacheError
from mitm_cache.local.rights import check_browser
from mitm_cache.local.telling import tell
from mitm_cache.oci.operation import Other
from mitm_cache.users import OwnTokens
from mitm_cache.users.tokens import SECONDS
from mitm_cache.wire.basic import Basic
from mitm_cache.wire.message import Intake, Request, Response

PATH = "/v2/token"
ON_THE_WAY = 60
"""Seconds that a token is good for longer than it says: clients begin to count when it has come."""
MAX_QUERY = 8192
"""Bytes of a query or form: a scope for each of many repositories."""
FORM = "application/x-www-form-urlencoded"


def is_asked(request: Request) -> bool:
    """Whether a request is for a token."""
    return isinstance(request.operation, Other) and request.target.partition("?")[0] == PATH


def _is_anothers(request: Request) -> bool:
    """Whether a token is wanted for another registry's repositories alone, whose mirror this is.

    dockerd shows its mirror the login that it has at Docker Hub, and goes past a mirror that does not take it.
    """
    names = request.registry.names
    host = (request.headers.get("host") or "").lower()
    if not request.mirror or host in names or host.rpartition(":")[0] in names:
        return False
    scopes = " ".join(parse_qs(request.target.partition("?")[2]).get("scope", [])).split()
    firsts = {scope.removeprefix("repository:").partition("/")[0] for scope in scopes}
    return bool(scopes) and firsts.isdisjoint({request.registry.prefix, *names})


def grant(tokens: OwnTokens, request: Request) -> Response:
    """The answer to a GET. Raises ClientError."""
    if len(request.target) - len(PATH) > MAX_QUERY:
        raise ClientError(f"the query of a request for a token has at most {MAX_QUERY} bytes", status=414)
    if request.bearer or (request.credential is not None and not _is_anothers(request)):
        # A token is had by a password, so that this is not to ask for a token again; one that had another by itself
        # would never end.
        return _refusal(request, "the user or the password is wrong, or this is no password")
    return _answer(tokens, request, request.user)


def receive(tokens: OwnTokens, request: Request) -> Intake:
    """Where the form of a POST goes. Raises ClientError."""
    check_browser(request)
    if (request.headers.get("content-type") or "").partition(";")[0].strip().lower() != FORM:
        raise ClientError(f"a token is asked for by GET, or by POST with a form, {FORM}", status=415)

    async def finish(content: bytes) -> Response:
        fields = parse_qs(content.decode(errors="surrogateescape"), errors="surrogateescape")  # a password is any bytes
        kind, name, password = (fields.get(key, [""])[0] for key in ("grant_type", "username", "password"))
        if kind != "password" or not name or not password:
            raise ClientError("a form for a token has grant_type=password, username and password")
        login = Basic(name, password.encode(errors="surrogateescape"))
        if not name.isprintable() or not await tokens.fit(request.client, login):
            return _refusal(request, "the user or the password is wrong")
        return _answer(tokens, request, name, scope=" ".join(fields.get("scope", [])))

    return Form(request, finish)


class Form:
    """The short body of a POST, which holds a password: it is in memory only."""

    def __init__(self, request: Request, finish: Callable[[bytes], Awaitable[Response]]) -> None:
        self._request, self._finish = request, finish
        self._content = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises ClientError where it is too long."""
        if len(self._content) + len(data) > MAX_QUERY:
            raise ClientError(f"the form of a request for a token has at most {MAX_QUERY} bytes", status=413)
        self._content += data

    async def finish(self) -> Response:
        """The answer."""
        try:
            return await self._finish(self._content)
        except MitmCacheError as error:
            return tell(error, self._request)

    def close(self) -> None:
        """Forget it."""
        self._content = b""


def _refusal(request: Request, words: str) -> Response:
    return explain(LoginError(words), replace(request, realm=None))


def _answer(tokens: OwnTokens, request: Request, name: str, **more: str) -> Response:
    token = tokens.issue(name)
    # No issued_at: clients take it as of their own clock, which may be behind, and would show the token when it has
    # ended. Without it they count from when they have got it.
    said = {"token": str(token), "access_token": str(token), "expires_in": SECONDS - ON_THE_WAY, **more}
    headers = [API_VERSION, ("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    who = f"a token for {name}" if name else "a token for a stranger"
    return small(HTTPStatus.OK, headers, json.dumps(said).encode(), request, outcome="LOCAL", reason=who)
