"""How a registry's no is told: as an ordinary answer of it, or as a refusal."""

from http import HTTPStatus

from mitm_cache.answers import explain
from mitm_cache.errors import LoginError, MitmCacheError
from mitm_cache.wire.message import Request, Response


def tell(error: MitmCacheError, request: Request) -> Response:
    """The answer to what went wrong.

    Each push asks for what is not here yet, and clients wait to be asked before they show a password or a token: both
    are LOCAL.
    """
    response = explain(error, request)
    if response.status == HTTPStatus.NOT_FOUND or (isinstance(error, LoginError) and _is_unasked(request)):
        response.outcome = "LOCAL"
    return response


def _is_unasked(request: Request) -> bool:
    """Whether a client has shown nothing yet by which it could be known."""
    return request.credential is None and request.user == "" and not request.bearer
