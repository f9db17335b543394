"""HTTP with clients: mitmproxy's streams, with our door before them and our delivery behind them.

All use of mitmproxy's internals is in this module, in `deliver.py` and in `mode.py`; `tests/contracts/` watches them.
"""

import logging

from mitmproxy import flow as mitmproxy_flow
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHook
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.layers.tls import ClientTLSLayer

from mitm_cache.answers import explain
from mitm_cache.errors import ClientError
from mitm_cache.proxy.deliver import DeliverBodyHook, Delivery
from mitm_cache.proxy.door import MAX_BODY, Door, Exchange
from mitm_cache.wire.message import FileBody, Response

MAX_HEAD = 64 << 10
"""Bytes of a request's head; mitmproxy itself has no limit."""
MAX_AHEAD = 1 << 20
"""Bytes of requests that a client may send ahead of its answers: each answer lets some more of them in."""

logger = logging.getLogger(__name__)


def render(exchange: Exchange, response: Response) -> http.Response:
    """The answer as mitmproxy's message; a file body stays outside of it."""
    reason = "".join(c for c in response.reason if " " <= c <= "~")[:200]
    fields = [
        *response.headers,
        ("X-Cache", response.outcome),
        ("X-Cache-Reason", reason),
        ("X-Request-Id", exchange.request_id),
    ]
    content = response.body if isinstance(response.body, bytes) else b""
    message = http.Response.make(response.status, b"", ())
    message.http_version = "HTTP/1.1"
    message.headers = http.Headers([(k.encode("latin-1"), v.encode("latin-1", "replace")) for k, v in fields])
    message.data.content = content
    return message


