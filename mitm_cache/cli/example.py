"""`mitm-cache example`: what to put on a node, from the table of registries."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.group import Group
from mitm_cache.registries import DOCKER_HUB, Known
from mitm_cache.welcome.names import rows

if TYPE_CHECKING:
    from mitm_cache.config import Config

ADDRESS = "192.0.2.10"
"""An address of the documentation range (RFC 5737), to be replaced."""


@click.group(cls=Group)
def example() -> None:
    """Print what a node needs to use this cache."""


_address = click.option("--address", default=ADDRESS, show_default=True, help="The cache's address.")


@example.command()
@_address
@click.option("--no-egress", is_flag=True, help="For nodes with no other way out: token hosts lead to the cache too.")
@click.pass_obj
def hosts(config_of: "Callable[[], Config]", address: str, no_egress: bool) -> None:
    """Lines for /etc/hosts: every registry's names lead to the cache."""
    config = config_of()
    click.echo(render_hosts(config.known, config.names, address, token_hosts=no_egress), nl=False)


@example.command("daemon-json")
@_address
@click.option("--port", default=5000, show_default=True, help="The port of the mirror listener.")
@click.pass_obj
def daemon_json(config_of: "Callable[[], Config]", address: str, port: int) -> None:
    """dockerd's daemon.json for nodes that do not trust the CA: Docker Hub by its mirror, the others as insecure."""
    click.echo(render_daemon_json(config_of().known, address, port), nl=False)


def render_hosts(known: Known, names: tuple[str, ...], address: str, *, token_hosts: bool = False) -> str:
    """The lines, one registry each, with the hosts that issue its tokens if they are wanted."""
    lines = [
        "# mitm-cache: these registries are pulled through the cache. Append to /etc/hosts on every node,",
        f"# with the address of your cache for {ADDRESS}. Take the lines out to undo.",
    ]
    lines += [f"{address} {' '.join(row)}" for row in rows(known, names, token_hosts=token_hosts)]
    return "\n".join(lines) + "\n"


def render_daemon_json(known: Known, address: str, port: int) -> str:
    """The whole file."""
    # dockerd never treats Docker Hub as insecure, and its mirror setting serves Docker Hub only.
    insecure = [host for registry in known if registry.name != DOCKER_HUB.name for host in registry.hosts]
    host = f"[{address}]" if ":" in address else address
    document = {"registry-mirrors": [f"http://{host}:{port}"], "insecure-registries": insecure}
    return json.dumps(document, indent=2) + "\n"
