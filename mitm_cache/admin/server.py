"""The admin listener: a small HTTP server, GET and HEAD only, one request for each connection.

It runs in the event loop that serves pulls, so an answer is itself the proof that the loop turns. What a client can
hold is bounded: bytes of a head, connections, and the seconds that one may last in all.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from io import BytesIO
from ipaddress import ip_address
from typing import Self

from mitm_cache.tasks import stop_accepting

logger = logging.getLogger(__name__)

MAX_HEAD = 8 << 10
MAX_CONNECTIONS = 64
PATIENCE = 10.0
"""Seconds that a connection may last."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[str, ...] = ()


type Ask = Callable[[Mapping[str, str]], Awaitable[Page]]
"""Makes a page, given the request's headers."""


def text(status: HTTPStatus, words: str, *headers: str) -> Page:
    """A page of one line for a person."""
    return Page(status, "text/plain; charset=utf-8", f"{words}\n".encode(), headers)


def document(content: Mapping[str, object], status: int = 200) -> Page:
    """A page of JSON."""
    return Page(status, "application/json", json.dumps(content, indent=2).encode() + b"\n")


class Server:
    """Answers on the admin sockets while its context lasts."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        pages: Mapping[str, Ask],
        *,
        admits: Callable[[str], bool],
        patience: float = PATIENCE,
    ) -> None:
        """`admits`: whether an address that is not this machine's own loopback may ask."""
        self._sockets = sockets
        self._pages = pages
        self._admits = admits
        self._patience = patience
        self._servers: list[asyncio.Server] = []
        self._open: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        for bound in self._sockets:
            self._servers.append(await asyncio.start_server(self._accept, sock=bound, limit=MAX_HEAD))
        return self

    async def leave(self) -> None:
        """Accept no more, and wait until who is connected has an answer."""
        for server in self._servers:
            stop_accepting(server)
        await asyncio.gather(*(server.wait_closed() for server in self._servers))

    async def __aexit__(self, *error: object) -> None:
        for server in self._servers:
            server.close()
        self._closed = True
        waiting = list(self._open)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._closed:  # it was accepted before, and its turn has come only now: who answers is gone
            writer.transport.abort()
            return
        self._open.add(task)
        complete = False
        try:
            async with asyncio.timeout(self._patience):
                await self._converse(reader, writer)
            complete = True
        except (OSError, asyncio.IncompleteReadError):  # TimeoutError is one
            pass
        finally:
            self._open.discard(task)
            if complete:
                writer.close()
            else:
                writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # drain() then means that the kernel has it all
        if len(self._open) > MAX_CONNECTIONS:
            writer.write(_encode(text(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections to the admin listener.")))
            await writer.drain()
            return
        writer.write(await self._first_answer(reader, writer.get_extra_info("peername")))
        await writer.drain()
        # Closing before all of a request is read would reset the connection, and take the answer with it.
        writer.write_eof()
        while await reader.read(MAX_HEAD):
            pass

    async def _first_answer(self, reader: asyncio.StreamReader, peer: tuple[str, int]) -> bytes:
        address = str(peer[0])
        if not (_is_loopback(address) or self._admits(address)):
            return _encode(text(HTTPStatus.FORBIDDEN, "This address is not in clients.allow."))
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _encode(
                text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A head is at most {MAX_HEAD} bytes here.")
            )
        page = await self._answer(head, local=_is_loopback(address))
        return _encode(page, with_body=not head.startswith(b"HEAD "))

    async def _answer(self, head: bytes, *, local: bool) -> Page:
        line, _, fields = head.partition(b"\r\n")
        match line.decode("latin-1").split(" "):
            case [method, target, "HTTP/1.1" | "HTTP/1.0"]:
                ask = self._pages.get(target.partition("?")[0])
            case _:
                return text(HTTPStatus.BAD_REQUEST, "This is not an HTTP/1.1 request.")
        if ask is None:
            return text(HTTPStatus.NOT_FOUND, f"There is {', '.join(self._pages)}.")
        if method not in ("GET", "HEAD"):
            return text(HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD only.", "Allow: GET, HEAD")
        try:
            parsed = parse_headers(BytesIO(fields))
        except HTTPException:
            return text(HTTPStatus.BAD_REQUEST, "The header fields cannot be read.")
        if local and not all(map(_is_local_name, parsed.get_all("host", []))):
            return text(HTTPStatus.MISDIRECTED_REQUEST, "From this machine it is asked as localhost, or by an address.")
        headers = {name.lower(): value for name, value in parsed.items()}
        try:
            return await ask(headers)
        except Exception:
            logger.exception("an admin page failed for no known reason")
            return text(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error; the log has it.")


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _is_local_name(host: str) -> bool:
    """Whether a Host is localhost or an address. A page in this machine's browser could otherwise have its own name
    resolved to loopback, and read what is told here (DNS rebinding)."""
    name, colon, port = host.rpartition(":")
    name = name if colon and port.isdigit() else host
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _encode(page: Page, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(page.body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *page.headers,
    )
    return "\r\n".join((*head, "", "")).encode() + (page.body if with_body else b"")
