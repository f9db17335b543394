"""Where clients get their tokens (Docker's "Token Authentication Specification"): a stranger one for strangers, a user
one by a password.

A token holds nothing of what the query asks for: it says who somebody is, and what that one may do is judged with each
request.
"""

import json
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import parse_qs

from mitm_cache.answers import API_VERSION, explain, small
from mitm_cache.errors import ClientError, LoginError
from mitm_cache.oci.operation import Other
from mitm_cache.users import OwnTokens
from mitm_cache.users.tokens import SECONDS
from mitm_cache.wire.message import Request, Response

PATH = "/v2/token"
ON_THE_WAY = 60
"""Seconds that a token is good for longer than it says: clients begin to count when it has come."""
MAX_QUERY = 8192
"""Bytes of a query: a scope for each of many repositories."""


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
        error = LoginError("the user or the password is wrong, or this is no password")
        return explain(error, replace(request, realm=None))
    token = tokens.issue(request.user)
    # No issued_at: clients take it as of their own clock, which may be behind, and would show the token when it has
    # ended. Without it they count from when they have got it.
    said = {"token": str(token), "access_token": str(token), "expires_in": SECONDS - ON_THE_WAY}
    headers = [API_VERSION, ("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    who = f"a token for {request.user}" if request.user else "a token for a stranger"
    return small(HTTPStatus.OK, headers, json.dumps(said).encode(), request, outcome="LOCAL", reason=who)
