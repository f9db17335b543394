"""`mitm-cache serve`: run the cache in the foreground."""

import socket
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

    configure_logging()
    app = App(config)
    click.echo("\n".join(banner(app, own_address())), err=True)
    serve_forever(app, lambda: click.echo("Ready.", err=True))


def own_address() -> str:
    """The address that other hosts probably reach this one by; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): only asks the kernel for a route
            address: str = probe.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    return address


def banner(app: "App", address: str) -> Iterator[str]:
    """What is listened on, where the CA is, and the lines to paste on a node, true for the ports that were bound."""
    yield f"data         {app.layout.root}"
    yield f"CA           {app.authority.certificate_path}"
    yield f"             SHA-256 {app.authority.fingerprint}"
    if app.config.proxy is not None:
        yield f"upstream     by proxy {app.config.proxy} ({app.config.proxy.key})"
    for name, upstream in app.config.upstreams.items():
        if upstream.insecure:
            yield f"INSECURE     {name}: its TLS is NOT verified (registries.{name}.insecure)"
    ports: dict[str, int] = {}
    for listener, bound, port in app.bound.addresses():
        ports.setdefault(listener, port)
        yield f"{listener:<12} {f'[{bound}]' if ':' in bound else bound}:{port}  {_PURPOSES[listener]}"
        if bound not in _EVERYWHERE and listener != "admin":
            address = bound
    yield ""
    host = f"[{address}]" if ":" in address else address
    if "mirror" in ports:
        yield "Docker Hub, on a node with dockerd: in /etc/docker/daemon.json, then restart dockerd"
        yield f'  {{"registry-mirrors": ["http://{host}:{ports["mirror"]}"]}}'
    if "connect" in ports:
        yield "Every registry by proxy, on a node that trusts the CA: in the environment of dockerd or containerd"
        yield f"  HTTPS_PROXY=http://{host}:{ports['connect']} NO_PROXY=localhost,127.0.0.1,YOUR.NETWORK"
    if ports.get("tls") == TLS_PORT:
        yield "Every registry: on a node"
        yield f"  scp {app.authority.certificate_path} certs/install-ca.sh NODE:"
        yield "  ssh NODE sudo sh install-ca.sh ca.crt"
        yield f"  mitm-cache example hosts --address {address} | ssh NODE sudo tee -a /etc/hosts"
    else:
        yield "Every registry by /etc/hosts needs ports 443 and 80 here: a hosts entry holds no port. To get them:"
        yield "  sudo sysctl net.ipv4.ip_unprivileged_port_start=80      (until the next boot), or"
        yield "  AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd service, or its sockets, named tls and clear"
    yield ""


TLS_PORT = 443
_EVERYWHERE = ("::", "0.0.0.0", "::1", "127.0.0.1")  # noqa: S104 - addresses that other hosts cannot be told
_PURPOSES = {
    "tls": "nodes whose /etc/hosts leads here",
    "clear": "the same, for registries that a node marks as insecure",
    "connect": "nodes with HTTPS_PROXY",
    "mirror": "Docker Hub's mirror",
    "admin": "probes, metrics, and mitm-cache status",
}
