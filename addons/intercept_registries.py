"""Decrypt registries only, and pass every other host on as it is: `mitmdump -s intercept_registries.py`.

This is the table of `mitm_cache.registries` and the rule of `mitm_cache.proxy.identity`: a request whose Host is not
the name that CONNECT and TLS were asked for is answered 421. For mitmproxy's modes `regular` and `upstream`.
"""

import logging
import time

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers import TCPLayer

from mitm_cache.answers import explain
from mitm_cache.embed import Job
from mitm_cache.errors import ClientError
from mitm_cache.journal import Event
from mitm_cache.proxy.door import Exchange
from mitm_cache.proxy.guest import Target, is_proxied, server_name
from mitm_cache.proxy.identity import Arrival, identify, split_host
from mitm_cache.proxy.stream import render
from mitm_cache.registries import Known

logger = logging.getLogger(__name__)


class Interception(Job):
    """The job of this script."""

    name = "intercept_registries"

    def __init__(self) -> None:
        super().__init__()
        self._tunnels: dict[str, Target] = {}

    def http_connected(self, flow: http.HTTPFlow) -> None:
        """Note where CONNECT leads."""
        self.shared.arrivals.connected(flow)

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Behind a CONNECT to a host that is no registry: bytes, and no more."""
        client = nextlayer.context.client
        target = self.shared.arrivals.target(client)
        if nextlayer.layer is None and target is not None and not self._known.at(target.host, target.port):
            shown = bool(self.shared.master.options.show_ignored_hosts)
            nextlayer.layer = TCPLayer(nextlayer.context, ignore=not shown)
            self._tunnels[client.id] = target

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Refuse what came by the name of one host and asks for another."""
        if flow.response is not None or not flow.client_conn.tls or not is_proxied(flow.client_conn):
            return
        try:
            self._check(flow)
        except ClientError as error:
            self._refuse(flow, error)
        except Exception:
            logger.exception("a request failed for no known reason")
            # mitmproxy would log it too, and send the request on.
            flow.response = http.Response.make(502, b"internal error\n")

    def _check(self, flow: http.HTTPFlow) -> None:
        client, request = flow.client_conn, flow.request
        way = self.shared.arrivals.way(client)
        # In HTTP/2 the name is in :authority.
        hosts = request.headers.get_all("host") or ([request.authority] if request.authority else [])
        arrival = Arrival(way.listener, way.port, server_name(client), way.target)
        names = {arrival.sni, arrival.target, *(split_host(host)[0] for host in hosts)}
        if not names.isdisjoint(self._known.server_names):  # what is about other hosts only is mitmproxy's affair
            identify(arrival, hosts, request.path, self._known)

    def _refuse(self, flow: http.HTTPFlow, error: ClientError) -> None:
        exchange = Exchange(
            listener=self.shared.arrivals.way(flow.client_conn).listener,
            client=flow.client_conn.peername[0],
            method=flow.request.method[:16],
            user_agent=flow.request.headers.get("user-agent", ""),
            journal=self.shared.journal,
        )
        exchange.response = explain(error, None)
        flow.response = render(exchange, exchange.response)
        self.shared.accounted.add(flow)
        exchange.finish(bytes_out=len(flow.response.raw_content or b""))

    def client_disconnected(self, client: Client) -> None:
        """A tunnel has ended: how many bytes went through it is not known here."""
        self.shared.arrivals.left(client)
        target = self._tunnels.pop(client.id, None)
        if target is not None:
            self.shared.journal.record(
                Event(
                    time=time.time(),
                    listener="connect",
                    client=client.peername[0],
                    method="CONNECT",
                    outcome="TUNNEL",
                    reason=f"{target.host}:{target.port}, undecrypted",
                    ms=round((time.time() - target.at) * 1000, 1),
                )
            )

    @property
    def _known(self) -> Known:
        return self.shared.config.known


addons = [Interception()]
