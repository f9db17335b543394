"""Each listener takes its own form and no other: whatever is sent to it, it is never an open proxy.

Every refusal is an answer of the cache itself and the end of the connection, and nothing is dialled for it: neither
the registry nor the host that the request names.
"""

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, MIB, Image, generate
from mitm_cache.proxy.door import MAX_BODY
from mitm_cache.proxy.head import MAX_HEAD
from tests.fakes.registry import LyingUpstream
from tests.proxy.raw import LISTENERS, Raw, dial, request
from tests.serving import Threaded, in_thread, process

HUB = "docker.io"  # the registry that every listener serves
TAG = "/v2/team/app/manifests/1"


@dataclass(frozen=True)
class Scene:
    """A cache with its upstream, and a host that nobody must be led to."""

    cache: Threaded
    upstream: LyingUpstream
    image: Image
    elsewhere: socket.socket
    taker: "Taker"

    @property
    def target(self) -> str:
        host, port = self.elsewhere.getsockname()
        return f"{host}:{port}"

    def assert_nothing_was_dialled(self) -> None:
        assert list(self.upstream.requests) == []
        assert self.taker.taken == []
        with pytest.raises(BlockingIOError):
            self.elsewhere.accept()


class Taker(ThreadingHTTPServer):
    """A registry's host that reads what is posted to it, and answers with the digest of that."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.taken: list[int] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()

    def server_close(self) -> None:
        self.shutdown()
        self.thread.join()
        super().server_close()


class _Taking(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Taker

    def do_POST(self) -> None:
        if self.headers["Transfer-Encoding"] == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append(len(body))
        digest = hashlib.sha256(body).hexdigest().encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest)

    def log_message(self, format: str, *args: object) -> None:
        """`taken` is the log."""


TAKER = "taker.demo"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("listeners")
    image = generate(sizes=[3 * KIB])
    with (
        LyingUpstream(directory, name=HUB) as upstream,
        Taker(upstream.trust.certify(TAKER)) as taker,
        in_thread(directory / "data", upstream, more=_registry(TAKER, taker)) as cache,
        socket.create_server(("127.0.0.1", 0)) as elsewhere,
    ):
        elsewhere.setblocking(False)
        upstream.registry.put("team/app", image, "1")
        yield Scene(cache, upstream, image, elsewhere, taker)


def _registry(name: str, server: ThreadingHTTPServer) -> str:
    return f'[registries."{name}"]\nurl = "https://{name}:{server.server_port}"\nresolve = "127.0.0.1"\n'


@pytest.fixture
def scene(started: Scene) -> Scene:
    """The scene with nothing noted so far."""
    started.upstream.requests.clear()
    started.taker.taken.clear()
    return started


@pytest.fixture(params=LISTENERS)
def listener(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_its_own_form_is_served(scene: Scene, listener: str) -> None:
    """A request for a path, with a Host, is served, and the connection stays open for the next one."""
    with dial(scene.cache, listener) as wire:
        for _ in range(2):
            wire.send(request(TAG, "Accept: */*", host=HUB))
            answer = wire.answer()
            assert answer.status == 200
            assert answer.body == scene.image.index.body
    assert scene.upstream.requests.count(kind="tag") == 2


FORMS: dict[str, tuple[Callable[[Scene], bytes], set[int]]] = {
    "absolute form": (lambda _: _absolute(f"http://{HUB}{TAG}", HUB), {400}),
    "absolute form of another host": (lambda scene: _absolute(f"http://{scene.target}/", scene.target), {400}),
    "absolute form with our Host": (lambda scene: _absolute(f"https://{scene.target}/v2/", HUB), {400}),
    "CONNECT": (lambda scene: _connect(scene.target), {405}),
    "CONNECT to a registry": (lambda _: _connect(f"{HUB}:443"), {405}),
    "connect in small letters": (lambda scene: _connect(scene.target).replace(b"CONNECT", b"connect"), {400, 405}),
    "h2 preface": (lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), {400, 405, 505}),
    "OPTIONS *": (lambda _: b"OPTIONS * HTTP/1.1\r\nHost: %b\r\n\r\n" % HUB.encode(), {404, 405}),
    "unknown method": (lambda _: request(TAG, method="BREW", host=HUB), {405}),
    "huge method": (lambda _: request(TAG, method="A" * 5000, host=HUB), {405}),
    "garbage": (lambda _: b"\x00\x01\xfe\xff garbage\r\n\r\n", {400}),
    "no request line": (lambda _: b"Host: docker.io\r\n\r\n", {400}),
    "no path": (lambda _: b"GET docker.io HTTP/1.1\r\nHost: docker.io\r\n\r\n", {400}),
    "SOCKS 5": (lambda _: b"\x05\x01\x00\r\n\r\n", {400}),
    "proxy protocol": (lambda _: b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + request(TAG, host=HUB), {400}),
    "folded header": (lambda _: request(TAG, "Accept: a", "  b", host=HUB), {400}),
    "bare CR in a header": (lambda _: request(TAG, "Accept: a\rX-Other: b", host=HUB), {400}),
    "NUL in a header": (lambda _: request(TAG, "Accept: a\0b", host=HUB), {400}),
    "space before the colon": (lambda _: request(TAG, "Accept : */*", host=HUB), {400}),
    "two lengths": (
        lambda _: request("/token", "Content-Length: 3", "Content-Length: 4", method="POST", host=HUB) + b"abcd",
        {400, 405},
    ),
    "length and chunks": (
        lambda _: request(TAG, "Content-Length: 3", "Transfer-Encoding: chunked", host=HUB) + b"0\r\n\r\n",
        {400, 405},
    ),
    "a length that is none": (
        lambda _: request("/token", "Content-Length: many", method="POST", host=HUB) + b"abc",
        {400, 405},
    ),
    "a port that is none": (lambda _: request(TAG, host=f"{HUB}:\xc2\xb2"), {400}),
    "a port of 5000 digits": (lambda _: request(TAG, host=f"{HUB}:{'9' * 5000}"), {400}),
    "no Host": (lambda _: f"GET {TAG} HTTP/1.1\r\n\r\n".encode(), {400}),
    "two Hosts": (lambda _: request(TAG, f"Host: {HUB}", host=HUB), {400}),
}


def _absolute(url: str, host: str) -> bytes:
    return f"GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def _connect(target: str) -> bytes:
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()


@pytest.mark.parametrize("form", FORMS)
def test_any_other_form_is_refused(scene: Scene, listener: str, form: str) -> None:
    """One answer, then the end; nothing is dialled, and a request that follows is not served."""
    make, statuses = FORMS[form]
    with dial(scene.cache, listener) as wire:
        wire.send(make(scene), request(TAG, host=HUB))
        answer = wire.answer()
        assert answer.status in statuses, answer.body
        assert answer.headers["connection"] == "close"
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


@pytest.mark.parametrize("listener", ["clear"])
def test_tls_is_refused_where_clear_text_is_spoken(scene: Scene, listener: str) -> None:
    """A ClientHello is answered in clear text, with what is wrong, and the connection ends."""
    hello = _client_hello(HUB)
    with Raw(scene.cache.address(listener)) as wire:
        wire.send(hello)
        answer = wire.answer()
        assert answer.status == 400
        assert b"plain HTTP" in answer.body
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


@pytest.mark.parametrize(
    "sent", [request(TAG, host=HUB), _connect("127.0.0.1:1"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00\xff"]
)
def test_clear_text_is_refused_on_tls(scene: Scene, sent: bytes) -> None:
    """Plain HTTP on the TLS port, whatever its form, is answered in clear text with what is wrong."""
    with Raw(scene.cache.address("tls")) as wire:
        wire.send(sent)
        answer = wire.answer()
        assert answer.status == 400
        assert b"TLS only" in answer.body
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


def test_tls_within_tls_is_refused(scene: Scene) -> None:
    """A ClientHello inside of TLS reaches no second name."""
    with dial(scene.cache, "tls") as wire:
        wire.send(_client_hello("quay.io"))
        assert wire.answer().status == 400
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


def _client_hello(name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    return outgoing.read()


def test_an_empty_connection_ends_without_a_word(scene: Scene, listener: str) -> None:
    """A client that connects and says no more than FIN is answered with FIN."""
    with Raw(scene.cache.address(listener)) as wire:
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


@pytest.mark.parametrize("size", [MAX_HEAD + 1, 4 * MIB])
def test_a_head_that_never_ends(scene: Scene, listener: str, size: int) -> None:
    """431 as soon as a head passes the limit, and the answer is not lost to a reset while the client still sends."""
    with dial(scene.cache, listener) as wire:
        wire.send(f"GET {TAG} HTTP/1.1\r\nHost: {HUB}\r\nX-Long: ".encode(), b"a" * size)
        assert wire.answer().status == 431
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


def test_a_head_within_the_limit(scene: Scene, listener: str) -> None:
    """A long head that ends is served: the limit is not on what one read happens to bring."""
    with dial(scene.cache, listener) as wire:
        wire.send(request(TAG, "X-Long: " + "a" * (MAX_HEAD - 1000), "Accept: */*", host=HUB))
        assert wire.answer().status == 200


def test_a_chunk_size_that_never_ends(scene: Scene, listener: str) -> None:
    """The line before a chunk is limited as a head is: 400 or 431, and the end."""
    with dial(scene.cache, listener) as wire:
        wire.send(request(TAG, "Transfer-Encoding: chunked", host=HUB), b"1;", b"a" * 4 * MIB)
        assert wire.answer().status in (400, 413, 431)
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


def test_pipelined_requests(scene: Scene, listener: str) -> None:
    """Requests that are sent in one go are answered one by one, in their order."""
    blob = next(digest for digest, content in scene.image.blobs.items() if content.size > KIB)
    targets = [TAG, f"/v2/team/app/blobs/{blob}", "/v2/", TAG]
    bodies = [scene.image.index.body, b"".join(scene.image.blobs[blob].chunks(0, 1 << 20)), b"{}"]
    with dial(scene.cache, listener) as wire:
        wire.send(*(request(target, "Accept: */*", host=HUB) for target in targets))
        assert [wire.answer().body for _ in targets] == [*bodies, bodies[0]]


def test_pipelined_requests_behind_a_refused_one(scene: Scene, listener: str) -> None:
    """A refused request ends the connection: those behind it are not served, those before it are."""
    with dial(scene.cache, listener) as wire:
        wire.send(request(TAG, "Accept: */*", host=HUB), request(TAG, method="BREW", host=HUB))
        wire.send(request("/v2/", host=HUB) * 2000)
        assert [wire.answer().status, wire.answer().status] == [200, 405]
        assert wire.rest() == b""


def test_head_that_is_refused_has_no_body(scene: Scene, listener: str) -> None:
    """An answer to HEAD has no body, not even one that refuses it."""
    with dial(scene.cache, listener) as wire:
        wire.send(request("/v2/UPPER/manifests/1", method="HEAD", host=HUB))
        assert wire.answer("HEAD").status == 400
        assert wire.rest() == b""


# --- bodies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["mirror"])
@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
def test_uploads_are_refused_before_their_body(scene: Scene, listener: str, method: str) -> None:
    """405 comes while the client has sent next to nothing of its 100 MB, and a client that reads it may stop there."""
    with dial(scene.cache, listener) as wire:
        wire.send(
            request("/v2/team/app/blobs/uploads/", "Content-Length: 100000000", method=method, host=HUB), b"a" * KIB
        )
        answer = wire.answer()
        assert answer.status == 405
        assert json.loads(answer.body)["errors"][0]["code"] == "UNSUPPORTED"
    scene.assert_nothing_was_dialled()


@pytest.mark.parametrize("listener", ["mirror"])
def test_the_refusal_of_an_upload_is_not_lost(scene: Scene, listener: str) -> None:
    """A client that sends 100 MB to the end before it reads gets the 405: no reset throws it away."""
    with dial(scene.cache, listener) as wire:
        wire.send(request("/v2/team/app/blobs/uploads/1", "Content-Length: 100000000", method="PUT", host=HUB))
        piece = bytes(1_000_000)
        for _ in range(100):
            wire.send(piece)
        assert wire.answer().status == 405
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


@pytest.mark.parametrize("listener", ["mirror"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_expect_continue_is_answered_with_the_refusal(scene: Scene, listener: str, method: str) -> None:
    """A client that asks before it sends its upload is told no, and not to go on."""
    with dial(scene.cache, listener) as wire:
        wire.send(
            request(
                "/v2/team/app/blobs/uploads/",
                "Content-Length: 100000000",
                "Expect: 100-continue",
                method=method,
                host=HUB,
            )
        )
        assert wire.answer().status == 405
    scene.assert_nothing_was_dialled()


@pytest.mark.parametrize("listener", ["tls", "clear"])
def test_expect_continue_at_a_token_endpoint(scene: Scene, listener: str) -> None:
    """A client that asks before it sends its form is told to go on, and then answered."""
    form = b"grant_type=password&service=demo"
    with dial(scene.cache, listener, name=TAKER) as wire:
        more = [f"Content-Length: {len(form)}", "Expect: 100-continue"]
        wire.send(request("/token", *more, method="POST", host=TAKER))
        assert wire.head() == (100, {})
        wire.send(form)
        assert wire.answer().body == hashlib.sha256(form).hexdigest().encode()


def _with_body(method: str, path: str, size: int, framing: str, host: str) -> bytes:
    if framing == "length":
        return request(path, f"Content-Length: {size}", method=method, host=host) + bytes(size)
    head = request(path, "Transfer-Encoding: chunked", method=method, host=host)
    return head + b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("listener", ["tls", "clear"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_form(scene: Scene, listener: str, framing: str) -> None:
    """A token endpoint gets a form as it was sent, however it was framed, and the connection stays open."""
    with dial(scene.cache, listener, name=TAKER) as wire:
        for _ in range(2):
            wire.send(_with_body("POST", "/token", MIB, framing, TAKER))
            assert wire.answer().body == hashlib.sha256(bytes(MIB)).hexdigest().encode()


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_past_the_limit(scene: Scene, listener: str, framing: str) -> None:
    """A pull has no use for a body: one that is longer than it need be is 413 and the end."""
    with dial(scene.cache, listener) as wire:
        wire.send(_with_body("GET", TAG, MAX_BODY + 1, framing, HUB))
        assert wire.answer().status == 413
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


def test_chunks_without_end(scene: Scene, listener: str) -> None:
    """A chunked body past the limit is answered at once; a client that goes on sending still gets the answer."""
    with dial(scene.cache, listener) as wire:
        wire.send(request(TAG, "Transfer-Encoding: chunked", host=HUB))
        piece = b"%x\r\n%b\r\n" % (MIB, bytes(MIB))
        for _ in range(20):
            wire.send(piece)
        assert wire.answer().status == 413
        assert wire.rest() == b""
    scene.assert_nothing_was_dialled()


# --- who may connect ---------------------------------------------------------------------------------------------


def test_clients_that_are_not_allowed(tmp_path: Path) -> None:
    """An address outside clients.allow gets nothing at any listener, and a line in the log; one inside is served."""
    with (
        LyingUpstream(tmp_path, name=HUB) as upstream,
        process(tmp_path / "data", upstream, more='[clients]\nallow = ["127.0.0.1/32"]\n') as cache,
    ):
        for number, name in enumerate(LISTENERS, 1):
            with dial(cache, name) as wire:
                wire.send(request("/v2/", host=HUB))
                assert wire.answer().status == 200
            with Raw(cache.address(name), source="127.0.0.2") as wire:
                assert wire.rest() == b""
            [line] = cache.log.wait(1, listener=name, outcome="REFUSED")
            assert (line["client"], line["status"]) == ("127.0.0.2", 0)
            assert "clients.allow" in line["reason"]
            assert cache.log.count(outcome="REFUSED") == number


def test_many_at_once(scene: Scene, listener: str) -> None:
    """Refusals of one client do not disturb another: twenty of both kinds side by side."""
    failures: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            with dial(scene.cache, listener) as wire:
                form = _connect(scene.target) if number % 2 else request("/v2/", host=HUB)
                wire.send(form)
                assert wire.answer().status == (405 if number % 2 else 200)
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("target", ["/v2/X/tags/list", "/v2/x/tags/list"])
def test_stray_bytes_in_the_log(scene: Scene, listener: str, target: str) -> None:
    """What is no UTF-8 is told as such: half a surrogate in a line would have strict readers of JSON drop the line."""
    with dial(scene.cache, listener) as wire:
        wire.send(request(target, "User-Agent: a\xffb", method="G\xffT", host=HUB))
        answer = wire.answer()
        assert answer.status == 400
        assert b"\\udc" not in answer.body
    line = scene.cache.log.wait(1, user_agent="a\ufffdb", listener=listener)[-1]
    assert line["method"] == "G\ufffdT"
    assert "\\udc" not in scene.cache.log.text


# --- where one listens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "addresses"), [("[::1]:0", ["::1"]), (":0", ["::1", "127.0.0.1"])], ids=["IPv6", "both"]
)
def test_ipv6(tmp_path: Path, where: str, addresses: list[str]) -> None:
    """Every listener is reached by IPv6, by its own address too; without a host it is reached by both families."""
    listen = {f"MITM_CACHE_LISTEN_{name.upper()}": where for name in LISTENERS}
    with (
        LyingUpstream(tmp_path, name=HUB) as upstream,
        in_thread(tmp_path / "data", upstream, environ={**listen, "MITM_CACHE_NAMES": "::1"}) as cache,
    ):
        upstream.registry.put("team/app", generate(sizes=[KIB]), "1")
        tls = ssl.create_default_context(cafile=cache.ca_file)
        asked = [(name, HUB, HUB, address) for name in LISTENERS for address in addresses]
        for name, sni, host, address in [*asked, ("mirror over TLS", "::1", "[::1]:5000", "::1")]:
            listener = name.partition(" ")[0]
            plain = socket.create_connection((address, cache.address(listener)[1]), 10)
            with tls.wrap_socket(plain, server_hostname=sni) if "tls" in name.lower() else plain as wire:
                wire.sendall(request("/v2/team/app/manifests/1", "Accept: */*", host=host))
                assert wire.recv(1 << 16).startswith(b"HTTP/1.1 200 "), (name, address)
            [*_, line] = cache.log.wait(1, listener=listener, client=address)
            assert line["status"] == 200
