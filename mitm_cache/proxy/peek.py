"""A look at how a connection begins, before it is decided who takes it."""

import asyncio
import re
from dataclasses import dataclass, field

from mitmproxy.net.http.http1 import read_request_head
from mitmproxy.proxy.layers.tls import parse_client_hello

from mitm_cache.errors import ClientError
from mitm_cache.wire.basic import Basic, parse_basic

MAX_BEGINNING = 64 << 10
"""Bytes of a ClientHello, or of a request's head, that are waited for."""
PATIENCE = 30.0
"""Seconds for them to come."""
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DOTTED = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})")


class Replay:
    """A reader that first gives what has been looked at already."""

    def __init__(self, reader: asyncio.StreamReader, beginning: bytes) -> None:
        self._reader = reader
        self._beginning = beginning

    async def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, as StreamReader does."""
        if self._beginning:
            size = len(self._beginning) if size < 0 else size
            given, self._beginning = self._beginning[:size], self._beginning[size:]
            return given
        return await self._reader.read(size)

    def holds(self) -> bool:
        """Whether there is something that has come and has not been read."""
        return bool(self._beginning) or holds(self._reader)


def holds(reader: asyncio.StreamReader) -> bool:
    """Whether a reader has something that has not been read: asyncio itself does not say it."""
    buffer: bytearray = reader._buffer  # type: ignore[attr-defined]  # tests/contracts/ watches it
    return bool(buffer)


@dataclass(frozen=True, slots=True)
class Beginning:
    """What has come so far. `name` is a ClientHello's server name, "" where there is none to be had."""

    data: bytes
    name: str = ""


@dataclass(frozen=True, slots=True)
class Connect:
    """A CONNECT request (RFC 9110, 9.3.6): who asks, where that is said, and what came behind it."""

    host: str
    port: int
    rest: bytes
    login: Basic | None = field(default=None, repr=False)


async def read_server_name(reader: asyncio.StreamReader) -> Beginning:
    """Read until a ClientHello is whole, or is none. Nothing is judged here: whoever takes the connection does."""
    data = b""
    while len(data) < MAX_BEGINNING:
        more = await reader.read(MAX_BEGINNING)
        data += more
        if not more or data[:1] != b"\x16":
            break
        try:
            hello = parse_client_hello(data)
        except ValueError:
            break
        if hello is not None:
            return Beginning(data, (hello.sni or "").lower().rstrip("."))
    return Beginning(data)


async def read_connect(reader: asyncio.StreamReader, data: bytes = b"") -> Connect | Beginning:
    """Read a request's head, which begins with `data`: the CONNECT it is, or what has come of something else.

    Raises ClientError (400) for a CONNECT that is malformed.
    """
    while b"CONNECT ".startswith(data[:8]) and b"\r\n\r\n" not in data and len(data) < MAX_BEGINNING:
        more = await reader.read(MAX_BEGINNING)
        data += more
        if not more:
            return Beginning(data)
    if not b"CONNECT ".startswith(data[:8]):
        return Beginning(data)
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end or len(head) > MAX_BEGINNING:  # one read may bring more than is allowed, and its end
        raise ClientError(f"the head of a CONNECT request is at most {MAX_BEGINNING} bytes", status=431)
    try:
        request = read_request_head(head.split(b"\r\n"))
    except ValueError as error:
        raise ClientError(f"the CONNECT request is malformed: {error}") from error
    # As it was sent: mitmproxy's own `authority` turns xn-- into other scripts, of which no route and no rule knows.
    host, port = _target(request.data.authority.decode("latin-1"))
    return Connect(host, port, rest, parse_basic(request.headers.get_all("proxy-authorization")))


def _target(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]").lower().rstrip(".")
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ClientError("CONNECT wants host:port")
    if _NUMBER.fullmatch(host.rpartition(".")[2]) and ":" not in host and not _DOTTED.fullmatch(host):
        # 2130706433 and 0x7f.1 are 127.0.0.1 to libcurl and others, and a name to whoever checks addresses.
        raise ClientError("CONNECT wants an IPv4 address in its usual form")
    return host, int(port)
