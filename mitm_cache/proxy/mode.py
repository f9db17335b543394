"""Listening: our own sockets, mitmproxy's connection handler, and which layer a connection gets.

mitmproxy's modes, its NextLayer and its TlsConfig stay out; each connection is handed to a `ProxyConnectionHandler`
as its own `ServerInstance` does, under a listener of ours, so every later decision knows how a client came in.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import cast

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.master import Master
from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.mode_specs import ProxyMode

from mitm_cache.journal import Event, Journal
from mitm_cache.proxy.crowd import Crowd, room
from mitm_cache.proxy.door import Way
from mitm_cache.proxy.front import Front
from mitm_cache.proxy.head import MAX_HEAD
from mitm_cache.proxy.layer import DeliveryLayer, RefusalLayer
from mitm_cache.proxy.patience import Limits, Patience
from mitm_cache.proxy.peek import Replay
from mitm_cache.tasks import stop_accepting
from mitm_cache.wire.clients import Clients

BACKLOG = 1024
TLS_RECORD = 0x16
"""The first byte of a ClientHello (RFC 8446, 5.1)."""


class Listeners:
    """The addon that accepts connections once mitmproxy runs, and chooses their layers."""

    def __init__(
        self,
        *,
        sockets: Sequence[tuple[str, socket.socket]],
        clients: Clients,
        journal: Journal,
        crowd: Crowd | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`sockets`: each with the name of its listener; `crowd`: how many connections there may be; `limits`: how long
        a client may keep us waiting."""
        self._limits = limits or Limits()
        self._patiences: dict[str, Patience] = {}
        self._crowd = crowd or Crowd(room())
        self._sockets = sockets
        self._clients = clients
        self._journal = journal
        self._servers: list[asyncio.Server] = []
        self.ways: dict[str, Way] = {}
        self._mode = ProxyMode.parse("regular")
        self._master: Master | None = None
        self._proxyserver: Proxyserver | None = None
        self._http: Callable[[Context], layer.Layer] | None = None
        self._front: Front | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.started = asyncio.Event()

    def join(
        self, *, master: Master, proxyserver: Proxyserver, http: Callable[[Context], layer.Layer], front: Front
    ) -> None:
        """Say whom connections are handed to; `http` makes the layer that speaks HTTP on one."""
        self._master, self._proxyserver, self._http, self._front = master, proxyserver, http, front

    def listener(self, connection_id: str) -> str:
        """The listener a connection came in by."""
        return self.way(connection_id).listener

    def way(self, connection_id: str) -> Way:
        """How a connection came in."""
        return self.ways.get(connection_id, Way("", 0))

    def accepting(self) -> bool:
        """Whether connections are accepted at every socket."""
        return self.started.is_set() and all(server.is_serving() for server in self._servers)

    async def running(self) -> None:
        """mitmproxy is ready: accept."""
        for listener, bound in self._sockets:
            acceptor = _Acceptor(self, listener, bound.getsockname()[1])
            self._servers.append(await asyncio.start_server(acceptor.accept, sock=bound, backlog=BACKLOG))
        self.started.set()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._writers)

    def leave(self) -> None:
        """Stop accepting; who is connected stays. Others who hold a socket go on accepting at it."""
        for server in self._servers:
            stop_accepting(server)

    def done(self) -> None:
        """Stop accepting, and drop the connections that are open."""
        self.leave()
        for writer in self._writers:
            writer.transport.abort()

    async def handle(
        self, listener: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Let one connection in, if its client may connect at all: into a tunnel, or to mitmproxy."""
        assert self._front is not None
        peer = writer.get_extra_info("peername")
        address = str(peer[0]).removeprefix("::ffff:") if peer else ""
        if not self._clients.admits(address):
            self._refuse(listener, address, "the address is not in clients.allow")
            writer.transport.abort()
            return
        if reason := self._crowd.enter(address):
            if self._crowd.tells(address):
                self._refuse(listener, address, reason)
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            intercepted = await self._front.receive(listener, address, reader, writer)
            if intercepted is not None:
                way = Way(listener, port, intercepted.target, intercepted.user, intercepted.hash)
                await self._intercept(way, intercepted.reader, writer)
        finally:
            try:
                await self._see_off(writer)
            finally:
                self._writers.discard(writer)
                self._crowd.leave(address)

    async def _see_off(self, writer: asyncio.StreamWriter) -> None:
        """Close a connection. It is one of the crowd for as long as its client has not taken what was written last."""
        # mitmproxy closes it; not where it is told to twice in a row, as for a name without a certificate.
        writer.close()
        try:
            async with asyncio.timeout(self._limits.upload):
                await writer.wait_closed()
        except OSError:  # it has broken, or that took too long: TimeoutError is one
            writer.transport.abort()

    async def _intercept(self, way: Way, reader: Replay, writer: asyncio.StreamWriter) -> None:
        assert self._master is not None
        assert self._proxyserver is not None
        # mitmproxy calls nothing of a reader but read(); every test that goes through a listener would tell otherwise.
        stream = cast(asyncio.StreamReader, reader)
        handler = ProxyConnectionHandler(self._master, stream, writer, self._master.options, self._mode)
        client = handler.layer.context.client
        address, port = writer.get_extra_info("peername")[:2]
        client.peername = (str(address).removeprefix("::ffff:"), port)
        self.ways[client.id] = way
        patience = Patience(writer, self._limits, held_back=handler._drain_lock.locked)
        self._patiences[client.id] = patience
        try:
            with self._proxyserver.register_connection(client.id, handler):
                await handler.handle_client()
        finally:
            patience.rest()
            del self._patiences[client.id]
            del self.ways[client.id]

    def _refuse(self, listener: str, address: str, reason: str) -> None:
        self._journal.record(
            Event(
                time=time.time(),
                listener=listener,
                client=address,
                outcome="REFUSED",
                reason=reason,
            )
        )

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """TLS on the tls listener, HTTP inside it and on the others; anything else is refused, the unexpected too."""
        data = nextlayer.data_client()
        if not data:
            return
        context = nextlayer.context
        # Refused unless what follows decides otherwise; mitmproxy's TLS layer also needs one that was made before it.
        nextlayer.layer = RefusalLayer(context, "internal error")
        if self._http is None:
            return
        way = self.way(context.client.id)
        speaks_tls = data[0] == TLS_RECORD
        tls_only = way.listener == "tls" or bool(way.target)
        if speaks_tls and not context.client.tls and (tls_only or way.listener == "mirror"):
            nextlayer.layer = ClientTLS(context)
        elif tls_only and not context.client.tls:
            nextlayer.layer = RefusalLayer(context, "This port takes TLS only.")
        elif speaks_tls:
            nextlayer.layer = RefusalLayer(context, f"The {way.listener} listener takes plain HTTP only.")
        else:
            nextlayer.layer = made = self._http(context)
            if isinstance(made, DeliveryLayer):
                made.patience = self._patiences.get(context.client.id)


class ClientTLS(ClientTLSLayer):
    """TLS with a limit on the ClientHello, of which mitmproxy would keep 16 MiB, parsed anew with every packet."""

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        if not self.client_hello_parsed and len(self.recv_buffer) + len(data) > MAX_HEAD:
            return False, "Cannot parse ClientHello: it is too long"
        return (yield from super().receive_handshake_data(data))


class _Acceptor:
    """A listener's callback for new connections."""

    def __init__(self, listeners: Listeners, listener: str, port: int) -> None:
        self._listeners = listeners
        self._listener = listener
        self._port = port

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._listeners.handle(self._listener, self._port, reader, writer)
