"""Which registry a request to a mirror is for (OCI distribution-spec, "Registry Proxying", and what clients do).

In one fixed order: `?ns=`, then a first path part that is a registry, then the Host, then Docker Hub. A registry that
is named and not known is refused: an answer from another one would be a wrong image under a right name. No I/O.
"""

from dataclasses import dataclass
from urllib.parse import unquote

from mitm_cache.errors import ClientError
from mitm_cache.oci.operation import classify, repository_of
from mitm_cache.registries import DOCKER_HUB, Known, Registry

BASE = "/v2/"
NAMESPACE = "ns"


@dataclass(frozen=True, slots=True)
class Place:
    """A registry, and the path and query by which it is asked there.

    `mirror`: the client asks us in the registry's stead; `given`: what stands before a repository's name in the paths
    it uses, as in `quay.io/`; `chosen`: whether it has named the registry, rather than left it to us.
    """

    registry: Registry
    target: str
    mirror: bool = False
    given: str = ""
    chosen: bool = True


def is_registry_path(target: str) -> bool:
    """Whether a path is of the registry API."""
    path = target.partition("?")[0]
    return path == BASE.rstrip("/") or path.startswith(BASE)


def resolve(target: str, by_host: Registry | None, known: Known, port: int = 0) -> Place:
    """Where a request to a mirror leads; `by_host`: the registry that Host names, if one; `port`: the mirror's.

    Raises ClientError: 404 for a registry that is not known, 400 for more than one.
    """
    path, _, query = target.partition("?")
    fields = [field for field in query.split("&") if field]
    spaces = [unquote(field.partition("=")[2]) for field in fields if field.partition("=")[0] == NAMESPACE]
    rest = "&".join(field for field in fields if field.partition("=")[0] != NAMESPACE)
    first, slash, below = path.removeprefix(BASE).partition("/")
    by_path = known.part(first) if path.startswith(BASE) and first else None
    if len(spaces) > 1:
        raise ClientError(f"a request names one registry by ?{NAMESPACE}=, not {len(spaces)}")
    if spaces:
        registry = known.find(spaces[0]) or _own(spaces[0], known, port)
        if registry is None:
            raise ClientError(
                f"{NAMESPACE}={spaces[0][:128]!r} is not a registry that this cache serves; [registries] of its "
                "configuration adds one",
                status=404,
                code="NAME_UNKNOWN",
            )
        prefixed = by_path is registry
    else:
        registry = by_path or by_host or known.named(DOCKER_HUB.name) or DOCKER_HUB
        prefixed = by_path is not None
    if prefixed:
        path = f"{BASE}{below}"
    path = _with_library(path) if registry.name == DOCKER_HUB.name else path
    given = f"{first}/" if prefixed and slash else ""
    chosen = bool(spaces or by_path or by_host)
    return Place(registry, f"{path}?{rest}" if rest else path, mirror=True, given=given, chosen=chosen)


def _own(space: str, known: Known, port: int) -> Registry | None:
    """The local registry by one of its names and the mirror's own port, which is part of its images' names."""
    name, _, given = space.rpartition(":")
    found = known.find(name) if given == str(port) else None
    return found if found is not None and found.is_local else None


def _with_library(path: str) -> str:
    """Docker Hub's official images are below `library/`, which users leave out."""
    repository = repository_of(classify(path))
    return f"{BASE}library/{path.removeprefix(BASE)}" if repository and "/" not in str(repository) else path
