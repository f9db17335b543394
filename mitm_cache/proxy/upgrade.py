"""WebSockets with clients: behind a 101 the bytes of both directions are passed on as they are."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from mitmproxy import http
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import commands
from mitmproxy.proxy.server import ConnectionIO
from OpenSSL import SSL

from mitm_cache.errors import ClientError
from mitm_cache.proxy.deliver import encrypt
from mitm_cache.proxy.door import Exchange
from mitm_cache.upstream.channel import Channel
from mitm_cache.upstream.upgrade import Upgraded

CHUNK = 64 << 10
IDLE_SECONDS = 900.0
"""Without a byte in either direction for this long it is closed."""


@dataclass
class Crossing:
    """A client's connection and a server's, joined. `inbox`: what the client has sent and the server not yet got."""

    flow: http.HTTPFlow
    exchange: Exchange
    upgraded: Upgraded
    tls: Sequence[SSL.Connection] = field(repr=False)
    inbox: Channel = field(default_factory=lambda: Channel(stopped=lambda: False))


@dataclass
class CrossHook(commands.StartHook):
    """The 101 has been sent: begin to pass on."""

    name = "cross"
    crossing: Crossing


@dataclass
class CrossRoomHook(commands.StartHook):
    """The server is slower than the client: wait."""

    name = "cross_room"
    crossing: Crossing


class Crossings:
    """The addon that joins them."""

    def __init__(self, proxyserver: Proxyserver) -> None:
        self._proxyserver = proxyserver
        self._tasks: set[asyncio.Task[None]] = set()

    async def cross(self, crossing: Crossing) -> None:
        """Begin, and return at once: what the client sends comes as events meanwhile."""
        task = asyncio.get_running_loop().create_task(self._run(crossing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cross_room(self, crossing: Crossing) -> None:
        """Wait; mitmproxy's reader does too, for its lock."""
        handler = self._proxyserver.connections[crossing.flow.client_conn.id]
        async with handler._drain_lock:
            await crossing.inbox.room(lambda: False)

    def done(self) -> None:
        """The service ends."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, crossing: Crossing) -> None:
        received = 0
        upgraded = crossing.upgraded
        handler = self._proxyserver.connections.get(crossing.flow.client_conn.id)
        io = handler.transports.get(crossing.flow.client_conn) if handler is not None else None
        client = io.writer if io is not None else None

        async def to_server() -> None:
            while data := await crossing.inbox.receive(CHUNK):
                idle.reschedule(loop.time() + IDLE_SECONDS)
                upgraded.writer.write(data)
                await upgraded.writer.drain()

        async def to_client() -> None:
            nonlocal received
            while client is not None and (data := await upgraded.reader.read(CHUNK)):
                idle.reschedule(loop.time() + IDLE_SECONDS)
                for record in encrypt(crossing.tls, data):
                    client.write(bytes(record))
                received += len(data)
                await client.drain()

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(IDLE_SECONDS) as idle:
                ways = [loop.create_task(to_server()), loop.create_task(to_client())]
                try:
                    ended, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    for way in ended:
                        way.result()
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, SSL.Error, TimeoutError):
            pass  # one side has gone: so does the other
        finally:
            upgraded.writer.close()
            crossing.inbox.fail(ClientError("the WebSocket has ended"))  # `cross_room` may wait for room in it
            _end(io)
            crossing.exchange.finish(bytes_out=received)


def _end(io: ConnectionIO | None) -> None:
    """End a client's connection as mitmproxy does it, which waits for ever for the end of one that it passes on."""
    if io is not None and io.writer is not None:
        io.writer.close()
    if io is not None and io.handler is not None:
        io.handler.cancel("the WebSocket has ended")
