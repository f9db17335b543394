"""`mitm-cache serve`: run the cache in the foreground."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mitm_cache.app import App
    from mitm_cache.config import Config


@click.command()
@click.pass_obj
def serve(config_of: "Callable[[], Config]") -> None:
    """Run the cache in the foreground until it is told to stop (SIGTERM, Ctrl-C)."""
    config = config_of()
    # mitmproxy takes most of a second to import: a wrong key should be told at once.
    from mitm_cache.app import App, configure_logging, serve_forever
    from mitm_cache.welcome.facts import own_address

    configure_logging()
    app = App(config)
    click.echo("\n".join(banner(app, own_address())), err=True)
    serve_forever(app, lambda: click.echo("Ready.", err=True))


def banner(app: "App", address: str) -> Iterator[str]:
    """What is listened on, where the CA is, and the lines to paste on a node, true for the ports that were bound."""
    from mitm_cache.welcome.facts import Facts
    from mitm_cache.welcome.script import Script

    yield f"data         {app.layout.root}"
    yield f"CA           {app.authority.certificate_path}"
    yield f"             SHA-256 {app.authority.fingerprint}"
    if app.config.proxy is not None:
        yield f"upstream     by proxy {app.config.proxy} ({app.config.proxy.key})"
    for name, upstream in app.config.upstreams.items():
        if upstream.insecure:
            yield f"INSECURE     {name}: its TLS is NOT verified (registries.{name}.insecure)"
    for listener, bound, port in app.bound.addresses():
        yield f"{listener:<12} {f'[{bound}]' if ':' in bound else bound}:{port}  {_PURPOSES[listener]}"
    yield ""
    facts = Facts.of(app.config, app.custody, app.bound.addresses(), address)
    script = Script(facts)
    mirror, connect = facts.places.get("mirror"), facts.places.get("connect")
    if mirror:
        yield "Docker Hub, on a node with dockerd: in /etc/docker/daemon.json, then restart dockerd"
        yield f'  {{"registry-mirrors": ["http://{mirror}"]}}'
    if connect:
        yield "Every registry by proxy, on a node that trusts the CA: in the environment of dockerd or containerd"
        yield f"  HTTPS_PROXY=http://{connect} NO_PROXY=localhost,127.0.0.1,YOUR.NETWORK"
    if script.fetch and script.ways:
        way = script.ways[0]
        yield f"{_WAYS[way]}: on a node (as root, leave sudo out)"
        yield f"  {script.line(way)}"
    elif facts.for_names:
        yield "Every registry: on a node"
        yield f"  scp {app.authority.certificate_path} certs/install-ca.sh NODE:"
        yield "  ssh NODE sudo sh install-ca.sh ca.crt"
        yield f"  mitm-cache example hosts --address {facts.for_names.host} | ssh NODE sudo tee -a /etc/hosts"
    if not facts.for_names:
        yield "Every registry by /etc/hosts needs ports 443 and 80 here: a hosts entry holds no port. To get them:"
        yield "  sudo sysctl net.ipv4.ip_unprivileged_port_start=80      (until the next boot), or"
        yield "  AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd service, or its sockets, named tls and clear"
    yield ""


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
