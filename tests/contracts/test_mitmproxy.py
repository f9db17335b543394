"""The insides of mitmproxy that the proxy room leans on, one test for each: a version that moves one fails here first.

Layers are driven as mitmproxy drives them, with events in and commands out, without a socket.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import h11
import pytest
from h11._readers import ChunkedReader, ContentLengthReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import flow as mitmproxy_flow
from mitmproxy import http
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.net.http.http1.read import read_request_head
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpRequestHook, HttpResponseHook
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO
from mitmproxy.tls import TlsData
from OpenSSL import SSL

from mitm_cache.proxy.engine import Engine
from mitm_cache.proxy.peek import holds

GET = b"GET /v2/ HTTP/1.1\r\nHost: quay.io\r\n\r\n"


@pytest.fixture
async def engine() -> Engine:
    """mitmproxy's options come from its addons."""
    return Engine()


@pytest.fixture
def context(engine: Engine) -> Context:
    mode = ProxyMode.parse("regular")
    client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), proxy_mode=mode, state=ConnectionState.OPEN)
    return Context(client, engine.master.options)


class Driven:
    """A layer and the commands it has given; hooks are answered by `on`, and the unknown ones with nothing."""

    def __init__(self, top: layer.Layer, on: dict[type, Callable[[Any], None]] | None = None) -> None:
        self.top, self._on = top, on or {}
        self.commands: list[commands.Command] = []
        self.tell(events.Start())

    def tell(self, event: events.Event) -> "Driven":
        self._take(self.top.handle_event(event))
        return self

    def receive(self, data: bytes) -> "Driven":
        return self.tell(events.DataReceived(self.top.context.client, data))

    def _take(self, given: Iterator[commands.Command]) -> None:
        for command in given:
            self.commands.append(command)
            if isinstance(command, commands.StartHook):
                if type(command) in self._on:
                    self._on[type(command)](command)
                if command.blocking and type(command) is not Held:
                    self._take(self.top.handle_event(events.HookCompleted(command)))
            if isinstance(command, commands.CloseTcpConnection) and command.half_close:
                command.connection.state &= ~ConnectionState.CAN_WRITE
            elif isinstance(command, commands.CloseConnection):
                command.connection.state = ConnectionState.CLOSED

    @property
    def sent(self) -> bytes:
        return b"".join(command.data for command in self.commands if isinstance(command, commands.SendData))

    def kinds(self) -> list[type]:
        return [type(command) for command in self.commands]


@dataclass
class Held(commands.StartHook):
    """A hook of our own that takes its time."""

    name = "held"
    what: str = "a body"


def _answer(status: int = 200, body: bytes = b"body") -> Callable[[HttpRequestHook], None]:
    def answer(hook: HttpRequestHook) -> None:
        hook.flow.response = http.Response.make(status, body)

    return answer


# --- the request line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "form"),
    [
        (b"GET /v2/ HTTP/1.1", "relative"),
        (b"OPTIONS * HTTP/1.1", "relative"),
        (b"GET http://quay.io/v2/ HTTP/1.1", "absolute"),
        (b"GET https://quay.io:443/v2/ HTTP/1.1", "absolute"),
        (b"CONNECT quay.io:443 HTTP/1.1", "authority"),
    ],
)
def test_first_line_format(line: bytes, form: str) -> None:
    """The door tells a proxy's forms from a server's by these words."""
    assert read_request_head([line, b"Host: quay.io"]).first_line_format == form


def test_path_is_as_it_was_sent() -> None:
    """Request.path is the path and query undecoded: what it means is decided from it."""
    assert read_request_head([b"GET /v2/a%2fb?x=%20 HTTP/1.1"]).path == "/v2/a%2fb?x=%20"


def test_headers_keep_their_control_characters() -> None:
    """mitmproxy keeps folds and bare CRs in values, which is why the door refuses them."""
    folded = read_request_head([b"GET / HTTP/1.1", b"A: b", b"  c", b"D: e\rF: g"])
    assert folded.headers.fields == ((b"A", b"b\r\n c"), (b"D", b"e\rF: g"))


# --- streams -----------------------------------------------------------------------------------------------------


