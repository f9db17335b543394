"""A Docker daemon that may lie: it says what a test has put into it, and pushes as a test says.

with FakeDaemon(tmp_path / "docker.sock") as daemon:
    daemon.images["localhost:5000/app:1"] = image("sha256:…")
    daemon.pushing = lambda push: push.say({"error": "no"})
"""

import http.server
import json
import socketserver
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, override


def image(
    id_: str, *, tagged: str = "", created: str = "2020-01-01T00:00:00Z", digests: tuple[str, ...] = (), tags: Any = ()
) -> dict[str, Any]:
    """The answer to ImageInspect."""
    metadata = {"LastTagTime": tagged or "0001-01-01T00:00:00Z"}
    return {"Id": id_, "Created": created, "Metadata": metadata, "RepoDigests": list(digests), "RepoTags": list(tags)}


class Push:
    """A push that is under way: what was asked for, and what is said of it."""

    def __init__(self, handler: http.server.BaseHTTPRequestHandler, name: str) -> None:
        self.name = name
        self.headers = handler.headers
        self._handler = handler
        self._begun = False

    @property
    def mark(self) -> str:
        return self.headers.get("X-Meta-Mitm-Cache-Push", "")

    def say(self, message: object) -> None:
        """One message, as a chunk of its own."""
        self.send((json.dumps(message) + "\r\n").encode())

    def begin(self) -> None:
        """The head of the answer, once."""
        if not self._begun:
            self._begun = True
            self._handler.send_response(200)
            self._handler.send_header("Content-Type", "application/json")
            self._handler.send_header("Transfer-Encoding", "chunked")
            self._handler.end_headers()

    def send(self, data: bytes) -> None:
        self.begin()
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self._handler.wfile.flush()

    def cut(self) -> None:
        """End the connection in the middle."""
        self._handler.close_connection = True
        raise BrokenPipeError


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128  # a unix socket refuses who finds it full
    daemon: "FakeDaemon"

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is not this server's trouble."""


class FakeDaemon:
    """Its answers are `images`, by name; `silent` is set where it takes connections and says nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"unix://{path}"
        self.images: dict[str, Mapping[str, Any]] = {}
        self.pushing: Callable[[Push], None] = lambda _: None
        self.pushes: list[Push] = []
        self.looks: list[str] = []
        self.silent = threading.Event()
        self.ended = threading.Event()
        self._server: _Server | None = None

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = _Server(str(self.path), _Handler)
        self._server.daemon = self
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more."""
        self.ended.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            self.path.unlink()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @override
    def address_string(self) -> str:
        return "unix"

    @override
    def log_message(self, *unused: object) -> None:
        """Nothing: tests look at what was asked."""

    def _answer(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _wait(self) -> None:
        """Say nothing, until the end."""
        if self.server.daemon.silent.is_set():
            self.server.daemon.ended.wait()

    def do_GET(self) -> None:
        self._wait()
        path = urllib.parse.unquote(self.path)
        if path == "/version":
            self._answer(200, {"ApiVersion": "1.41"})
            return
        name = path.partition("/images/")[2].removesuffix("/json")
        daemon = self.server.daemon
        daemon.looks.append(name)
        found = daemon.images.get(name)
        self._answer(*((200, found) if found is not None else (404, {"message": f"No such image: {name}"})))

    def do_POST(self) -> None:
        self._wait()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        name = urllib.parse.unquote(path).partition("/images/")[2].removesuffix("/push")
        push = Push(self, f"{name}:{urllib.parse.parse_qs(query)['tag'][0]}")
        self.server.daemon.pushes.append(push)
        self.server.daemon.pushing(push)
        push.begin()
        self.wfile.write(b"0\r\n\r\n")
