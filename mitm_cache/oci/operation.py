"""What a path under a registry's name asks for (OCI distribution-spec 1.1, "Endpoints").

A path is classified once, at the door; beyond it there are only these values. The path is matched as it was
sent: a percent sign means an encoded character, which no valid name, tag or digest needs, so it is refused
rather than decoded (an encoded slash would name another repository to whoever decodes it later).
"""

from dataclasses import dataclass

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Reference, Repository, parse_reference

MAX_PATH = 2048
"""Bytes of a path and query; registries' own limits are lower."""

TOKEN_PATHS = frozenset(
    {
        "/token",
        "/token/",
        "/v2/auth",
        "/v2/token",
        "/v2/_auth",
        "/jwt/auth",
        "/service/token",
        "/oauth2/token",
        "/oauth2/exchange",
        "/auth",
        "/auth/token",
    }
)
"""Where registries serve the tokens of the Docker token authentication on their own host."""


@dataclass(frozen=True, slots=True)
class Ping:
    """`/v2/`: is this a registry, and which credentials does it want?"""


@dataclass(frozen=True, slots=True)
class Manifest:
    repository: Repository
    reference: Reference


@dataclass(frozen=True, slots=True)
class Blob:
    repository: Repository
    digest: Digest


@dataclass(frozen=True, slots=True)
class TagList:
    repository: Repository


@dataclass(frozen=True, slots=True)
class Referrers:
    repository: Repository
    digest: Digest


@dataclass(frozen=True, slots=True)
class Catalog:
    """`/v2/_catalog`: the names of all repositories."""


@dataclass(frozen=True, slots=True)
class Upload:
    repository: Repository


@dataclass(frozen=True, slots=True)
class TokenExchange:
    """A token endpoint on the registry's own host."""


@dataclass(frozen=True, slots=True)
class Other:
    """Anything else on a registry's host: login pages, web interfaces."""


type Operation = Ping | Manifest | Blob | TagList | Referrers | Catalog | Upload | TokenExchange | Other


def classify(path: str) -> Operation:
    """What `path` (no query) asks for; raise ClientError where it is a registry path with an invalid part."""
    if len(path) > MAX_PATH:
        raise ClientError(f"the path is longer than {MAX_PATH} bytes", status=414)
    if path in TOKEN_PATHS:
        return TokenExchange()
    if path in ("/v2", "/v2/"):
        return Ping()
    if not path.startswith("/v2/"):
        return Other()
    if "%" in path:
        raise ClientError("a registry path holds no percent-encoded characters", code="NAME_INVALID")
    if path == "/v2/_catalog":
        return Catalog()
    return _classify_in_repository(path.removeprefix("/v2/"))


def _classify_in_repository(rest: str) -> Operation:
    match rest.rsplit("/", 2):
        case [name, "manifests", reference]:
            return Manifest(Repository.parse(name), parse_reference(reference))
        case [name, "tags", "list"]:
            return TagList(Repository.parse(name))
        case [name, "referrers", digest]:
            return Referrers(Repository.parse(name), Digest.parse(digest))
        case [name, "blobs", digest] if digest != "uploads":
            return Blob(Repository.parse(name), Digest.parse(digest))
    name, found, session = rest.partition("/blobs/uploads")
    if found and session[:1] in ("", "/"):
        return Upload(Repository.parse(name))
    raise ClientError(
        "no such registry endpoint; a path ends in manifests/<reference>, blobs/<digest>, tags/list or "
        "referrers/<digest>",
        status=404,
        code="NAME_UNKNOWN",
    )


def repository_of(operation: Operation) -> Repository | None:
    """The repository an operation is about, if it is about one."""
    match operation:
        case Ping() | Catalog() | TokenExchange() | Other():
            return None
        case _:  # all others have one, or the type checker objects
            return operation.repository