def test_the_parts_of_a_stream() -> None:
    """What `DeliveryStream` overrides and assigns is there, with these arguments."""
    for name, arguments in {
        "__init__": ["self", "context", "stream_id"],
        "state_wait_for_request_headers": ["self", "event"],
        "state_consume_request_body": ["self", "event"],
        "send_response": ["self", "already_streamed"],
        "flow_done": ["self"],
        "check_killed": ["self", "emit_error_hook"],
        "state_done": ["self", "_"],
        "state_errored": ["self", "_"],
    }.items():
        method = getattr(HttpStream, name, None)
        assert method is not None, f"HttpStream.{name} is gone"
        found = list(inspect.signature(inspect.unwrap(method)).parameters)
        assert found == arguments, f"HttpStream.{name} takes {found}"


def test_requests_pass_through_these_states(context: Context) -> None:
    """Head, then body, then the request hook, then send_response: our overrides are reached in this order."""
    seen: list[str] = []

    class Stream(HttpStream):
        def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
            seen.append("headers")
            assert event.request.method == "POST"
            assert event.end_stream is False
            yield from super().state_wait_for_request_headers(event)
            assert self.flow.live

        def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
            seen.append("data" if isinstance(event, RequestData) else "end")
            yield from super().state_consume_request_body(event)
            if isinstance(event, RequestData):
                assert bytes(self.request_body_buf) == b"abc"

        def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
            seen.append("response")
            assert self.flow.request.raw_content == b"abc"
            assert self.client_state == self.state_done
            yield from super().send_response(already_streamed)

    driven = Driven(_layer(context, Stream), {HttpRequestHook: _answer()})
    driven.receive(b"POST /token HTTP/1.1\r\nHost: quay.io\r\nContent-Length: 3\r\n\r\nabc")
    assert seen == ["headers", "data", "end", "response"]
    assert driven.sent.endswith(b"\r\n\r\nbody")
    assert HttpResponseHook in driven.kinds()


def _layer(context: Context, stream: type[HttpStream]) -> HttpLayer:
    class Ours(HttpLayer):
        def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
            self.streams[stream_id] = made = stream(self.context.fork(), stream_id)
            yield from self.event_to_child(made, events.Start())

    return Ours(context, HTTPMode.regular)


def test_a_response_set_in_the_request_hook_dials_nothing(context: Context) -> None:
    """With `flow.response` set no connection is opened: the cache answers everything so."""
    driven = Driven(HttpLayer(context, HTTPMode.regular), {HttpRequestHook: _answer()}).receive(GET)
    assert commands.OpenConnection not in driven.kinds()
    assert driven.sent.startswith(b"HTTP/1.1 200")


def test_without_a_response_it_would_dial(context: Context) -> None:
    """What failing closed guards against: a request hook that sets nothing sends the request on."""
    driven = Driven(HttpLayer(context, HTTPMode.regular)).receive(GET)
    assert commands.OpenConnection in driven.kinds()


class Pumped(HttpStream):
    """A head, a hook in the place of the body, and the end."""

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        assert self.flow.response
        self.server_state = self.state_done
        yield SendHttp(ResponseHeaders(self.stream_id, self.flow.response, False), self.context.client)
        yield Held()
        yield from self.flow_done()


def _pumped(context: Context) -> tuple[Driven, Http1Server, Held]:
    top = _layer(context, Pumped)
    driven = Driven(top, {HttpRequestHook: _answer(body=b"")}).receive(GET)
    http1 = top.connections[context.client]
    assert isinstance(http1, Http1Server), "HttpLayer.connections no longer holds the client's Http1Server"
    held = driven.commands[-1]
    assert isinstance(held, Held), "a hook of our own is not passed on by HttpLayer.event_to_child"
    return driven, http1, held


def test_a_body_by_a_hook(context: Context) -> None:
    """The head goes out at once, by itself; nothing follows until our blocking hook is answered; then `flow_done`
    makes the connection ready for the next request."""
    driven, http1, held = _pumped(context)
    assert driven.sent.startswith(b"HTTP/1.1 200")
    assert driven.sent.endswith(b"\r\n\r\n")
    assert held.blocking is not False, "commands.StartHook no longer blocks its layer"
    assert http1.state == http1.wait
    before = driven.sent
    driven.receive(GET * 2)
    assert driven.sent == before, "a pipelined request is answered into a body"
    assert bytes(http1.buf) == GET * 2, "Http1Server.buf is not where pipelined requests wait"
    driven.tell(events.HookCompleted(held))
    assert driven.sent.count(b"HTTP/1.1 200") == 2  # the next one has begun, and is held again
    assert bytes(http1.buf) == GET
    assert list(driven.top.streams) == [3]  # type: ignore[attr-defined]


