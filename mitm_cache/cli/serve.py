"""`mitm-cache serve`: run the cache in the foreground."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import click

from mitm_cache.registries import LOCAL

if TYPE_CHECKING:
    from mitm_cache.ca.custody import Custody
    from mitm_cache.cache.layout import Layout
    from mitm_cache.config import Config
    from mitm_cache.listening import Bound


class Service(Protocol):
    """What is about to serve."""

    config: "Config"
    layout: "Layout"
    custody: "Custody"

    @property
    def bound(self) -> "Bound": ...


@click.command()
@click.option("--workers", metavar="N|auto", help="Processes that serve, instead of serve.workers; auto: one per CPU.")
@click.option("--user", default="", metavar="NAME", help="Become this user once the ports are bound (started as root).")
@click.pass_obj
def serve(config_of: "Callable[..., Config]", workers: str | None, user: str) -> None:
    """Run the cache in the foreground until it is told to stop (SIGTERM, Ctrl-C).

    SIGHUP, or 'mitm-cache reload', takes up another configuration without dropping a connection. The first SIGTERM
    waits for what is under way, for serve.drain at most; a second one ends at once.
    """
    import asyncio

    from mitm_cache.workers.logs import configure_logging
    from mitm_cache.workers.privileges import warn_of_root
    from mitm_cache.workers.start import prepare

    flags = {"serve.workers": workers} if workers is not None else {}
    config = config_of(**flags)
    configure_logging()
    places, hands = prepare(config, user)
    # While the workers load: what they load takes most of a second.
    from mitm_cache.welcome.facts import own_address
    from mitm_cache.workers.supervisor import Supervisor

    service = Supervisor(config, places, hands, load=lambda: config_of(**flags))
    warn_of_root(user)
    click.echo("\n".join(banner(service, own_address())), err=True)
    asyncio.run(service.run(lambda: click.echo("Ready.", err=True)))


def banner(service: Service, address: str) -> Iterator[str]:
    """What is listened on, where the CA is, and the lines to paste on a node, true for the ports that were bound."""
    from mitm_cache.welcome.facts import Facts
    from mitm_cache.welcome.script import Script

    authority = service.custody.signer(datetime.now(UTC))
    yield f"data         {service.layout.root}"
    yield f"CA           {authority.certificate_path}"
    yield f"             SHA-256 {authority.fingerprint}"
    if service.config.proxy is not None:
        yield f"upstream     by proxy {service.config.proxy} ({service.config.proxy.key})"
    for name, upstream in service.config.upstreams.items():
        if upstream.insecure:
            yield f"INSECURE     {name}: its TLS is NOT verified (registries.{name}.insecure)"
    for listener, bound, port in service.bound.addresses():
        yield f"{listener:<12} {f'[{bound}]' if ':' in bound else bound}:{port}  {_PURPOSES[listener]}"
    yield ""
    facts = Facts.of(service.config, service.custody, service.bound.addresses(), address)
    script = Script(facts)
    mirror, connect = facts.places.get("mirror"), facts.places.get("connect")
    if mirror:
        yield "Docker Hub, on a node with dockerd: in /etc/docker/daemon.json, then restart dockerd"
        yield f'  {{"registry-mirrors": ["http://{mirror}"]}}'
    if connect:
        yield "Every registry by proxy, on a node that trusts the CA: in the environment of dockerd or containerd"
        yield f"  HTTPS_PROXY=http://{connect} NO_PROXY=localhost,127.0.0.1,YOUR.NETWORK"
    yield from _pushes(service.config, str(mirror or address))
    if script.fetch and script.ways:
        way = script.ways[0]
        yield f"{_WAYS[way]}: on a node (as root, leave sudo out)"
        yield f"  {script.line(way)}"
    elif facts.for_names:
        yield "Every registry: on a node"
        yield f"  scp {authority.certificate_path} certs/install-ca.sh NODE:"
        yield "  ssh NODE sudo sh install-ca.sh ca.crt"
        yield f"  mitm-cache example hosts --address {facts.for_names.host} | ssh NODE sudo tee -a /etc/hosts"
    if not facts.for_names:
        yield "Every registry by /etc/hosts needs ports 443 and 80 here: a hosts entry holds no port. To get them:"
        yield "  sudo sysctl net.ipv4.ip_unprivileged_port_start=80      (until the next boot), or"
        yield "  AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd service, or its sockets, named tls and clear"
    yield ""


def _pushes(config: "Config", mirror: str) -> Iterator[str]:
    """How images come into the registry of one's own, where there is one."""
    if local := config.known.named(LOCAL):
        place = local.hosts[0] if local.hosts else f"{mirror}/{local.prefix}"
        yield "Images of your own, where they are built"
        yield f"  docker build -t {place}/app . && docker push {place}/app"


_WAYS = {
    "hosts": "Every registry, by a script that installs the CA and adds to /etc/hosts",
    "mirror": "Every registry in containerd and podman, by a script that makes this their mirror",
}
_PURPOSES = {
    "tls": "nodes whose /etc/hosts leads here",
    "clear": "the same, for registries that a node marks as insecure",
    "connect": "nodes with HTTPS_PROXY",
    "mirror": "mirror settings, for every registry",
    "admin": "probes, metrics, and mitm-cache status",
}
