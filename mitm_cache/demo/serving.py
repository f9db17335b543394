"""The HTTP/1.1 behind a demo host: one thread for each connection, each answer as it was decided elsewhere."""

import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import responses
from http.server import BaseHTTPRequestHandler
from typing import Protocol, override
from urllib.parse import parse_qsl, urlsplit

from mitm_cache.demo.content import Chunk
from mitm_cache.demo.ledger import Ledger, Record
from mitm_cache.demo.message import Answer, Around, CutError, Incoming

_BACKLOG = 512


class Answering(Protocol):
    """What is served: see `host.Host`."""

    name: str
    tls: ssl.SSLContext | None
    requests: Ledger
    around: Around
    rate: float | None
    crashes: list[BaseException]
    closing: threading.Event

    def kind(self, method: str, path: str) -> str: ...

    def answer(self, incoming: Incoming) -> Answer: ...


class Server(socketserver.ThreadingTCPServer):
    """Takes connections from a socket that is bound already."""

    daemon_threads = True

    def __init__(self, host: Answering, listening: socket.socket) -> None:
        super().__init__(listening.getsockname(), _Exchange, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.socket.listen(_BACKLOG)
        self.host = host
        self.lock = threading.Lock()
        self.open: set[socket.socket] = set()

    def cut(self) -> None:
        """Cut every open connection."""
        with self.lock:
            for each in self.open:
                _shut(each)

    @override
    def server_close(self) -> None:
        super().server_close()
        self.cut()

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        # Clients that leave, or do not trust us, are everyday life.
        if error is not None and not isinstance(error, OSError):
            self.host.crashes.append(error)


def _shut(open_socket: socket.socket) -> None:
    """End both ways at once, from any thread: the method of an SSLSocket would first go back to clear text."""
    with suppress(OSError):
        socket.socket.shutdown(open_socket, socket.SHUT_RDWR)


class _Exchange(BaseHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    @override
    def setup(self) -> None:
        self.host = self.server.host
        if self.host.tls is not None:
            self.request = self.host.tls.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        with self.server.lock:
            self.server.open.add(self.request)
        try:
            if isinstance(self.request, ssl.SSLSocket):
                # Here and not when accepting: a slow handshake must not hold up other clients.
                self.request.do_handshake()
            super().setup()
        except BaseException:
            self._leave()
            raise

    @override
    def finish(self) -> None:
        super().finish()
        self._leave()

    def _leave(self) -> None:
        with self.server.lock:
            self.server.open.discard(self.request)
        if self.request.fileno() != -1:
            self._goodbye()
            self.request.close()

    @override
    def log_message(self, format: str, *args: object) -> None:
        """The ledger is the log."""

    def do_GET(self) -> None:
        incoming, record = self._read()
        try:
            answer = self.host.around(incoming, self.host.answer)
            self.host.requests.note(record, status=answer.status)
            self._send(incoming, answer, record)
        except CutError as cut:
            self._cut(cut)
        except OSError:
            self.close_connection = True
        finally:
            self.host.requests.note(record, done=True)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def _read(self) -> tuple[Incoming, Record]:
        parts = urlsplit(self.path)
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        if "content-length" in headers or "transfer-encoding" in headers:
            self.close_connection = True  # the body is never read
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        kind = self.host.kind(self.command, parts.path)
        sni = getattr(self.request, "demo_sni", "")
        incoming = Incoming(self.command, parts.path, query, headers, kind, sni)
        record = Record(self.host.name, kind, self.command, parts.path, query, headers, sni)
        self.host.requests.add(record)
        return incoming, record

    def _send(self, incoming: Incoming, answer: Answer, record: Record) -> None:
        length = answer.headers.get("Content-Length")
        self.close_connection = self.close_connection or length is None
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines += ["Connection: close"] * self.close_connection
        self.request.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if incoming.method == "HEAD":
            return
        for chunk in self._paced(answer.chunks):
            self.request.sendall(chunk)
            record.sent += len(chunk)
        if str(record.sent) != length:
            self.close_connection = True

    def _paced(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        rate = self.host.rate
        if rate is None:
            yield from chunks
            return
        begun, sent, step = time.monotonic(), 0, max(1024, int(rate / 20))
        for chunk in chunks:
            for offset in range(0, len(chunk), step):
                self.host.closing.wait(max(0, begun + sent / rate - time.monotonic()))
                piece = chunk[offset : offset + step]
                yield piece
                sent += len(piece)

    def _cut(self, cut: CutError) -> None:
        self.close_connection = True
        if cut.how == "reset":
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            if cut.how == "goodbye":
                self._goodbye()
            _shut(self.request)
        self.request.close()  # in fact by finish(), when the reading side is given up too

    def _goodbye(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                self.request.settimeout(0)  # say it, and do not wait for the reply
                self.request.unwrap()


def remember_name(tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
    """Note, as a callback of the handshake, the name that a client asked for."""
    tls.demo_sni = name or ""  # type: ignore[union-attr]  # an SSLSocket takes attributes; there is no other way back