def test_flow_done_says_the_end() -> None:
    """`flow_done` sends ResponseEndOfMessage and drops the stream: it must never follow a body that was cut."""
    source = inspect.getsource(HttpStream.flow_done)
    assert ResponseEndOfMessage.__name__ in source
    assert "DropStream" in source


def test_a_client_that_leaves_meanwhile(context: Context) -> None:
    """Its leaving waits behind our hook: `check_killed` finds it there, and says so."""
    driven, _, held = _pumped(context)
    stream = driven.top.streams[1]  # type: ignore[attr-defined]
    context.client.state = ConnectionState.CAN_WRITE
    driven.tell(events.ConnectionClosed(context.client))
    assert [type(event) for event in stream._paused_event_queue] == [RequestProtocolError]
    killed = stream.check_killed(True)
    given = list(killed)
    assert [type(command) for command in given] == [HttpErrorHook, SendHttp]
    assert isinstance(given[1].event, ResponseProtocolError)
    assert stream.flow.error is not None
    assert stream.flow.live is False
    driven.tell(events.HookCompleted(held))


def test_check_killed_of_a_flow_that_goes_on(context: Context) -> None:
    """It yields nothing and says False; a flow that an addon has killed is True."""
    driven, _, _ = _pumped(context)
    stream = driven.top.streams[1]  # type: ignore[attr-defined]
    assert _returned(stream.check_killed(False)) is False
    stream.flow.error = mitmproxy_flow.Error(mitmproxy_flow.Error.KILLED_MESSAGE)
    assert _returned(stream.check_killed(False)) is True


def _returned(generator: layer.CommandGenerator[bool]) -> bool:
    try:
        while True:
            next(generator)
    except StopIteration as stopped:
        return bool(stopped.value)


def test_an_errored_stream_takes_everything_in_silence(context: Context) -> None:
    """`state_errored` swallows what is still sent to a stream that was cut or refused."""
    stream = HttpStream(context, 1)
    Driven(stream)
    stream.client_state = stream.server_state = stream.state_errored
    data = list(stream.handle_event(RequestData(1, b"more")))
    assert data == []


# --- HTTP/1 ------------------------------------------------------------------------------------------------------


def test_heads_are_kept_without_a_limit(context: Context) -> None:
    """Http1Server.buf grows in the state read_headers: we watch it there. If this fails, mitmproxy has a limit now."""
    top = HttpLayer(context, HTTPMode.regular)
    driven = Driven(top)
    http1 = top.connections[context.client]
    assert isinstance(http1, Http1Server)
    assert http1.state == http1.read_headers
    driven.receive(b"GET / HTTP/1.1\r\nX: " + bytes(1 << 20))
    assert len(http1.buf) > 1 << 20
    assert http1.state == http1.read_headers
    http1.state = http1.done
    driven.receive(b"\r\n\r\n")
    assert driven.sent == b"", "Http1Server.done answers"


