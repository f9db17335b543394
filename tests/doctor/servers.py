"""Servers that answer as a test wants, with TLS or without."""

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import override


class _Door(http.server.BaseHTTPRequestHandler):
    status = 200
    fields: Mapping[str, str] = {}
    body = b""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        for name, value in {"Content-Length": str(len(self.body)), "Connection": "close", **self.fields}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.body)

    do_HEAD = do_GET

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    context: ssl.SSLContext | None = None

    @override
    def finish_request(self, request: object, client_address: object) -> None:
        if self.context is None:
            super().finish_request(request, client_address)  # type: ignore[arg-type]
            return
        assert isinstance(request, socket.socket)
        try:
            with self.context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except OSError:
            pass  # a client that does not believe the certificate


@contextmanager
def answering(
    status: int = 200,
    fields: Mapping[str, str] | None = None,
    *,
    body: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """A server on loopback that says this to everybody; gives its port."""
    door = type("Door", (_Door,), {"status": status, "fields": fields or {}, "body": body})
    with _Server(("127.0.0.1", 0), door) as server:
        server.context = tls
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
