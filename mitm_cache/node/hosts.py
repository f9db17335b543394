"""`/etc/hosts`: a marked block that leads the registries' names to the caches."""

from collections.abc import Iterator

from mitm_cache.errors import ConfigError
from mitm_cache.node.lines import add_block
from mitm_cache.node.model import Draft, Files, Settings
from mitm_cache.parsing import is_address
from mitm_cache.registries import LOCALHOST, Known

HOSTS = "/etc/hosts"


def plan_hosts(draft: Draft, settings: Settings, files: Files) -> None:
    """The block; every cache has a line for each registry, and resolvers give all addresses of a name.

    Raises ConfigError where the file leads one of the names elsewhere: what comes first in it may win.
    """
    text = files.read(HOSTS) or ""
    addresses = [cache.host for cache in settings.caches]
    groups = list(name_groups(settings.known, settings.names, token_hosts=settings.token_hosts))
    wanted = {name for group in groups for name in group}
    for number, address, names in _entries(text):
        taken = sorted(wanted.intersection(names))
        if taken and address not in addresses:
            raise ConfigError(
                f"{HOSTS} line {number} leads {', '.join(taken)} to {address}, not to the cache: "
                "take the line out first"
            )
    draft.put(HOSTS, add_block(text, [f"{address} {' '.join(group)}" for group in groups for address in addresses]))
    if not settings.token_hosts:
        draft.note(
            "Token hosts of other names (auth.docker.io) are reached directly; --no-egress leads them to the cache."
        )


def name_groups(known: Known, names: tuple[str, ...], *, token_hosts: bool) -> Iterator[tuple[str, ...]]:
    """The cache's own names, then each registry's without ports, with its token hosts if wanted; each name once."""
    told: set[str] = {LOCALHOST}
    for hosts in (names, *((*one.hosts, *(one.auth_hosts if token_hosts else ())) for one in known)):
        bare = (host if is_address(host) else host.partition(":")[0] for host in hosts)
        new = tuple(host for host in dict.fromkeys(bare) if host not in told and not is_address(host))
        told.update(new)
        if new:
            yield new


def _entries(text: str) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        address, *names = line.partition("#")[0].split() or [""]
        if names:
            yield number, address, [name.lower() for name in names]
