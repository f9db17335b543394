"""Which way a new connection goes: intercepted, or tunnelled undecrypted, before mitmproxy sees any of it.

Token hosts that nodes send here by the hosts file are tunnelled by their server name. On the connect listener
registries are intercepted, and every other host is tunnelled, by the ports and addresses that are allowed.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from socket import socket
from typing import Protocol

from mitm_cache.errors import ClientError, LoopError, MitmCacheError, UpstreamError
from mitm_cache.journal import Event, Journal
from mitm_cache.oci import problem
from mitm_cache.proxy.peek import PATIENCE, Beginning, Connect, Replay, read_connect, read_server_name
from mitm_cache.proxy.tunnel import Tunnel
from mitm_cache.registries import HTTPS, Known
from mitm_cache.users import Users
from mitm_cache.wire.basic import CHALLENGE, Basic

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
MAX_LOGINS = 4
"""CONNECT requests of one connection without a right password; the last one is answered and the connection closed."""
_METHODS = {"connect": "CONNECT"}
_RANDOM = slice(11, 43)
"""Where a ClientHello has its random bytes: after the heads of record and message, and a version (RFC 8446, 4.1.2)."""


class Dial(Protocol):
    """Opens a connection, off the event loop."""

    async def __call__(self, host: str, port: int, *, trusted: bool) -> socket: ...


@dataclass(frozen=True, slots=True)
class Intercepted:
    """The connection is mitmproxy's, from its beginning; `target` is the host that CONNECT named, and `user` who it
    was, or "", with the `hash` of the password that it had."""

    reader: Replay
    target: str = ""
    user: str = ""
    hash: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """The connection is passed on to a host, from its beginning."""

    host: str
    port: int
    beginning: bytes
    user: str = ""


@dataclass(frozen=True, slots=True)
class _Coming:
    """A new connection: the listener and the client's address, and its two directions."""

    listener: str
    client: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


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
        users: Users | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`connect_ports`: where tunnels may lead; `own`: the names of the cache itself; `users`: who may use CONNECT,
        None for everybody."""
        self._known = known
        self._own = frozenset(own)
        self._token_hosts = {host for registry in known for host in registry.auth_hosts if not known.find(host)}
        self._connect_ports = frozenset(connect_ports)
        self._dial = dial
        self._journal = journal
        self._users = users
        self._clock = clock
        self._hellos: set[bytes] = set()

    async def receive(
        self, listener: str, client: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Intercepted | None:
        """How to go on with a connection; None where it has been dealt with to its end."""
        coming = _Coming(listener, client, reader, writer)
        try:
            way = await self._decide(coming)
        except (OSError, TimeoutError):
            return None  # it has said nothing, or not in time
        except ClientError as error:
            self._refuse(coming, error)
            return None
        if isinstance(way, Tunnelled):
            await self._tunnel(coming, way)
            return None
        if way.target:
            writer.write(ESTABLISHED)
        return way

    async def _decide(self, coming: _Coming) -> Intercepted | Tunnelled:
        """Raises ClientError where the way leads nowhere."""
        if coming.listener == "connect":
            return await self._follow(coming)
        beginning = Beginning(b"")
        if coming.listener == "tls":
            async with asyncio.timeout(PATIENCE):
                beginning = await read_server_name(coming.reader)
        if beginning.name in self._token_hosts:
            return Tunnelled(beginning.name, HTTPS, beginning.data)
        return Intercepted(Replay(coming.reader, beginning.data))

    async def _follow(self, coming: _Coming) -> Intercepted | Tunnelled:
        """Where CONNECT leads, once it is known who asks; a client may try again on the same connection."""
        rest = b""
        for attempt in range(1, MAX_LOGINS + 1):
            async with asyncio.timeout(PATIENCE):
                asked = await read_connect(coming.reader, rest)
            if not isinstance(asked, Connect):
                return Intercepted(Replay(coming.reader, asked.data))
            refusal = await self._unwelcome(coming.client, asked.login)
            if refusal is None:
                return self._target(asked, coming.reader)
            if attempt == MAX_LOGINS:
                raise refusal
            self._refuse(coming, refusal, again=True)
            await coming.writer.drain()
            rest = asked.rest
        raise AssertionError("the last attempt has been answered")

    async def _unwelcome(self, client: str, login: Basic | None) -> ClientError | None:
        """Why a CONNECT is not followed for want of a user. Raises ClientError (429) for too many attempts."""
        if self._users is None:
            return None
        if login is None:
            return ClientError("this proxy wants a user and a password", status=407, code="UNAUTHORIZED")
        right = self._users.recall(login)
        if right is None:
            right = await self._users.check(client, login)
        return None if right else ClientError("the user or the password is wrong", status=407, code="UNAUTHORIZED")

    def _target(self, asked: Connect, reader: asyncio.StreamReader) -> Intercepted | Tunnelled:
        user = hash_ = ""
        if self._users is not None and asked.login is not None:
            user, hash_ = asked.login.name, self._users.hash_by(asked.login)
        if self._known.at(asked.host, asked.port) or asked.host in self._own:
            return Intercepted(Replay(reader, asked.rest), asked.host, user, hash_)
        if asked.port not in self._connect_ports:
            allowed = ", ".join(map(str, sorted(self._connect_ports))) or "none"
            raise ClientError(
                f"no tunnel leads to port {asked.port}; clients.connect_ports allows {allowed}",
                status=403,
                code="DENIED",
            )
        return Tunnelled(asked.host, asked.port, asked.rest, user)

    async def _tunnel(self, coming: _Coming, way: Tunnelled) -> None:
        """Dial, and pass on until it ends. A tunnel carries no Via, but a ClientHello that is back is the same one."""
        hello = way.beginning[_RANDOM] if coming.listener == "tls" else b""
        if hello in self._hellos:
            self._refuse(coming, LoopError(f"{way.host} leads back to this cache; set upstream.resolvers"))
            return
        if hello:
            self._hellos.add(hello)
        try:
            started = self._clock()
            try:
                server = await self._dial(way.host, way.port, trusted=coming.listener == "tls")
            except OSError as error:  # no descriptor is left
                raise UpstreamError(f"{way.host} cannot be dialled: {error.strerror}") from error
            if coming.listener == "connect":
                coming.writer.write(ESTABLISHED)
            tunnel = Tunnel(coming.reader, coming.writer)
            await tunnel.run(server, way.beginning)
        except MitmCacheError as error:
            self._refuse(coming, error, user=way.user)
            return
        finally:
            self._hellos.discard(hello)
        self._journal.record(
            Event(
                time=time.time(),
                listener=coming.listener,
                client=coming.client,
                user=way.user,
                method=_METHODS.get(coming.listener, ""),
                outcome="TUNNEL",
                reason=f"{way.host}:{way.port}, undecrypted",
                bytes_out=tunnel.received,
                bytes_in=tunnel.received,
                ms=round((self._clock() - started) * 1000, 1),
            )
        )

    def _refuse(self, coming: _Coming, error: MitmCacheError, *, user: str = "", again: bool = False) -> None:
        """Say why, where the client can read it; behind a ClientHello there is nothing that it would understand.

        `again`: the client may ask again on this connection.
        """
        self._journal.record(
            Event(
                time=time.time(),
                listener=coming.listener,
                client=coming.client,
                user=user,
                method=_METHODS.get(coming.listener, ""),
                outcome="REFUSED" if isinstance(error, ClientError) else "ERROR",
                reason=error.message,
                status=error.status,
            )
        )
        if coming.listener == "connect":
            body = problem.document(error.code, error.message)
            fields = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
            if error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                fields.append(f"Proxy-Authenticate: {CHALLENGE}")
            if not again:
                fields.append("Connection: close")
            reason = HTTPStatus(error.status).phrase
            head = "\r\n".join([f"HTTP/1.1 {error.status} {reason}", *fields, "", ""])
            coming.writer.write(head.encode() + body)
        if not again:
            coming.writer.close()
