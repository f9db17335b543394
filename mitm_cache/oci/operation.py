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
class Other:
    """Anything else on a registry's host: token endpoints, login pages, web interfaces, extensions of its API."""


type Operation = Ping | Manifest | Blob | TagList | Referrers | Catalog | Upload | Other


def classify(path: str) -> Operation:
    """What `path` (no query) asks for; raise ClientError where it is an endpoint of the spec with an invalid part."""
    if len(path) > MAX_PATH:
        raise ClientError(f"the path is longer than {MAX_PATH} bytes", status=414)
    if not path.startswith("/"):
        raise ClientError("a path begins with /", status=405)
    if not {".", ".."}.isdisjoint(path.split("/")):
        raise ClientError("a path here holds no . and .. segments", code="NAME_INVALID")
    if path in ("/v2", "/v2/"):
        return Ping()
    if not path.startswith("/v2/"):
        return Other()
    if path == "/v2/_catalog":
        return Catalog()
    return _classify_in_repository(path.removeprefix("/v2/"))


def _classify_in_repository(rest: str) -> Operation:
    # Where an upload goes on is the registry's own choice, told in a Location: blobs/upload/<any> at some.
    uploading, found, _ = rest.partition("/blobs/upload")
    if "%" in rest and not found:
        raise ClientError("a registry path holds no percent-encoded characters", code="NAME_INVALID")
    match rest.rsplit("/", 2):
        case [name, "manifests", reference]:
            return Manifest(Repository.parse(name), parse_reference(reference))
        case [name, "tags", "list"]:
            return TagList(Repository.parse(name))
        case [name, "referrers", digest]:
            return Referrers(Repository.parse(name), Digest.parse(digest))
        case [name, "blobs", digest] if digest not in ("upload", "uploads"):
            return Blob(Repository.parse(name), Digest.parse(digest))
    return Upload(Repository.parse(uploading)) if found else Other()


def is_pull(method: str, operation: Operation) -> bool:
    """Whether a request is answered by what the cache knows of pulls; all others are relayed as they are."""
    return method in ("GET", "HEAD") and not isinstance(operation, Upload | Other)


def repository_of(operation: Operation) -> Repository | None:
    """The repository an operation is about, if it is about one."""
    match operation:
        case Ping() | Catalog() | Other():
            return None
        case _:  # all others have one, or the type checker objects
            return operation.repository
