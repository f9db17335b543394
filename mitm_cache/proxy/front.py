"""Which way a new connection goes: intercepted, or tunnelled undecrypted, before mitmproxy sees any of it.

Token hosts that nodes send here by the hosts file are tunnelled by their server name. On the connect listener
registries are intercepted, and every other host is tunnelled, by the ports and addresses that are allowed.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from socket import socket
from typing import Protocol

from mitm_cache.errors import ClientError, LoopError, MitmCacheError
from mitm_cache.journal import Event, Journal
from mitm_cache.oci import problem
from mitm_cache.proxy.peek import PATIENCE, Beginning, Connect, Replay, read_connect, read_server_name
from mitm_cache.proxy.tunnel import Tunnel
from mitm_cache.registries import HTTPS, Known

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_METHODS = {"connect": "CONNECT"}
_RANDOM = slice(11, 43)
"""Where a ClientHello has its random bytes: after the heads of record and message, and a version (RFC 8446, 4.1.2)."""


class Dial(Protocol):
    """Opens a connection, off the event loop."""

    async def __call__(self, host: str, port: int, *, trusted: bool) -> socket: ...


@dataclass(frozen=True, slots=True)
class Intercepted:
    """The connection is mitmproxy's, from its beginning; `target` is the host that CONNECT named, or ""."""

    reader: Replay
    target: str = ""


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """The connection is passed on to a host, from its beginning."""

    host: str
    port: int
    beginning: bytes


class Front:
    """Decides about connections, and keeps the tunnels."""

    def __init__(
        self,
        *,
        known: Known,
        connect_ports: Collection[int],
        dial: Dial,
        journal: Journal,
        own: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`connect_ports`: where tunnels may lead; `own`: the names of the cache itself."""
        self._known = known
        self._own = frozenset(own)
        self._token_hosts = {host for registry in known for host in registry.auth_hosts if not known.find(host)}
        self._connect_ports = frozenset(connect_ports)
        self._dial = dial
        self._journal = journal
        self._clock = clock
        self._hellos: set[bytes] = set()

    async def receive(
        self, listener: str, client: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Intercepted | None:
        """How to go on with a connection; None where it has been dealt with to its end."""
        try:
            async with asyncio.timeout(PATIENCE):
                way = await self._decide(listener, reader)
        except (OSError, TimeoutError):
            return None  # it has said nothing, or not in time
        except ClientError as error:
            self._refuse(listener, client, error, writer)
            return None
        if isinstance(way, Tunnelled):
            await self._tunnel(listener, client, way, reader, writer)
            return None
        if way.target:
            writer.write(ESTABLISHED)
        return way

    async def _decide(self, listener: str, reader: asyncio.StreamReader) -> Intercepted | Tunnelled:
        """Raises ClientError where the way leads nowhere."""
        if listener == "connect":
            asked = await read_connect(reader)
            if isinstance(asked, Connect):
                return self._target(asked, reader)
            return Intercepted(Replay(reader, asked.data))
        beginning = await read_server_name(reader) if listener == "tls" else Beginning(b"")
        if beginning.name in self._token_hosts:
            return Tunnelled(beginning.name, HTTPS, beginning.data)
        return Intercepted(Replay(reader, beginning.data))

    def _target(self, asked: Connect, reader: asyncio.StreamReader) -> Intercepted | Tunnelled:
        if self._known.at(asked.host, asked.port) or asked.host in self._own:
            return Intercepted(Replay(reader, asked.rest), asked.host)
        if asked.port not in self._connect_ports:
            allowed = ", ".join(map(str, sorted(self._connect_ports))) or "none"
            raise ClientError(
                f"no tunnel leads to port {asked.port}; clients.connect_ports allows {allowed}",
                status=403,
                code="DENIED",
            )
        return Tunnelled(asked.host, asked.port, asked.rest)

    async def _tunnel(
        self,
        listener: str,
        client: str,
        way: Tunnelled,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Dial, and pass on until it ends. A tunnel carries no Via, but a ClientHello that is back is the same one."""
        hello = way.beginning[_RANDOM] if listener == "tls" else b""
        if hello in self._hellos:
            loop = LoopError(f"{way.host} leads back to this cache; set upstream.resolvers")
            self._refuse(listener, client, loop, writer)
            return
        if not hello:
            await self._carry(listener, client, way, reader, writer)
            return
        self._hellos.add(hello)
        try:
            await self._carry(listener, client, way, reader, writer)
        finally:
            self._hellos.discard(hello)

    async def _carry(
        self,
        listener: str,
        client: str,
        way: Tunnelled,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        started = self._clock()
        try:
            server = await self._dial(way.host, way.port, trusted=listener == "tls")
        except MitmCacheError as error:
            self._refuse(listener, client, error, writer)
            return
        if listener == "connect":
            writer.write(ESTABLISHED)
        tunnel = Tunnel(reader, writer)
        await tunnel.run(server, way.beginning)
        self._journal.record(
            Event(
                time=time.time(),
                listener=listener,
                client=client,
                method=_METHODS.get(listener, ""),
                outcome="TUNNEL",
                reason=f"{way.host}:{way.port}, undecrypted",
                bytes_out=tunnel.received,
                bytes_in=tunnel.received,
                ms=round((self._clock() - started) * 1000, 1),
            )
        )

    def _refuse(self, listener: str, client: str, error: MitmCacheError, writer: asyncio.StreamWriter) -> None:
        """Say why, where the client can read it; behind a ClientHello there is nothing that it would understand."""
        self._journal.record(
            Event(
                time=time.time(),
                listener=listener,
                client=client,
                method=_METHODS.get(listener, ""),
                outcome="REFUSED" if isinstance(error, ClientError) else "ERROR",
                reason=error.message,
                status=error.status,
            )
        )
        if listener == "connect":
            body = problem.document(error.code, error.message)
            reason = HTTPStatus(error.status).phrase
            head = (
                f"HTTP/1.1 {error.status} {reason}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
        writer.close()
