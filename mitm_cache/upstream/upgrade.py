"""Connections that leave HTTP behind (RFC 9110, 7.8): WebSockets of a registry's web interface."""

import asyncio
import re
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from socket import socket

from mitm_cache.errors import UpstreamError
from mitm_cache.upstream.route import Route
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redirect import Origin

PROTOCOL = "websocket"
MAX_HEAD = 64 << 10
PATIENCE = 60.0
"""Seconds for upstream to answer."""
_STATUS_LINE = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?")


@dataclass(frozen=True, slots=True)
class Line:
    """A connected socket to a registry, and how it is gone on with."""

    socket: socket
    origin: Origin
    route: Route


@dataclass(frozen=True, slots=True)
class Upgraded:
    """Upstream's 101, and the connection behind it."""

    headers: Headers
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def is_upgrade(headers: Headers) -> bool:
    """Whether a request asks for a WebSocket (RFC 6455, 4.1)."""
    named = ",".join(headers.get_all("connection")).lower().split(",")
    return "upgrade" in (name.strip() for name in named) and (headers.get("upgrade") or "").lower() == PROTOCOL


async def upgrade(line: Line, target: str, headers: Headers) -> Upgraded | None:
    """Ask for a WebSocket; None where upstream answers with anything but 101. Raises UpstreamError."""
    fields = [("Host", line.origin.authority), *headers, ("Connection", "Upgrade"), ("Upgrade", PROTOCOL)]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await _connect(line)
            try:
                writer.write(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "replace"))
                answer = await reader.readuntil(b"\r\n\r\n")
            except BaseException:
                writer.transport.abort()
                raise
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        raise UpstreamError(f"no WebSocket to {line.origin}: {str(error) or type(error).__name__}") from error
    first, *rest = answer.decode("latin-1").rstrip().split("\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None or int(status[1]) != HTTPStatus.SWITCHING_PROTOCOLS:
        writer.transport.abort()
        return None
    parts = (text.partition(":") for text in rest)
    return Upgraded(Headers((name.strip(), value.strip()) for name, _, value in parts), reader, writer)


async def _connect(line: Line) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    line.socket.setblocking(False)
    tls = _context(line.route) if line.origin.scheme == "https" else None
    name = line.origin.host if tls is not None else None
    return await asyncio.open_connection(sock=line.socket, ssl=tls, server_hostname=name, limit=MAX_HEAD)


def _context(route: Route) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(route.trust)
    if route.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if route.client_cert is not None:
        context.load_cert_chain(route.client_cert)
    return context
