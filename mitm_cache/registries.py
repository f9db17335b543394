"""The table of known registries: the names by which one is reached, and the hosts that issue its tokens.

Facts from the registries' documentation; everything here can be overridden or extended under `[registries]`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Registry:
    """One registry under all its names.

    `name` is what users write in image names and what cache keys hold; `host` (with `:port` where it is not 443) is
    where its API is; `aliases` are other hosts that mean the same; `auth_hosts` issue its tokens besides `host`;
    `prefix` means it too as the first part of a path at a mirror, where its names do anyway.
    """

    name: str
    host: str
    aliases: tuple[str, ...] = ()
    auth_hosts: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Every host name that clients reach this registry by, without repetition."""
        return tuple(dict.fromkeys((self.name, self.host, *self.aliases)))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that nodes know it by: all but `local`, which is a word of this cache alone."""
        return tuple(name for name in self.names if name != LOCAL)

    def has(self, host: str) -> bool:
        """Whether a host (with `:port` where it has one) is its own, or issues its tokens. The hosts of a registry of
        the table are its own on every port."""
        name, _, port = host.partition(":")
        taken = {*self.names, *self.auth_hosts}
        if any(self.name == public.name for public in TABLE):
            return name in {each.partition(":")[0] for each in taken}
        return host in taken or (port == str(HTTPS) and name in taken)

    @property
    def is_local(self) -> bool:
        """Whether this is the registry that the cache itself is, and no other one is asked."""
        return self.name == LOCAL


HTTPS = 443
LOCALHOST = "localhost"
"""A host that is another one everywhere: nobody's hosts file leads it elsewhere."""
LOCAL = "local"
"""The name of the registry for images of one's own, whatever hosts it is reached by."""

DOCKER_HUB = Registry(
    "docker.io",
    "registry-1.docker.io",
    aliases=("index.docker.io", "registry.hub.docker.com"),
    auth_hosts=("auth.docker.io",),
)

TABLE: tuple[Registry, ...] = (
    DOCKER_HUB,
    Registry("quay.io", "quay.io"),
    Registry("ghcr.io", "ghcr.io"),
    Registry("gcr.io", "gcr.io"),
    Registry("us.gcr.io", "us.gcr.io"),
    Registry("eu.gcr.io", "eu.gcr.io"),
    Registry("asia.gcr.io", "asia.gcr.io"),
    Registry("registry.k8s.io", "registry.k8s.io", aliases=("k8s.gcr.io",)),
    Registry("mcr.microsoft.com", "mcr.microsoft.com"),
    Registry("public.ecr.aws", "public.ecr.aws", aliases=("ecr-public.aws.com",)),
    Registry("registry.gitlab.com", "registry.gitlab.com", auth_hosts=("gitlab.com",)),
    Registry("registry.access.redhat.com", "registry.access.redhat.com"),
    Registry("registry.redhat.io", "registry.redhat.io", auth_hosts=("sso.redhat.com",)),
    Registry("registry.suse.com", "registry.suse.com", auth_hosts=("scc.suse.com",)),
    Registry("docker.elastic.co", "docker.elastic.co", auth_hosts=("docker-auth.elastic.co",)),
    Registry("nvcr.io", "nvcr.io", auth_hosts=("authn.nvidia.com",)),
    Registry("cgr.dev", "cgr.dev"),
)


class Known:
    """The registries this cache serves, found by any of their host names."""

    __slots__ = ("_by_host", "_by_name", "_by_prefix")

    def __init__(self, registries: Iterable[Registry]) -> None:
        self._by_name = {registry.name: registry for registry in registries}
        self._by_host = {host: registry for registry in self._by_name.values() for host in registry.names}
        self._by_prefix = {registry.prefix: registry for registry in self._by_name.values() if registry.prefix}

    def find(self, host: str) -> Registry | None:
        """The registry that a host name (with `:port` where it is not the scheme's own) means, or None."""
        name, colon, port = host.lower().partition(":")
        return self._by_host.get(f"{name.rstrip('.')}{colon}{port}")

    def at(self, host: str, port: int) -> Registry | None:
        """The registry that TLS to a host and port, as CONNECT names them, leads to, or None."""
        return self.find(f"{host}:{port}") or (self.find(host) if port == HTTPS else None)

    def part(self, part: str) -> Registry | None:
        """The registry that the first part of a path at a mirror means, or None."""
        return self._by_prefix.get(part) or self.find(part)

    def named(self, name: str) -> Registry | None:
        """The registry of a canonical name, or None."""
        return self._by_name.get(name)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host name that a node may send here."""
        return tuple(self._by_host)

    @property
    def local_hosts(self) -> tuple[str, ...]:
        """The hosts of the cache's own registry, without ports and repetitions; none where it has no registry."""
        local = self._by_name.get(LOCAL)
        return tuple(dict.fromkeys(host.partition(":")[0] for host in local.hosts)) if local else ()

    @property
    def server_names(self) -> frozenset[str]:
        """What TLS is asked for by whoever wants a registry: its names without ports."""
        return frozenset(host.partition(":")[0] for host in self._by_host)

    def __iter__(self) -> Iterator[Registry]:
        return iter(self._by_name.values())
