"""`mitm-cache example dnsmasq|unbound|coredns`: the names in a DNS server of one's own, not in each node's hosts file.

Exact names only: what is below a registry's name (`cdn01.quay.io`) is storage, which stays where it is. Each form says
"no such record" for the other family of addresses, which would lead past the cache.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.example import ADDRESS
from mitm_cache.welcome.names import rows

if TYPE_CHECKING:
    from mitm_cache.config import Config

_addresses = click.option(
    "--address", "addresses", multiple=True, default=(ADDRESS,), show_default=True, help="The cache's; twice for two."
)
_no_egress = click.option("--no-egress", is_flag=True, help="For nodes with no other way out: token hosts too.")


def render_dnsmasq(names: Iterable[str], addresses: Iterable[str]) -> str:
    """A file for `/etc/dnsmasq.d/`."""
    given = list(addresses)
    lines = ["# mitm-cache: registries are pulled through the cache. For dnsmasq 2.86 and later."]
    for name in names:
        # The name itself is answered here alone, what is below it elsewhere.
        lines += [f"local=/{name}/", f"server=/*.{name}/#"]
        lines += [f"host-record={name},{address}" for address in given]
    return "\n".join(lines) + "\n"


def render_unbound(names: Iterable[str], addresses: Iterable[str]) -> str:
    """A file for `/etc/unbound/unbound.conf.d/`."""
    given = list(addresses)
    lines = ["# mitm-cache: registries are pulled through the cache.", "server:"]
    for name in names:
        lines += [f'    local-zone: "{name}." transparent']
        lines += [f'    local-data: "{name}. IN {_kind(address)} {address}"' for address in given]
    return "\n".join(lines) + "\n"


def render_coredns(names: Iterable[str], addresses: Iterable[str]) -> str:
    """A block for a Corefile, in its `.:53 { … }` and before `forward`."""
    known = " ".join(names)
    lines = [f"    {address} {known}" for address in addresses]
    head = ["# mitm-cache: registries are pulled through the cache.", "hosts {"]
    return "\n".join([*head, *lines, "    fallthrough", "}"]) + "\n"


def _kind(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def _names(config_of: "Callable[[], Config]", *, no_egress: bool) -> list[str]:
    config = config_of()
    return [name for row in rows(config.known, config.names, token_hosts=no_egress) for name in row]


@click.command()
@_addresses
@_no_egress
@click.pass_obj
def dnsmasq(config_of: "Callable[[], Config]", addresses: tuple[str, ...], no_egress: bool) -> None:
    """For dnsmasq: a file in /etc/dnsmasq.d/."""
    click.echo(render_dnsmasq(_names(config_of, no_egress=no_egress), addresses), nl=False)


@click.command()
@_addresses
@_no_egress
@click.pass_obj
def unbound(config_of: "Callable[[], Config]", addresses: tuple[str, ...], no_egress: bool) -> None:
    """For unbound: a file in /etc/unbound/unbound.conf.d/."""
    click.echo(render_unbound(_names(config_of, no_egress=no_egress), addresses), nl=False)


@click.command()
@_addresses
@_no_egress
@click.pass_obj
def coredns(config_of: "Callable[[], Config]", addresses: tuple[str, ...], no_egress: bool) -> None:
    """For CoreDNS: a block of the Corefile."""
    click.echo(render_coredns(_names(config_of, no_egress=no_egress), addresses), nl=False)
