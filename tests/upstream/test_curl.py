"""What the transport does with connections and with bodies, against a plain HTTP server."""

import threading
from collections.abc import Iterator
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mitm_cache.demo.image import Image, generate
from mitm_cache.demo.message import text
from mitm_cache.errors import UpstreamError
from mitm_cache.oci.manifest import MAX_SIZE
from mitm_cache.upstream import curl
from mitm_cache.upstream.curl import Answer, Outgoing, Transport
from mitm_cache.upstream.route import Route
from mitm_cache.wire.headers import Headers
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import Threaded

LIMIT = 64 << 10
ZEROS = "sha256:" + "0" * 64
ROUTE = Route(("127.0.0.1",), Path("/nowhere"))


class _Talker(BaseHTTPRequestHandler):
    """Answers `/STATUS/SIZE` so, and a size of 0 without end."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        status, size = map(int, self.path.split("/")[1:])
        self.send_response(status)
        self.send_header("Retry-After", "7")
        if size:
            self.send_header("Content-Length", str(size))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        try:
            while not size:
                self.wfile.write(bytes(LIMIT))
            self.wfile.write(bytes(size))
        except (ConnectionError, HTTPException):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Counts its connections."""

    connections = 0

    def process_request(self, request: object, client_address: object) -> None:
        self.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Talker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def transport(server: Server) -> Iterator[Transport]:
    transport = Transport(agent="test", stopped=lambda: False)
    yield transport
    transport.close()


def get(transport: Transport, server: Server, path: str, host: str = "host.example") -> Answer:
    url = f"http://{host}:{server.server_port}{path}"
    return transport.perform(Outgoing("GET", url, Headers()), ROUTE, limit=LIMIT, seconds=20)


def test_connections_of_many_hosts(server: Server, transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few are kept however many hosts there are: those that were used last."""
    monkeypatch.setattr(curl, "ALL_IDLE_HANDLES", 3)
    for number in (1, 2, 3, 4, 1, 5):
        get(transport, server, "/200/1", f"h{number}.example")
    assert server.connections == 6
    for number in (4, 1, 5):
        get(transport, server, "/200/1", f"h{number}.example")
    assert server.connections == 6
    get(transport, server, "/200/1", "h3.example")
    assert server.connections == 7


@pytest.mark.parametrize("status", [401, 404, 500])
@pytest.mark.parametrize("size", [LIMIT + 1, 0])
def test_an_error_of_many_words(server: Server, transport: Transport, status: int, size: int) -> None:
    """What it says is left out, and it stays what it is."""
    answer = get(transport, server, f"/{status}/{size}")
    assert (answer.status, answer.headers.get("retry-after"), answer.body) == (status, "7", b"")


@pytest.mark.parametrize("status", [200, 307])
@pytest.mark.parametrize("size", [LIMIT + 1, 0])
def test_an_answer_of_many_words(server: Server, transport: Transport, status: int, size: int) -> None:
    """Of what is wanted nothing is left out, and who sends on says little: too much of it is an error."""
    assert len(get(transport, server, f"/{status}/{LIMIT}").body) == LIMIT
    with pytest.raises(UpstreamError, match=f"sent more than {LIMIT} bytes where few were expected"):
        get(transport, server, f"/{status}/{size}")


@pytest.fixture
def image() -> Image:
    return generate(sizes=[1], platforms=["linux/amd64"])


@pytest.mark.parametrize(
    ("kind", "path"), [("manifest", f"manifests/{ZEROS}"), ("blob", f"blobs/{ZEROS}"), ("tag", "manifests/1")]
)
def test_a_refusal_of_many_words(cache: Threaded, upstream: LyingUpstream, kind: str, path: str) -> None:
    """A registry's 404 with a long page of HTML is the client's 404."""
    upstream.lie(kind, lambda _incoming, _proceed: text(404, bytes(MAX_SIZE + 1), "text/html"))
    with cache.client() as client:
        assert client.get(f"/v2/team/app/{path}", {"Accept": "*/*"}).status == 404


def test_a_type_of_many_words(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """A Content-Type that is too long for the index is passed on, and kept beside the content."""
    long = f"application/vnd.oci.image.index.v1+json; a={'b' * 40_000}"
    upstream.lie("manifest", faults.header("Content-Type", long))
    with cache.client() as client:
        for outcome in ("MISS", "HIT"):
            reply = client.get(f"/v2/team/app/manifests/{image.index.digest}", {"Accept": "*/*"})
            assert (reply.status, reply.outcome, reply.headers["Content-Type"]) == (200, outcome, long)