def test_bodies_do_not_stay_in_the_buffer(context: Context) -> None:
    """In read_body whole data is taken out of the buffer; only the line before a chunk is kept, without a limit."""
    top = HttpLayer(context, HTTPMode.regular)
    driven = Driven(top).receive(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    http1 = top.connections[context.client]
    assert isinstance(http1, Http1Server)
    driven.receive(b"fffff\r\n" + bytes(0xFFFFE))
    assert (http1.state, len(http1.buf)) == (http1.read_body, 0)
    driven.receive(b"x\r\n1;" + bytes(1 << 20))
    assert (http1.state, len(http1.buf) > 1 << 20) == (http1.read_body, True)
    gone = RequestProtocolError(http1.stream_id, "gone", ErrorCode.GENERIC_CLIENT_ERROR)
    assert [type(each) for each in top.event_to_child(top.streams[1], gone)] == [HttpErrorHook]


def test_malformed_requests_are_closed_before_they_are_shown(context: Context) -> None:
    """mitmproxy answers 400 and closes by itself, and only then shows us the head: we must not answer again."""
    states: list[ConnectionState] = []

    class Stream(HttpStream):
        def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
            states.append(self.context.client.state)
            yield from super().state_wait_for_request_headers(event)

    driven = Driven(_layer(context, Stream))
    driven.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n")
    assert driven.sent.startswith(b"HTTP/1.1 400")
    assert driven.sent.count(b"HTTP/1.1") == 1
    assert states == [ConnectionState.CLOSED]


def test_alpn_decides_between_http1_and_http2(context: Context) -> None:
    """With any ALPN but h2 a client is spoken to in HTTP/1: ours is http/1.1 or none."""
    for alpn in (None, b"", b"http/1.1"):
        context.client.alpn = alpn
        top = HttpLayer(context.fork(), HTTPMode.regular)
        Driven(top)
        assert isinstance(top.connections[context.client], Http1Server)


# --- layers and TLS ----------------------------------------------------------------------------------------------


class Ground(layer.Layer):
    """What lies below a TLS layer: it looks at the layer before its own."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from ()


@pytest.fixture
def ground(context: Context) -> layer.Layer:
    return Ground(context)


def test_tls_needs_a_layer_below(context: Context) -> None:
    """ClientTLSLayer looks at the layer before it; `next_layer` makes a RefusalLayer first, which is that one."""
    with pytest.raises(IndexError):
        ClientTLSLayer(context)


def test_context_lists_layers_from_the_outside_in(context: Context, ground: layer.Layer) -> None:
    """Context.layers grows as layers are made, and a fork keeps those below it: TLS objects are found so."""
    outer = ClientTLSLayer(context)
    inner = HttpLayer(context.fork(), HTTPMode.regular)
    stream = HttpStream(inner.context.fork(), 1)
    assert stream.context.layers == [ground, outer, inner, stream]
    assert context.layers == [ground, outer], "Context.fork shares its layers"


def test_the_tls_object_of_a_layer(context: Context, ground: layer.Layer) -> None:
    """ClientTLSLayer.tls becomes the SSL.Connection that tls_start_client has set, and client.tls is true at once."""
    before = context.client.tls
    tls = ClientTLSLayer(context)
    assert (before, context.client.tls) == (False, True)
    made = SSL.Connection(SSL.Context(SSL.TLS_SERVER_METHOD))
    starting = tls.start_tls()
    hook = next(starting)
    assert isinstance(hook, commands.StartHook)
    assert hook.name == "tls_start_client"
    [data] = hook.args()
    assert isinstance(data, TlsData)
    assert data.conn is context.client
    data.ssl_conn = made
    assert list(starting) == []
    assert tls.tls is made, "ClientTLSLayer.tls is not the connection of tls_start_client"


def test_no_tls_object_closes_the_connection(context: Context, ground: layer.Layer) -> None:
    """Where tls_start_client sets none, the connection is closed: unknown names get no certificate."""
    given = list(ClientTLSLayer(context).start_tls())
    assert isinstance(given[-1], commands.CloseConnection)
    assert given[-1].connection is context.client


def test_a_client_hello_is_kept_whole(context: Context, ground: layer.Layer) -> None:
    """ClientTLSLayer.recv_buffer grows until the ClientHello is parsed: we watch it, and refuse in the same way."""
    tls = ClientTLSLayer(context)
    hello = b"\x16\x03\x01\x40\x00\x01" + (1 << 20).to_bytes(3) + bytes((1 << 14) - 4)
    assert _handshake(tls, hello) == (False, None)
    assert tls.client_hello_parsed is False
    assert bytes(tls.recv_buffer) == hello
    assert list(inspect.signature(ClientTLSLayer.receive_handshake_data).parameters) == ["self", "data"]


def _handshake(tls: ClientTLSLayer, data: bytes) -> tuple[bool, str | None]:
    generator = tls.receive_handshake_data(data)
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    result: tuple[bool, str | None] = stopped.value.value
    return result


def test_next_layer_asks_with_the_data(context: Context) -> None:
    """NextLayer shows the first bytes by data_client, and hands the events on to the layer that is set."""
    next_layer = layer.NextLayer(context)
    seen: list[bytes] = []

    class Listening(layer.Layer):
        def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
            if isinstance(event, events.DataReceived):
                seen.append(event.data)
            yield from ()

    def choose(hook: layer.NextLayerHook) -> None:
        assert hook.data.data_client() == b"\x16first"
        hook.data.layer = Listening(context)

    Driven(next_layer, {layer.NextLayerHook: choose}).receive(b"\x16first").receive(b"second")
    assert seen == [b"\x16first", b"second"]


# --- connections -------------------------------------------------------------------------------------------------


class Pipe:
    """Both ends of a real connection in this loop."""

    def __init__(self) -> None:
        self.made: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]

    async def __aenter__(self) -> "Pipe":
        self.made = asyncio.get_running_loop().create_future()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.made.set_result((reader, writer))

        self._server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._client = await asyncio.open_connection(*self._server.sockets[0].getsockname())
        self.reader, self.writer = await self.made
        return self

    @property
    def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return self._client

    async def __aexit__(self, *unused: object) -> None:
        self._server.close()
        for writer in (self.writer, self._client[1]):
            writer.close()


async def test_the_writer_of_a_connection(engine: Engine) -> None:
    """ProxyConnectionHandler takes these arguments; register_connection makes it found by its client's id; its
    transports hold our own writer."""
    async with Pipe() as pipe:
        mode = ProxyMode.parse("regular")
        handler = ProxyConnectionHandler(engine.master, pipe.reader, pipe.writer, engine.master.options, mode)
        client = handler.layer.context.client
        assert handler.client is client
        proxyserver: Proxyserver = engine.proxyserver
        with proxyserver.register_connection(client.id, handler):
            assert proxyserver.connections[client.id] is handler
            io = handler.transports[client]
            assert isinstance(io, ConnectionIO)
            assert io.writer is pipe.writer
        assert client.id not in proxyserver.connections


async def test_the_drain_lock_stops_reading(engine: Engine) -> None:
    """While `_drain_lock` is held the handler reads once more and then waits: that is how a flood is stopped."""
    received: list[int] = []

    class Counting(layer.Layer):
        def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
            if isinstance(event, events.DataReceived):
                received.append(len(event.data))
            elif isinstance(event, events.ConnectionClosed):
                yield commands.CloseConnection(event.connection)

    async with Pipe() as pipe:
        mode = ProxyMode.parse("regular")
        handler = ProxyConnectionHandler(engine.master, pipe.reader, pipe.writer, engine.master.options, mode)
        handler.layer = Counting(handler.layer.context)
        assert isinstance(handler._drain_lock, asyncio.Lock), "ConnectionHandler._drain_lock is no asyncio.Lock"
        _, writer = pipe.client
        async with asyncio.TaskGroup() as tasks:
            async with handler._drain_lock:
                serving = tasks.create_task(handler.handle_client())
                writer.write(bytes(8 << 20))
                for _ in range(2000):
                    await asyncio.sleep(0)
                held = sum(received)
                assert 0 < held <= 1 << 16, "the handler reads on while _drain_lock is held"
            await writer.drain()
            writer.close()
            await serving
        assert sum(received) == 8 << 20


def test_close_connection_of_mitmproxy_cancels() -> None:
    """A half-close keeps reading, a close cancels the handler: refusals rely on the first."""
    source = inspect.getsource(ConnectionHandler.close_connection)
    assert "write_eof" in source
    assert "handler.cancel" in source


async def test_what_a_client_waits_for_can_be_told(context: Context) -> None:
    """What has come is in a bytearray, and each part of a request is a state of its own: the limits rely on both."""
    server = Http1Server(context)
    list(server.handle_event(events.Start()))
    assert server.state == server.read_headers
    list(server.handle_event(events.DataReceived(context.client, GET[:9])))
    assert server.state == server.read_headers
    assert server.buf._data == GET[:9]
    assert isinstance(server.buf._data, bytearray)
    list(server.handle_event(events.DataReceived(context.client, GET[9:-2] + b"Content-Length: 1\r\n\r\n")))
    assert server.state == server.read_body
    list(server.handle_event(events.DataReceived(context.client, b"x")))
    assert server.state == server.wait


async def test_a_hook_that_raises_is_swallowed(engine: Engine) -> None:
    """Why hooks must fail closed: mitmproxy logs what an addon raises, and goes on as if it had been asked nothing."""

    class Raising:
        def request(self, flow: http.HTTPFlow) -> None:
            raise RuntimeError("a mistake")

    engine.add(Raising())
    flow = http.HTTPFlow(Client(peername=("", 0), sockname=("", 0)), None)  # type: ignore[arg-type]
    await engine.master.addons.handle_lifecycle(HttpRequestHook(flow))
    assert flow.response is None


# --- receiving ---------------------------------------------------------------------------------------------------


def test_what_comes_meanwhile_waits_in_the_stream(context: Context) -> None:
    """While our hook on a head is not answered, the body's events are kept in `_paused_event_queue`, in order; the end
    is noted by `request_done` and the state `wait`, and a body that is taken out of there is nobody else's."""

    class Held1(HttpStream):
        def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
            self.client_state = self.state_errored
            yield Held()

    top = _layer(context, Held1)
    driven = Driven(top).receive(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\na").receive(b"bc")
    http1 = top.connections[context.client]
    assert isinstance(http1, Http1Server)
    waiting = top.streams[1]._paused_event_queue
    assert [event.data for event in waiting if isinstance(event, RequestData)] == [b"a", b"bc"]
    assert (http1.request_done, http1.state) == (False, http1.read_body)
    driven.receive(b"dGET")
    assert isinstance(waiting[-1], RequestEndOfMessage)
    assert (http1.request_done, http1.state, bytes(http1.buf)) == (True, http1.wait, b"GET")


def test_the_readers_of_bodies(context: Context) -> None:
    """`_remaining` and `_bytes_in_chunk` are what h11's readers wait for: less of it may be shown to them, and both are
    called with a buffer, give Data, EndOfMessage or None, and take all that is of the body."""
    server = Http1Server(context)
    list(server.handle_event(events.Start()))
    list(server.handle_event(events.DataReceived(context.client, b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\n1")))
    reader = server.body_reader
    assert isinstance(reader, ContentLengthReader)
    assert (reader._remaining, bytes(server.buf)) == (8, b"")
    reader._remaining -= 7
    server.buf += b"9GET"
    assert isinstance(reader(server.buf), h11.Data)
    assert isinstance(reader(server.buf), h11.EndOfMessage)
    assert bytes(server.buf) == b"GET"

    chunked = ChunkedReader()
    assert chunked._bytes_in_chunk == 0
    buffer = ReceiveBuffer()
    buffer += b"a\r\n1"
    assert isinstance(chunked(buffer), h11.Data)
    assert chunked._bytes_in_chunk == 9
    chunked._bytes_in_chunk -= 8
    buffer += b"0\r\n0\r\nX: y\r\n\r\nGET"
    assert isinstance(chunked(buffer), h11.Data)
    end = chunked(buffer)
    assert isinstance(end, h11.EndOfMessage)
    assert bytes(buffer) == b"GET"


async def test_who_waits_for_the_event_lock_is_served_in_order(engine: Engine) -> None:
    """Hooks are begun while `_server_event_lock` is held, so what the handler has read may still wait for it. It is an
    asyncio.Lock: whoever asks for it afterwards gets it when that has been handed on."""
    seen: list[bytes] = []

    class Listening(layer.Layer):
        def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
            if isinstance(event, events.DataReceived):
                seen.append(event.data)
            elif isinstance(event, events.ConnectionClosed):
                yield commands.CloseConnection(event.connection)

    async with Pipe() as pipe:
        mode = ProxyMode.parse("regular")
        handler = ProxyConnectionHandler(engine.master, pipe.reader, pipe.writer, engine.master.options, mode)
        handler.layer = Listening(handler.layer.context)
        transport: Any = pipe.writer.transport
        assert isinstance(handler._server_event_lock, asyncio.Lock)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(handler.handle_client())
            await asyncio.sleep(0)
            async with handler._server_event_lock:
                pipe.client[1].write(b"first")
                while not handler._server_event_lock._waiters:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0)
                assert not holds(pipe.reader), "the handler has taken it, and waits"
                transport.pause_reading()
            async with handler._server_event_lock:
                assert seen == [b"first"]
            pipe.client[1].write(b"second")
            for _ in range(200):
                await asyncio.sleep(0)
            assert seen == [b"first"], "a paused transport is read from"
            transport.resume_reading()
            pipe.client[1].close()
            await serving
        assert b"".join(seen) == b"firstsecond"