class OneWriteServer(Http1Server):
    """Sends the head of an answer together with the body that follows at once: one record, one system call."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._head: bytes | None = None
        self.body_follows = False

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        follows = self.body_follows and isinstance(event, ResponseHeaders) and not event.end_stream
        self.body_follows = False
        if follows:
            [command] = super().send(event)
            assert isinstance(command, commands.SendData)
            self._head = command.data
            return
        for command in super().send(event):
            if self._head is not None and isinstance(command, commands.SendData):
                command.data, self._head = self._head + command.data, None
            yield command


class DeliveryStream(HttpStream):
    """A stream that asks the door first, and whose file bodies are delivered by the pump."""

    def __init__(self, context: Context, stream_id: int, door: Door) -> None:
        super().__init__(context, stream_id)
        self._door = door

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        exchange = self._door.admit(self.context.client, event.request)
        if exchange.response is not None:
            self.flow = http.HTTPFlow(self.context.client, self.context.server)
            self.flow.request = event.request
            yield from self._refuse(exchange, exchange.response)
            return
        yield from super().state_wait_for_request_headers(event)
        if self.flow.live:
            self._door.pending[self.flow] = exchange
        else:
            exchange.finish(bytes_out=0, failure="the request is malformed")

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        exchange = self._door.pending.get(self.flow)
        if exchange and isinstance(event, RequestData) and len(self.request_body_buf) + len(event.data) > MAX_BODY:
            error = ClientError(f"a request body is at most {MAX_BODY} bytes here", status=413)
            exchange.response = explain(error, exchange.request)
            yield from self._refuse(exchange, exchange.response)
            return
        yield from super().state_consume_request_body(event)

    def _refuse(self, exchange: Exchange, response: Response) -> layer.CommandGenerator[None]:
        """Answer at once and close our side: what the client still sends is read, so that no reset takes the answer."""
        client = self.context.client
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored
        if not client.state & ConnectionState.CAN_WRITE:
            exchange.finish(bytes_out=0, failure="the request is malformed")  # mitmproxy has answered 400 already
            return
        message = render(exchange, response)
        message.headers["Connection"] = "close"
        if exchange.method == "HEAD":
            message.data.content = b""
        self.flow.response = message
        exchange.mark_first_byte()
        self._expect_body()
        yield SendHttp(ResponseHeaders(self.stream_id, message, not message.raw_content), client)
        if message.raw_content:
            yield SendHttp(ResponseData(self.stream_id, message.raw_content), client)
        exchange.finish(bytes_out=len(message.raw_content or b""))
        yield commands.CloseTcpConnection(client, half_close=True)

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        exchange = self._door.pending.get(self.flow)
        response = exchange.response if exchange else None
        if exchange is None or response is None or not isinstance(response.body, FileBody):
            self._expect_body()
            yield from super().send_response(already_streamed)
            if exchange is not None:
                exchange.mark_first_byte()
                sent = len(response.body) if response and isinstance(response.body, bytes) else 0
                gone = self.flow.error is not None
                exchange.finish(bytes_out=0 if gone else sent, failure="the client is gone" if gone else "")
            return
        yield from self._send_file(exchange, response.body)

    def _expect_body(self) -> None:
        """The body is at hand: let the head wait for it."""
        parent = self.context.layers[self.context.layers.index(self) - 1]
        assert isinstance(parent, DeliveryLayer)
        parent.server.body_follows = True

    def _send_file(self, exchange: Exchange, body: FileBody) -> layer.CommandGenerator[None]:
        assert self.flow.response
        yield HttpResponseHook(self.flow)
        self.server_state = self.state_done
        if (yield from self.check_killed(False)):
            body.source.close()
            exchange.finish(bytes_out=0, failure="the client is gone")
            return
        yield SendHttp(ResponseHeaders(self.stream_id, self.flow.response, False), self.context.client)
        # Innermost first: within TLS within TLS each layer encrypts what the one inside it has made.
        tls = [below.tls for below in reversed(self.context.layers) if isinstance(below, ClientTLSLayer)]
        delivery = Delivery(self.flow, body, exchange, tls)
        yield DeliverBodyHook(delivery)
        exchange.finish(bytes_out=delivery.sent, failure="" if delivery.complete else delivery.failure or "cut")
        if delivery.complete:
            yield from self.flow_done()
        else:
            yield from self._cut(delivery)

    def _cut(self, delivery: Delivery) -> layer.CommandGenerator[None]:
        self.flow.error = mitmproxy_flow.Error(delivery.failure or "the delivery was cut")
        self.flow.live = False
        yield HttpErrorHook(self.flow)
        yield commands.CloseConnection(self.context.client)
        self.client_state = self.server_state = self.state_errored


class DeliveryLayer(HttpLayer):
    """HTTP/1.1 with our streams, and with limits on what a client may send ahead of its answers."""

    def __init__(self, context: Context, door: Door) -> None:
        super().__init__(context, HTTPMode.regular)
        self._door = door
        self.server = OneWriteServer(context.fork())
        self.connections[context.client] = self.server

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = DeliveryStream(self.context.fork(), stream_id, self._door)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        client = self.context.client
        try:
            if isinstance(event, events.DataReceived) and not client.state & ConnectionState.CAN_WRITE:
                return  # what follows a refusal is dropped
            yield from super()._handle_event(event)
            if isinstance(event, events.DataReceived):
                yield from self._limit()
        except Exception:
            # mitmproxy would log it too, and leave the client without an answer and without an end.
            logger.exception("a connection failed for no known reason")
            yield commands.CloseConnection(client)

    def _limit(self) -> layer.CommandGenerator[None]:
        """Close a connection whose client has sent more than is kept for it; mitmproxy itself would keep it all."""
        client = self.context.client
        http1 = self.server
        if not client.state & ConnectionState.CAN_WRITE:
            return
        if http1.state == http1.wait:
            if len(http1.buf) > MAX_AHEAD:
                yield commands.CloseConnection(client)
        elif len(http1.buf) > MAX_HEAD:
            # A head, or a line before a chunk: whole bodies are taken out of the buffer as they come.
            stream = self.streams.get(http1.stream_id)
            if stream is not None:
                gone = RequestProtocolError(http1.stream_id, "a line has no end", ErrorCode.GENERIC_CLIENT_ERROR)
                yield from self.event_to_child(stream, gone)
            head = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            yield commands.SendData(client, head)
            yield commands.CloseTcpConnection(client, half_close=True)
            http1.state = http1.done


class RefusalLayer(layer.Layer):
    """Answers a connection that speaks something else than its listener, and closes it."""

    def __init__(self, context: Context, message: str) -> None:
        super().__init__(context)
        body = message.encode() + b"\n"
        self._answer = (
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self._answered = False

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived) and not self._answered:
            self._answered = True
            yield commands.SendData(self.context.client, self._answer)
            yield commands.CloseTcpConnection(self.context.client, half_close=True)
