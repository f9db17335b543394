"""The names that a node's hosts file leads to the cache."""

from collections.abc import Iterable, Iterator

from mitm_cache.parsing import is_address
from mitm_cache.registries import LOCALHOST, Known


def rows(known: Known, names: Iterable[str], *, token_hosts: bool = False) -> Iterator[tuple[str, ...]]:
    """The cache's own names, then those of each registry, with the hosts that issue its tokens if they are wanted.

    Without ports, addresses and repetitions.
    """
    told: set[str] = {LOCALHOST}
    issuers = {registry.name: registry.auth_hosts if token_hosts else () for registry in known}
    for hosts in (names, *((*registry.hosts, *issuers[registry.name]) for registry in known)):
        new = [host for host in dict.fromkeys(map(_without_port, hosts)) if host not in told and not is_address(host)]
        if new:
            yield tuple(new)
        told.update(new)


def _without_port(host: str) -> str:
    return host if is_address(host) else host.partition(":")[0]
