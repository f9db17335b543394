"""What is no pull: passed on as it comes, in both directions, and forgotten."""

import base64
import hashlib
import json
import select
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mitm_cache.demo.image import generate
from mitm_cache.proxy import serve
from mitm_cache.proxy.stream import MAX_UPLOADS
from mitm_cache.upstream.leg import UPLOADS
from mitm_cache.wire.redirect import localize
from tests.fakes import faults
from tests.fakes.origin import Origin, Talk
from tests.fakes.registry import LyingUpstream
from tests.proxy.raw import Raw, dial, request
from tests.serving import Process, Threaded, in_thread, process
from tests.test_pull_through import ANY

KIB, MIB = 1 << 10, 1 << 20
NAME = "push.demo"
UPLOAD = "/v2/team/app/blobs/uploads/1?_state=a%2Fb"
ANN = "Basic YW5uOnNlY3JldA=="
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
"""So that the next request comes by another connection, however soon it comes."""


@dataclass(frozen=True, slots=True)
class Scene:
    cache: Threaded
    origin: Origin
    upstream: LyingUpstream


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("relay")
    with (
        LyingUpstream(directory) as upstream,
        Origin(upstream.trust, NAME) as origin,
        in_thread(directory / "data", upstream, more=origin.configuration()) as cache,
    ):
        yield Scene(cache, origin, upstream)


