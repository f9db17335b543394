"""Our classes as guests of a stock mitmproxy, which listens, decides about all other hosts, and has a CA of its own.

`mitm-cache serve` has listeners of its own (`mode.py`, `front.py`); here a connection is mitmproxy's, and is taken over
where a registry's HTTP begins. The modes are `regular` and `upstream`.
"""

import time
from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.connection import Client, Connection
from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.mode_specs import RegularMode, UpstreamMode
from mitmproxy.tls import ClientHelloData, TlsData

from mitm_cache.proxy.door import Door, Way
from mitm_cache.proxy.intercept import HTTP, Intercept
from mitm_cache.proxy.layer import DeliveryLayer, RefusalLayer
from mitm_cache.proxy.mode import TLS_RECORD, ClientTLS
from mitm_cache.proxy.serve import Serve
from mitm_cache.registries import Known, Registry
from mitm_cache.relay import Relay
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Response


@dataclass(frozen=True, slots=True)
class Target:
    """Where a CONNECT led, and when (seconds of the epoch)."""

    host: str
    port: int
    at: float


class Arrivals:
    """How each connection came in. `ways` holds the connections that a registry may be asked by."""

    def __init__(self) -> None:
        self.ways: dict[str, Way] = {}
        self._targets: dict[str, Target] = {}

    def connected(self, flow: http.HTTPFlow) -> None:
        """A CONNECT has been answered with 200."""
        host = flow.request.host.lower().rstrip(".")
        self._targets[flow.client_conn.id] = Target(host, flow.request.port, time.time())
        self.ways[flow.client_conn.id] = Way("connect", flow.client_conn.sockname[1], host)

    def target(self, client: Client) -> Target | None:
        """Where a connection's last CONNECT led."""
        return self._targets.get(client.id)

    def way(self, client: Client) -> Way:
        """How a connection came in, as our own listeners are called; noted until it is left."""
        listener = "tls" if client.tls else "clear"
        return self.ways.setdefault(client.id, Way(listener, client.sockname[1]))

    def left(self, client: Client) -> None:
        """A connection has ended."""
        self.ways.pop(client.id, None)
        self._targets.pop(client.id, None)


class Seat:
    """Takes a registry's connections over from mitmproxy: our TLS limits, then our HTTP."""

    def __init__(self, *, known: Known, arrivals: Arrivals, door: Door, relay: Relay) -> None:
        self._known = known
        self._arrivals = arrivals
        self._door = door
        self._relay = relay
        self._names = known.server_names

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Answer before mitmproxy connects to the registry: a HIT must not need it, whatever connection_strategy is."""
        if flow.response is None and self._known.at(flow.request.host, flow.request.port):
            flow.response = http.Response.make(200)
            flow.response.reason = "Connection established"
            flow.response.headers.clear()

    def http_connected(self, flow: http.HTTPFlow) -> None:
        """Note where CONNECT leads."""
        self._arrivals.connected(flow)

    def client_disconnected(self, client: Client) -> None:
        """Forget it."""
        self._arrivals.left(client)

    def tls_clienthello(self, data: ClientHelloData) -> None:
        """HTTP/2 is not for us: have mitmproxy choose HTTP/1.1, as `Intercept` does."""
        if is_proxied(data.context.client) and self._is_ours(data.context):
            data.context.client.alpn = HTTP

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Our TLS for registries, and for TLS from the start, which may be for one; our HTTP within."""
        context, data = nextlayer.context, nextlayer.data_client()
        if nextlayer.layer is not None or not data or not is_proxied(context.client):
            return
        if len(context.layers) == 1 and isinstance(context.layers[0], modes.HttpProxy | modes.HttpUpstreamProxy):
            if data[0] == TLS_RECORD:
                # mitmproxy would put its own HTTP into it before the name is known.
                nextlayer.layer = ClientTLS(context)
        elif self._registry(context) is not None and not _within_tls(context):
            if data[0] == TLS_RECORD:
                nextlayer.layer = ClientTLS(context)
            else:
                nextlayer.layer = RefusalLayer(context, "A registry is spoken to by TLS only.")
        elif self._is_ours(context):
            self._arrivals.way(context.client)
            nextlayer.layer = DeliveryLayer(context, self._door, self._relay)
        elif len(context.layers) == 2 and isinstance(context.layers[1], ClientTLS):
            upstream = isinstance(context.layers[0], modes.HttpUpstreamProxy)
            nextlayer.layer = HttpLayer(context, HTTPMode.upstream if upstream else HTTPMode.regular)

    def _registry(self, context: Context) -> Registry | None:
        """The registry that CONNECT named."""
        target = self._arrivals.target(context.client)
        return self._known.at(target.host, target.port) if target else None

    def _is_ours(self, context: Context) -> bool:
        """Whether a TLS connection is a registry's: by its CONNECT, or without one by its server name."""
        if self._arrivals.target(context.client) is not None:
            return self._registry(context) is not None
        return server_name(context.client) in self._names


class GuestServe(Serve):
    """Answers what came through our door, and leaves all else to mitmproxy."""

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answer a pull, unless another script has."""
        exchange = self._door.pending.get(flow)
        if exchange is None:
            return
        if flow.response is None:
            await super().request(flow)
            return
        exchange.response = Response(
            status=flow.response.status_code,
            headers=Headers(),
            body=flow.response.raw_content or b"",
            outcome="LOCAL",
            reason="answered by another addon",
        )


class GuestIntercept(Intercept):
    """Mints for registries, and leaves all other names to mitmproxy's own TlsConfig, which acts after scripts."""

    def tls_start_client(self, data: TlsData) -> None:
        """Choose the context by name."""
        if server_name(data.conn) in self._names:
            super().tls_start_client(data)


def is_proxied(client: Client) -> bool:
    """Whether a connection came in by a mode that we have a part in."""
    return isinstance(client.proxy_mode, RegularMode | UpstreamMode) and client.transport_protocol == "tcp"


def server_name(client: Connection) -> str:
    """What the client has asked TLS for; "" without a name."""
    return (client.sni or "").lower().rstrip(".")


def _within_tls(context: Context) -> bool:
    """Whether TLS has begun behind the last CONNECT."""
    for below in reversed(context.layers):
        if isinstance(below, ClientTLSLayer | HttpLayer):
            return isinstance(below, ClientTLSLayer)
    return False
