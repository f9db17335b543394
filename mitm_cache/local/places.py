"""Where a client goes on: the places that answers name are relative, and lead to where the client came from. Pure."""

from urllib.parse import parse_qs

from mitm_cache.oci.reference import Repository
from mitm_cache.wire.message import Request

UPLOADS = "/blobs/uploads/"


def place(request: Request, repository: Repository, below: str, query: str = "") -> str:
    """A path of the registry's API below a repository, as in `blobs/uploads/…`, for a Location.

    It keeps the prefix that the client uses at a mirror. A client that named the registry by `?ns=` alone need not say
    it again where a Location leads it, so that this does.
    """
    queries = [part for part in (query, space(request)) if part]
    return f"/v2/{request.given}{repository}/{below}{'?' if queries else ''}{'&'.join(queries)}"


def space(request: Request) -> str:
    """The part of a query that names this registry, "" where the path or the Host does."""
    host = (request.headers.get("host") or "").lower()
    names = request.registry.names
    if not request.mirror or request.given or host in names or host.rpartition(":")[0] in names:
        return ""
    return f"ns={request.registry.name}"


def fields(request: Request) -> dict[str, str]:
    """The parameters of a request, each by its first value."""
    return {name: values[0] for name, values in parse_qs(request.target.partition("?")[2]).items()}


def upload_in(request: Request) -> str:
    """The identity of the upload that a path names, "" where it names none."""
    return request.target.partition("?")[0].rpartition(UPLOADS)[2]
