"""The request hook: an admitted request goes to `PullThrough`, and its answer is made ready for delivery.

mitmproxy logs what an addon raises and lets the flow go on upstream, so whatever is unexpected here is answered
with 502: fail closed.
"""

import logging
from dataclasses import replace

from mitmproxy import http
from mitmproxy.addons.proxyserver import Proxyserver

from mitm_cache.answers import explain
from mitm_cache.errors import MitmCacheError
from mitm_cache.proxy.door import Door, Exchange
from mitm_cache.proxy.stream import render
from mitm_cache.pull_through import PullThrough
from mitm_cache.wire.challenge import in_clear
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Response

logger = logging.getLogger(__name__)


class Serve:
    """Answers every request; none goes on to a server by mitmproxy's own leg."""

    def __init__(self, *, pull_through: PullThrough, door: Door, proxyserver: Proxyserver) -> None:
        self._pull_through = pull_through
        self._door = door
        self._proxyserver = proxyserver

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answer."""
        exchange = self._door.pending.get(flow)
        flow.response = http.Response.make(502, b"this request came through no door of the cache\n")
        if exchange is None:
            return
        try:
            exchange.response = await self._answer(exchange, flow)
            flow.response = render(exchange, exchange.response)
        except BaseException as error:
            if exchange.response is not None:
                exchange.response.close()
            exchange.response = explain(MitmCacheError("internal error", status=502), exchange.request)
            flow.response = render(exchange, exchange.response)
            if not isinstance(error, Exception):
                raise
            logger.exception("a request failed for no known reason")

    async def _answer(self, exchange: Exchange, flow: http.HTTPFlow) -> Response:
        assert exchange.request is not None
        request = replace(exchange.request, body=flow.request.raw_content or b"")
        handler = self._proxyserver.connections[flow.client_conn.id]
        # While the answer is made, the client cannot fill our memory with more requests.
        async with handler._drain_lock:
            response = await self._pull_through.handle(request)
        if exchange.listener == "clear":
            response.headers = Headers(
                (name, in_clear(value, request.registry.names) if name.lower() == "www-authenticate" else value)
                for name, value in response.headers
            )
        return response

    def error(self, flow: http.HTTPFlow) -> None:
        """The client left before its answer: let go of what was open for it."""
        exchange = self._door.pending.get(flow)
        if exchange is not None and not exchange.recorded:
            if exchange.response is not None:
                exchange.response.close()
            exchange.finish(bytes_out=0, failure="the client is gone")
