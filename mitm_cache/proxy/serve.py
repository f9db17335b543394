"""The request hooks: what is admitted goes to `PullThrough` or to `Relay`, and the answer is made ready for delivery.

mitmproxy logs what an addon raises and lets the flow go on upstream, so whatever is unexpected here is answered
with 502: fail closed.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from mitmproxy import http
from mitmproxy.addons.proxyserver import Proxyserver

from mitm_cache.answers import explain, switching, unless_known
from mitm_cache.errors import MitmCacheError
from mitm_cache.proxy.deliver import STALL_SECONDS
from mitm_cache.proxy.door import Door
from mitm_cache.proxy.stream import Recognition, Relayed, Upgrading, render
from mitm_cache.relay import Relay
from mitm_cache.upstream.passage import Passage
from mitm_cache.wire.challenge import in_clear
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Handler, Request, Response

LOOK_SECONDS = 10.0
"""How often it is looked whether the client of a relay is still there; one that has closed its side gets what comes
until then."""
MAX_UNTAKEN = 64 << 10
"""Bytes of short answers that a client may leave lying before its next request is looked at."""
_ESTABLISHED = 1
"""The state of a TCP connection that nobody has closed (tcp(7), TCP_INFO; linux/tcp_states.h)."""

logger = logging.getLogger(__name__)


class Serve:
    """Answers every request; none goes on to a server by mitmproxy's own leg."""

    def __init__(
        self,
        *,
        pull_through: Handler,
        relay: Relay,
        door: Door,
        proxyserver: Proxyserver,
        stall: float = STALL_SECONDS,
    ) -> None:
        """`stall`: seconds for which a client may leave short answers lying and ask for more."""
        self._stall = stall
        self.leaving = False
        """Whether this process is about to end: connections are closed after their next answer."""
        self._pull_through = pull_through
        self._relay = relay
        self._door = door
        self._proxyserver = proxyserver

    async def recognize(self, recognition: Recognition) -> None:
        """Find out whether a login is for the cache itself; a request of which that is not known goes nowhere."""
        exchange = recognition.exchange
        try:
            async with self.held_back(recognition.client_id):
                await self._door.recognize(exchange, recognition.login)
        except BaseException as error:
            exchange.response = explain(MitmCacheError("internal error", status=502), exchange.request)
            if not isinstance(error, Exception):
                raise
            logger.exception("a user could not be recognized, for no known reason")

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answer a pull."""
        async with self.held_back(flow.client_conn.id):
            await self.settle(flow, self._pull_through.handle)

    async def relay_room(self, relayed: Relayed) -> None:
        """Wait until upstream has taken some of what the client has sent, which sends no more meanwhile."""
        async with self.held_back(relayed.flow.client_conn.id), self._watched(relayed.flow, relayed.passage):
            await relayed.passage.room()

    async def relay_answer(self, relayed: Relayed) -> None:
        """Answer a request that has been passed on."""
        async with self.held_back(relayed.flow.client_conn.id), self._watched(relayed.flow, relayed.passage):
            await self.settle(relayed.flow, lambda request: self._relay.answer(request, relayed.passage))

    async def upgrade(self, upgrading: Upgrading) -> None:
        """Ask for a WebSocket; what is not given one is relayed as it is."""
        exchange = self._door.pending.get(upgrading.flow)
        if exchange is None or exchange.request is None:
            return
        async with self.held_back(upgrading.flow.client_conn.id):
            upgrading.upgraded = await self._relay.upgrade(exchange.request)
        if upgrading.upgraded is not None:
            exchange.response = switching(upgrading.upgraded.headers)
            upgrading.flow.response = render(exchange, exchange.response)

    async def settle(self, flow: http.HTTPFlow, answer: Callable[[Request], Awaitable[Response]]) -> None:
        """Have a request answered, and the answer made ready; whatever goes wrong is an answer too."""
        exchange = self._door.pending.get(flow)
        flow.response = http.Response.make(502, b"this request came through no door of the cache\n")
        if exchange is None or exchange.request is None:
            return
        request = exchange.request
        try:
            exchange.response = response = await answer(request)
            if not exchange.relayed:  # upstream has heard the condition itself
                exchange.response = response = unless_known(response, request)
            if request.mirror:
                told = Headers([("OCI-Namespace", request.registry.name)])
                response.headers = response.headers.without(["oci-namespace"]) + told
            if self.leaving:
                response.headers = response.headers + Headers([("Connection", "close")])
            if exchange.listener == "clear" and not request.registry.is_local:
                _lead_back(response, request)
            flow.response = render(exchange, response, flow.request.http_version)
        except BaseException as error:
            exchange.close()
            exchange.response = explain(MitmCacheError("internal error", status=502), request)
            flow.response = render(exchange, exchange.response, flow.request.http_version)
            if not isinstance(error, Exception):
                raise
            logger.exception("a request failed for no known reason")

    @asynccontextmanager
    async def held_back(self, client_id: str) -> AsyncIterator[None]:
        """Keep a client from filling our memory with more requests: mitmproxy's reader waits for this lock after each
        read. Nor with answers: short ones are written at once, and hundreds may be asked for in one packet."""
        handler = self._proxyserver.connections.get(client_id)
        if handler is None:
            yield
            return
        await self._let_take(handler)
        async with handler._drain_lock:
            yield

    async def _let_take(self, handler: Any) -> None:
        """Wait until a client has taken most of what it was sent before; one that takes nothing is cut."""
        io = handler.transports.get(handler.client)
        writer = io.writer if io is not None else None
        if not isinstance(writer, asyncio.StreamWriter) or writer.transport.get_write_buffer_size() <= MAX_UNTAKEN:
            return
        try:
            async with asyncio.timeout(self._stall):
                await writer.drain()
        except OSError:  # TimeoutError is one
            writer.transport.abort()

    @asynccontextmanager
    async def _watched(self, flow: http.HTTPFlow, passage: Passage) -> AsyncIterator[None]:
        """Nobody reads from a client that is held back, so that its leaving has to be looked for."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                if self._has_left(flow):
                    passage.close()

        task = asyncio.get_running_loop().create_task(watch())
        try:
            yield
        finally:
            task.cancel()

    def _has_left(self, flow: http.HTTPFlow) -> bool:
        handler = self._proxyserver.connections.get(flow.client_conn.id)
        io = handler.transports.get(flow.client_conn) if handler is not None else None
        if io is None or io.writer is None or io.writer.is_closing():
            return True
        if not isinstance(io.writer, asyncio.StreamWriter):
            return False  # a transport of mitmproxy's own, which has no socket to ask
        try:
            connected: socket.socket = io.writer.get_extra_info("socket")
            info: bytes = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except OSError:
            return True
        return info[0] != _ESTABLISHED

    def error(self, flow: http.HTTPFlow) -> None:
        """The client left before its answer: let go of what was open for it."""
        exchange = self._door.pending.get(flow)
        if exchange is not None and not exchange.recorded:
            exchange.close()
            exchange.finish(bytes_out=0, failure="the client is gone")


def _lead_back(response: Response, request: Request) -> None:
    """Have a client that came without TLS get its token without TLS."""
    response.headers = Headers(
        (name, in_clear(value, request.registry.names) if name.lower() == "www-authenticate" else value)
        for name, value in response.headers
    )