@pytest.fixture(params=["tls", "clear"])
def listener(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def send(wire: Raw, method: str, target: str, *more: str, body: bytes = b"") -> None:
    lines = [*more, *([f"Content-Length: {len(body)}"] if body else [])]
    wire.send(request(target, *lines, method=method, host=NAME), body)


# --- one direction after the other -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_as_it_came(scene: Scene, listener: str, method: str) -> None:
    """Method, path, query, fields and body reach the registry as they were sent, and its answer the client."""
    with dial(scene.cache, listener, name=NAME) as wire:
        send(
            wire, method, UPLOAD, f"Authorization: {ANN}", "Cookie: a=b", "X-Empty:", "Content-Range: 0-4",
            "Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: 5", "User-Agent: docker/27", body=b"bytes",
        )  # fmt: skip
        with scene.origin.accept() as talk:
            line, fields = talk.head()
            assert line == f"{method} {UPLOAD} HTTP/1.1"
            via = fields.pop("via")
            assert via.startswith("1.1 mitm-cache-")
            assert fields == {
                "host": f"{NAME}:{scene.origin.port}",
                "authorization": ANN,
                "cookie": "a=b",
                "x-empty": "",
                "content-range": "0-4",
                "user-agent": "docker/27",
                "content-length": "5",
            }
            assert talk.read(5) == b"bytes"
            talk.send(b"HTTP/1.1 202 Accepted\r\nRange: 0-4\r\nContent-Length: 2\r\nX-Own: 1\r\n\r\nok")
            answer = wire.answer()
    assert (answer.status, answer.body) == (202, b"ok")
    assert (answer.headers["range"], answer.headers["x-own"], answer.headers["x-cache"]) == ("0-4", "1", "RELAY")
    [event] = scene.cache.log.wait(request_id=answer.headers["x-request-id"])
    assert (event["outcome"], event["method"], event["repository"], event["bytes_out"], event["bytes_in"]) == (
        "RELAY", method, "team/app", 2, 2,
    )  # fmt: skip
    assert event["reason"] == "upstream answered 202 to 5 bytes"
    assert "_state" not in json.dumps(event)


def test_without_a_body(scene: Scene) -> None:
    """POST with nothing says so by its length; GET and HEAD say nothing."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        for method, length in [("POST", "0"), ("GET", None), ("HEAD", None)]:
            target = "/login" if length is None else UPLOAD
            send(wire, method, target, *(["Content-Length: 0"] if length else []))
            with scene.origin.accept() as talk:
                line, fields = talk.head()
                assert line == f"{method} {target} HTTP/1.1"
                assert fields.get("content-length") == length
                assert "content-type" not in fields
                talk.send(CLOSING, b"Content-Length: 5\r\n\r\n", b"" if method == "HEAD" else b"hello")
                answer = wire.answer(method)
            assert (answer.headers["content-length"], answer.body) == ("5", b"" if method == "HEAD" else b"hello")


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(scene: Scene, status: int) -> None:
    """The connection can be used again at once."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        for _ in range(2):
            send(wire, "DELETE", UPLOAD, body=b"x")
            with scene.origin.accept() as talk:
                talk.head()
                talk.send(b"HTTP/1.1 %d X\r\nETag: a\r\n\r\n" % status)
                assert wire.answer().status == status


@pytest.mark.parametrize("ending", ["chunks", "close"])
def test_an_answer_of_unknown_length(scene: Scene, listener: str, ending: str) -> None:
    """It is passed on in chunks as it arrives, compressed or not, and the client's connection stays open."""
    with dial(scene.cache, listener, name=NAME) as wire:
        send(wire, "GET", "/page")
        with scene.origin.accept() as talk:
            talk.head()
            framing = b"Transfer-Encoding: chunked\r\n" if ending == "chunks" else b"Connection: close\r\n"
            talk.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n", framing, b"\r\n")
            status, fields = wire.head()
            assert (status, fields["transfer-encoding"], fields["content-encoding"]) == (200, "chunked", "gzip")
            assert "content-length" not in fields
            for piece in (b"first", b"second"):
                talk.send(b"%x\r\n%b\r\n" % (len(piece), piece) if ending == "chunks" else piece)
                assert wire.read(len(piece) + 5) == b"%x\r\n%b\r\n" % (len(piece), piece)  # before there is more
            if ending == "chunks":
                talk.send(b"0\r\n\r\n")
            else:
                talk.goodbye()
        assert wire.read(5) == b"0\r\n\r\n"
        wire.send(request("/v2/UPPER/tags/list", host=NAME))
        assert wire.answer().status == 400  # the cache's own, on the same connection


def test_an_old_client(scene: Scene) -> None:
    """HTTP/1.0 knows no chunks: the body ends with the connection."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        wire.send(f"GET /page HTTP/1.0\r\nHost: {NAME}\r\n\r\n".encode())
        with scene.origin.accept() as talk:
            talk.head()
            talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            status, fields = wire.head()
            assert (status, fields["connection"]) == (200, "close")
            assert "transfer-encoding" not in fields
            assert wire.rest() == b"hello"


# --- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_is_passed_on_as_it_arrives(scene: Scene, listener: str, framing: str) -> None:
    """The registry reads what the client has sent while the client has not sent the rest."""
    with dial(scene.cache, listener, name=NAME) as wire:
        field = "Content-Length: 12" if framing == "length" else "Transfer-Encoding: chunked"
        wire.send(request(UPLOAD, field, method="PATCH", host=NAME))

        def say(piece: bytes) -> None:
            wire.send(piece if framing == "length" else b"%x\r\n%b\r\n" % (len(piece), piece))

        say(b"first!")
        with scene.origin.accept() as talk:
            _, fields = talk.head()
            assert (fields.get("content-length"), fields.get("transfer-encoding")) == (
                ("12", None) if framing == "length" else (None, "chunked")
            )
            for piece in (b"first!", b"second"):
                assert (talk.read(6) if framing == "length" else talk.chunk()) == piece
                if piece == b"first!":
                    say(b"second")
            if framing == "chunks":
                wire.send(b"0\r\n\r\n")
                assert talk.chunk() == b""
            talk.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
            assert wire.answer().status == 202


def test_expect_continue(scene: Scene) -> None:
    """A client that asks before it sends is told to go on."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        wire.send(request(UPLOAD, "Content-Length: 5", "Expect: 100-continue", method="PUT", host=NAME))
        assert wire.head() == (100, {})
        wire.send(b"bytes")
        with scene.origin.accept() as talk:
            _, fields = talk.head()
            assert "expect" not in fields
            assert talk.read(5) == b"bytes"
            talk.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            assert wire.answer().status == 201


def test_both_directions_are_held_back(tmp_path: Path) -> None:
    """256 MiB either way through a process whose other side does not read grows its memory by few of them."""
    with (
        LyingUpstream(tmp_path) as upstream,
        Origin(upstream.trust, NAME) as origin,
        process(tmp_path / "data", upstream, more=origin.configuration()) as cache,
        ThreadPoolExecutor(1) as aside,
    ):
        before = _rss(cache)
        size = 256 * MIB
        piece = bytes(range(256)) * 4 * KIB
        with dial(cache, "tls", name=NAME) as wire:
            wire.send(request(UPLOAD, f"Content-Length: {size}", method="PATCH", host=NAME))
            sending = aside.submit(_many, wire, piece, size // MIB)
            with origin.accept() as talk:
                talk.head()
                received = hashlib.sha256()
                for _ in range(size // MIB):
                    received.update(talk.read(MIB))
                sending.result()
                assert received.digest() == hashlib.sha256(piece * (size // MIB)).digest()
                talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                sending = aside.submit(_many, talk, piece, size // MIB)
                assert wire.head()[0] == 200
                returned = hashlib.sha256()
                for _ in range(size // MIB):
                    returned.update(wire.read(MIB))
                sending.result()
                assert returned.digest() == received.digest()
        grown = _rss(cache) - before
    print(f"256 MiB either way: memory grew by {grown / MIB:.1f} MiB")  # noqa: T201
    assert grown < 24 * MIB


def _many(end: Raw | Talk, piece: bytes, times: int) -> None:
    for _ in range(times):
        end.send(piece)


def _rss(cache: Process) -> int:
    """The most resident memory that the process has ever had, in bytes (proc(5), VmHWM)."""
    status = Path(f"/proc/{cache.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * KIB


# --- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"401 Unauthorized", b"413 Too Large", b"307 Elsewhere"])
def test_an_answer_before_the_end_of_the_request(scene: Scene, listener: str, answer: bytes) -> None:
    """The client gets it, though it has not sent everything and upstream reads no more; then its connection ends."""
    with dial(scene.cache, listener, name=NAME) as wire:
        wire.send(request(UPLOAD, f"Content-Length: {100 * MIB}", method="PUT", host=NAME), bytes(KIB))
        with scene.origin.accept() as talk:
            talk.head()
            assert talk.read(KIB) == bytes(KIB)
            talk.send(b"HTTP/1.1 %b\r\nContent-Length: 4\r\nWWW-Authenticate: Basic\r\n\r\nsaid" % answer)
            for _ in range(100):
                wire.send(bytes(MIB - KIB // 100))  # a client that does not look meanwhile
            got = wire.answer()
            assert (got.status, got.body, got.headers["connection"]) == (int(answer[:3]), b"said", "close")
            assert wire.rest() == b""


def test_upstream_that_is_gone(scene: Scene) -> None:
    """It hangs up in the middle of a body: the client is told, and not with half an answer."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        wire.send(request(UPLOAD, f"Content-Length: {MIB}", method="PUT", host=NAME), bytes(KIB))
        with scene.origin.accept() as talk:
            talk.head()
            talk.read(KIB)
        wire.send(bytes(MIB - KIB))
        got = wire.answer()
        assert got.status == 502
        assert NAME in json.loads(got.body)["errors"][0]["message"]


def test_an_answer_that_is_cut_off(scene: Scene, listener: str) -> None:
    """Half an answer is followed by the end of the connection, and not by another answer."""
    with dial(scene.cache, listener, name=NAME) as wire:
        wire.send(request("/page", host=NAME) * 2)
        with scene.origin.accept() as talk:
            talk.head()
            talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            assert wire.head()[0] == 200
            assert wire.read(5) == b"hello"
        assert wire.rest() == b""


@pytest.mark.parametrize("moment", ["in the request", "before the answer", "in the answer"])
def test_a_client_that_is_gone(scene: Scene, moment: str) -> None:
    """Upstream's connection ends too, and the journal says who left."""
    lost = scene.cache.log.count(outcome="ERROR", reason="the client is gone")
    with dial(scene.cache, "tls", name=NAME) as wire:
        size = KIB if moment == "in the request" else 0
        wire.send(request(UPLOAD, f"Content-Length: {2 * size}", method="PUT", host=NAME), bytes(size))
        with scene.origin.accept() as talk:
            talk.head()
            talk.read(size)
            if moment == "in the answer":
                talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
                wire.head()
            wire.reset()
            if moment == "in the answer":
                talk.send(b"other")
            elif moment == "before the answer":
                talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
            if moment != "in the answer":
                assert talk.ended()
    scene.cache.log.wait(lost + 1, outcome="ERROR", method="PUT")


def test_nobody_listens(tmp_path: Path) -> None:
    """A registry that cannot be reached is an error document, though the client is in the middle of its upload."""
    with LyingUpstream(tmp_path) as upstream:
        with Origin(upstream.trust, NAME) as origin:
            more = origin.configuration()
        with in_thread(tmp_path / "data", upstream, more=more) as cache, dial(cache, "tls", name=NAME) as wire:
            wire.send(request(UPLOAD, f"Content-Length: {10 * MIB}", method="PUT", host=NAME), bytes(10 * MIB))
            assert wire.answer().status == 502


def test_uploads_that_are_reset(tmp_path: Path) -> None:
    """A registry that hangs up on uploads is not away: who goes on asking is not told that it is."""
    with LyingUpstream(tmp_path) as upstream, Origin(upstream.trust, NAME) as origin:
        answers: list[int] = []

        def hang_up() -> None:
            while set(answers) <= {502} and len(answers) < 40:
                with origin.accept() as talk:
                    talk.head()
                    talk.reset()  # often while libcurl is writing the first of it still

        with (
            in_thread(tmp_path / "data", upstream, more=origin.configuration()) as cache,
            ThreadPoolExecutor(1) as pool,
        ):
            hung_up = pool.submit(hang_up)
            while not hung_up.done():
                with dial(cache, "clear", name=NAME) as wire:
                    send(wire, "PUT", UPLOAD, body=bytes(256 * KIB))
                    answers.append(wire.answer().status)
        assert set(answers) == {502}


def test_a_login_waits_for_no_upload(tmp_path: Path) -> None:
    """Uploads that go no further hold all the threads that uploads have, and a token is still had at once.

    One address has half of them at most.
    """
    with (
        LyingUpstream(tmp_path) as upstream,
        Origin(upstream.trust, NAME) as origin,
        in_thread(tmp_path / "data", upstream, more=origin.configuration()) as cache,
        ExitStack() as stack,
    ):
        for number in range(UPLOADS + 2):
            source = f"127.0.0.{2 + number // MAX_UPLOADS}"
            wire = stack.enter_context(dial(cache, "clear", name=NAME, source=source))
            wire.send(request(UPLOAD, "Content-Length: 10", method="PUT", host=NAME), b"x")
        with dial(cache, "clear", name=NAME, source="127.0.0.2") as wire:
            wire.send(request(UPLOAD, "Content-Length: 10", method="PUT", host=NAME), b"x")
            answer = wire.answer()
            assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
        with cache.client() as client:
            assert client.get("/token?service=demo").status == 200


# --- where an answer leads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "tls", "clear"),
    [
        ("https://{name}/v2/a", "https://{name}/v2/a", "/v2/a"),
        ("https://{name}:{port}/v2/a?b=c", "/v2/a?b=c", "/v2/a?b=c"),
        ("/v2/a", "/v2/a", "/v2/a"),
        ("https://elsewhere.demo/login", "https://elsewhere.demo/login", "https://elsewhere.demo/login"),
        ("https://{name}:{port}//evil.demo/", "https://{name}:{port}//evil.demo/", "https://{name}:{port}//evil.demo/"),
    ],
)
def test_locations(scene: Scene, listener: str, location: str, tls: str, clear: str) -> None:
    """A client is led back the way it came; a redirect is its own to follow."""
    with dial(scene.cache, listener, name=NAME) as wire:
        send(wire, "POST", UPLOAD, body=b"x")
        with scene.origin.accept() as talk:
            talk.head()
            there = location.format(name=NAME, port=scene.origin.port)
            talk.send(f"HTTP/1.1 202 X\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode())
            expected = (tls if listener == "tls" else clear).format(name=NAME, port=scene.origin.port)
            assert wire.answer().headers["location"] == expected


# --- what a push makes untrue --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_what_is_pushed_is_forgotten(scene: Scene, method: str, by: str) -> None:
    """The link of a tag or digest is gone when the answer arrives."""
    image = generate(sizes=[3 * KIB])
    scene.upstream.registry.put("team/app", image, "1")
    reference = "1" if by == "tag" else image.index.digest
    links = scene.cache.data / "links" / scene.cache.registry / "team/app"
    with scene.cache.client() as client:
        assert client.get("/v2/team/app/manifests/1", ANY).status == 200
        kept = links / "_tags" / "1" if by == "tag" else links / "_digests" / reference.replace(":", "-")
        assert [path for path in links.rglob("*") if path.is_file() and path.is_relative_to(kept)]
        lie = scene.upstream.lie("/v2/team/app/manifests/*", faults.refuse(201), method=method, times=1)
        assert client.ask(method, f"/v2/team/app/manifests/{reference}", {}, b"{}").status == 201
        assert lie.told == 1
        assert not [path for path in links.rglob("*") if path.is_file() and path.is_relative_to(kept)]
        assert client.get(f"/v2/team/app/manifests/{reference}", ANY).body == image.index.body


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_what_cannot_be_forgotten(scene: Scene, method: str) -> None:
    """What a registry has taken it has taken, whatever our disk says: the client is told so."""
    links = scene.cache.data / "links" / scene.cache.registry / f"team/{method.lower()}"
    (links / "_tags").mkdir(parents=True)
    (links / "_tags" / "1").write_bytes(b"")  # no folder
    target = f"/v2/team/{method.lower()}/manifests/1"
    scene.upstream.lie(target, faults.refuse(201), method=method, times=1)
    with scene.cache.client() as client:
        reply = client.ask(method, target, {}, b"{}")
        assert (reply.status, reply.outcome) == (201, "RELAY")


# --- WebSockets ----------------------------------------------------------------------------------------------------

KEY = base64.b64encode(bytes(16)).decode()
SOCKET = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}",
          "Sec-WebSocket-Version: 13")  # fmt: skip
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Own: 1\r\n\r\n"


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_websocket(scene: Scene, listener: str, first: str) -> None:
    """Bytes go both ways as they are, until one side ends."""
    with dial(scene.cache, listener, name=NAME) as wire:
        wire.send(request("/live?token=secret", *SOCKET, host=NAME))
        with scene.origin.accept() as talk:
            line, fields = talk.head()
            assert line == "GET /live?token=secret HTTP/1.1"
            assert (fields["connection"], fields["upgrade"]) == ("Upgrade", "websocket")
            assert (fields["sec-websocket-key"], fields["sec-websocket-version"]) == (KEY, "13")
            talk.send(SWITCH, b"hello")
            status, fields = wire.head()
            assert (status, fields["upgrade"], fields["x-own"]) == (101, "websocket", "1")
            assert wire.read(5) == b"hello"
            for size in (1, MIB):
                with ThreadPoolExecutor(1) as aside:
                    sending = aside.submit(wire.send, bytes(size))
                    assert talk.read(size) == bytes(size)
                    sending.result()
                    sending = aside.submit(talk.send, bytes(size))
                    assert wire.read(size) == bytes(size)
                    sending.result()
            if first == "server":
                talk.close()
                assert wire.rest() == b""
            else:
                wire.close()
                assert talk.ended()
    [event] = scene.cache.log.wait(request_id=fields["x-request-id"])
    assert (event["outcome"], event["status"], event["bytes_out"]) == ("RELAY", 101, 6 + MIB)
    assert "secret" not in scene.cache.log.text
    assert_nobody_is_left(scene)


def _sent(wire: Raw, size: int) -> int:
    """How many mebibytes of so many are taken, as bytes."""
    for taken in range(0, size, MIB):
        try:
            wire.send(bytes(MIB))
        except TimeoutError:
            return taken
    return size


def assert_nobody_is_left(scene: Scene) -> None:
    """Each connection of a client that has ended is forgotten, and leaves its place to others."""
    listeners = scene.cache.app._listeners
    assert listeners is not None
    deadline = time.monotonic() + 10
    while listeners.connections or listeners.ways:
        assert time.monotonic() < deadline, listeners.ways
        select.select([], [], [], 0.02)


def test_a_websocket_whose_server_takes_nothing(scene: Scene) -> None:
    """It ends with its server, whatever the client had to wait with: nothing is left of it."""
    with dial(scene.cache, "clear", name=NAME) as wire:
        wire.send(request("/live", *SOCKET, host=NAME))
        with scene.origin.accept() as talk:
            talk.head()
            talk.send(SWITCH)
            assert wire.head()[0] == 101
            wire.socket.settimeout(0.5)
            assert _sent(wire, 256 * MIB) < 256 * MIB  # it is held back
        assert scene.cache.log.wait(status=101)
        wire.reset()
    assert_nobody_is_left(scene)


def test_a_websocket_that_is_not_given(scene: Scene) -> None:
    """The answer is asked for once more as that of any other request."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        wire.send(request("/live", *SOCKET, host=NAME))
        with scene.origin.accept() as talk:
            talk.head()
            talk.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        with scene.origin.accept() as talk:
            _, fields = talk.head()
            assert "upgrade" not in fields
            talk.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            assert wire.answer().body == b"no"


# --- what is no good request, or no good answer --------------------------------------------------------------------


@pytest.mark.parametrize("target", [b"/x\xff", b"/x\xe2\x82\xac", b"/x\0y", b"/x?a=\x7f", b"/x\x01", b"/x#y"])
def test_a_target_that_is_no_url(scene: Scene, listener: str, target: bytes) -> None:
    """What no request's target holds is refused; it must not be lost on the way, nor fail in a thread unseen."""
    with dial(scene.cache, listener, name=NAME) as wire:
        wire.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, NAME.encode()))
        assert wire.answer().status == 400


def test_bytes_of_fields(scene: Scene) -> None:
    """Fields keep the bytes that they came with, whatever their encoding is."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        wire.send(request("/page", "X-Own: é", "Authorization: ÿþ", host=NAME))
        with scene.origin.accept() as talk:
            _, fields = talk.head()
            assert (fields["x-own"], fields["authorization"]) == ("é", "ÿþ")
            talk.send(b"HTTP/1.1 200 OK\r\nX-Own: \xff\xc3\xa9\r\nContent-Length: 0\r\n\r\n")
            assert wire.answer().headers["x-own"] == "\xff\xc3\xa9"


def test_trailers(scene: Scene, listener: str) -> None:
    """Fields after a chunked body are left out, and the connection goes on."""
    with dial(scene.cache, listener, name=NAME) as wire:
        wire.send(request(UPLOAD, "Transfer-Encoding: chunked", "Trailer: X-Sum", method="PATCH", host=NAME))
        wire.send(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: elsewhere.demo\r\n\r\n", request("/page", host=NAME))
        with scene.origin.accept() as talk:
            talk.head()
            assert (talk.chunk(), talk.chunk()) == (b"abc", b"")
            talk.send(CLOSING, b"Content-Length: 0\r\n\r\n")
            assert wire.answer().status == 200
        with scene.origin.accept() as talk:
            line, fields = talk.head()
            assert (line, fields["host"]) == ("GET /page HTTP/1.1", f"{NAME}:{scene.origin.port}")
            talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert wire.answer().body == b"ok"


def test_an_encoding_that_is_not_known(scene: Scene) -> None:
    """Taken off with the chunks, it would leave a body that is said to be something else (RFC 9112, 6.1)."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        wire.send(
            request(UPLOAD, "Transfer-Encoding: gzip, chunked", method="PATCH", host=NAME), b"1\r\na\r\n0\r\n\r\n"
        )
        assert wire.answer().status == 501


@pytest.mark.parametrize("framing", ["Content-Length: 1", "Transfer-Encoding: chunked"])
def test_head_with_a_body(scene: Scene, framing: str) -> None:
    """It is refused at once."""
    with dial(scene.cache, "tls", name=NAME) as wire:
        wire.send(request("/page", framing, method="HEAD", host=NAME))
        assert wire.answer("HEAD").status == 400


@pytest.mark.parametrize("length", ["5", "5, 5"])
def test_an_answer_of_two_lengths(scene: Scene, listener: str, length: str) -> None:
    """One that says it is chunked and has a length too leaves as chunks alone: the rest of it is no other answer."""
    with dial(scene.cache, listener, name=NAME) as wire:
        send(wire, "GET", "/page")
        with scene.origin.accept() as talk:
            talk.head()
            talk.send(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n".encode())
            talk.send(b"a\r\n0123456789\r\n0\r\n\r\n")
            _, fields = wire.head()
            assert fields["transfer-encoding"] == "chunked"
            assert "content-length" not in fields
            assert wire.read(20) == b"a\r\n0123456789\r\n0\r\n\r\n"


@pytest.mark.parametrize("moment", ["in the request", "before the answer"])
@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_client_that_is_gone_while_upstream_is_silent(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, moment: str, how: str
) -> None:
    """Though nobody reads from the client then, upstream's connection ends, and the thread with it."""
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.2)
    lost = scene.cache.log.count(outcome="ERROR", method="PUT")
    size = 0 if moment == "before the answer" else 500 * MIB
    with dial(scene.cache, "tls", name=NAME) as wire:
        wire.send(request(UPLOAD, f"Content-Length: {size}", method="PUT", host=NAME), bytes(min(size, 1)))
        with scene.origin.accept() as talk:
            talk.head()
            if size:
                wire.socket.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    _many(wire, bytes(MIB), 500)
            wire.reset() if how == "reset" else wire.close()
            scene.cache.log.wait(lost + 1, outcome="ERROR", method="PUT")
            try:
                while talk.socket.recv(MIB):
                    pass  # what was under way when the client left
            except ConnectionResetError:
                pass  # an end too


@pytest.mark.parametrize(
    ("location", "base", "expected"),
    [
        ("https://up.demo/reg/v2/a", "https://up.demo/reg", "/v2/a"),
        ("https://up.demo/reg", "https://up.demo/reg/", "/"),
        ("https://up.demo/registry/v2", "https://up.demo/reg", "https://up.demo/registry/v2"),
        ("https://up.demo/reg//evil.demo/", "https://up.demo/reg", "https://up.demo/reg//evil.demo/"),
        ("https://up.demo/\\evil.demo/", "https://up.demo", "https://up.demo/\\evil.demo/"),
    ],
)
def test_locations_below_a_path(location: str, base: str, expected: str) -> None:
    """The path that a registry is below is taken off by whole parts, and what is left names no other host."""
    assert localize(location, f"https://{NAME}", base, [NAME]) == expected
