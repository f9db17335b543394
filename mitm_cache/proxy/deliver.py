"""Delivery: the body moves from the file through TLS into the socket, past mitmproxy's events.

mitmproxy cannot stream what an addon answers with: it would hold the whole body, or spend four times the CPU on
events. So our stream sends the head, then yields one blocking hook whose coroutine moves the body and never holds more
than one chunk. All use of mitmproxy's internals is in this module and in `mode.py`; `tests/contracts/` watches them.

What the pump takes care of, each of it with a test: a delivery that fails cuts the connection, so that the next
answer's head never lands inside a body; other connections get a turn after each chunk; the client cannot fill our
memory with pipelined requests meanwhile; a client that takes nothing for a minute is cut.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from mitmproxy import flow as mitmproxy_flow
from mitmproxy import http
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream, SendHttp
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
from OpenSSL import SSL

from mitm_cache.answers import explain
from mitm_cache.errors import ClientError, MitmCacheError
from mitm_cache.proxy.door import MAX_BODY, Door, Exchange
from mitm_cache.wire.message import FileBody, Response

CHUNK = 256 << 10
STALL_SECONDS = 60.0
"""A client that takes no byte for this long is cut."""
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


@dataclass
class Delivery:
    """A body on its way to a client; `complete` only once every byte of it has been handed to the socket."""

    flow: http.HTTPFlow
    body: FileBody
    exchange: Exchange
    tls: Sequence[SSL.Connection] = field(repr=False)
    sent: int = 0
    complete: bool = False
    failure: str = ""


@dataclass
class DeliverBodyHook(commands.StartHook):
    """The head has been sent: move the body."""

    name = "deliver_body"
    delivery: Delivery


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
        yield SendHttp(ResponseHeaders(self.stream_id, message, not message.raw_content), client)
        if message.raw_content:
            yield SendHttp(ResponseData(self.stream_id, message.raw_content), client)
        exchange.finish(bytes_out=len(message.raw_content or b""))
        yield commands.CloseTcpConnection(client, half_close=True)

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        exchange = self._door.pending.get(self.flow)
        response = exchange.response if exchange else None
        if exchange is None or response is None or not isinstance(response.body, FileBody):
            yield from super().send_response(already_streamed)
            if exchange is not None:
                exchange.mark_first_byte()
                sent = len(response.body) if response and isinstance(response.body, bytes) else 0
                gone = self.flow.error is not None
                exchange.finish(bytes_out=0 if gone else sent, failure="the client is gone" if gone else "")
            return
        yield from self._send_file(exchange, response.body)

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
        http1 = self.connections.get(client)
        if not isinstance(http1, Http1Server) or not client.state & ConnectionState.CAN_WRITE:
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


class Pump:
    """The addon that moves bodies."""

    def __init__(self, proxyserver: Proxyserver, reads: Executor, *, stall: float = STALL_SECONDS) -> None:
        """`reads`: threads for reading what is not in the page cache."""
        self._proxyserver = proxyserver
        self._reads = reads
        self._stall = stall
        self._blocking_devices: set[int] = set()

    async def deliver_body(self, delivery: Delivery) -> None:
        """Move a body; whatever goes wrong leaves `complete` false, and the connection cut."""
        transport: Any = None
        try:
            handler = self._proxyserver.connections.get(delivery.flow.client_conn.id)
            io = handler.transports.get(delivery.flow.client_conn) if handler else None
            if handler is None or io is None or not isinstance(io.writer, asyncio.StreamWriter):
                raise ConnectionResetError("the client is gone")
            transport = io.writer.transport
            # mitmproxy's reader waits for this lock after each read: no more requests are taken in meanwhile.
            async with handler._drain_lock:
                await self._move(delivery, io.writer)
            delivery.complete = delivery.sent == delivery.body.span.length
        except TimeoutError:
            delivery.failure = f"the client took nothing for {self._stall:.0f} s"
        except (OSError, EOFError) as error:
            delivery.failure = str(error) or "the client is gone"
        except SSL.Error:
            delivery.failure = "TLS failed"
        except MitmCacheError as error:
            delivery.failure = error.message
        except BaseException as error:
            delivery.failure = f"internal error: {type(error).__name__}"
            raise
        finally:
            delivery.body.source.close()
            if not delivery.complete and transport is not None:
                _abort(transport)

    async def _move(self, delivery: Delivery, writer: asyncio.StreamWriter) -> None:
        source, span = delivery.body.source, delivery.body.span
        transport = writer.transport
        transport.set_write_buffer_limits(0)  # drain() then means that the buffer may be used again
        buffer = memoryview(bytearray(min(CHUNK, max(span.length, 1))))
        device = os.fstat(source.fileno()).st_dev
        position = span.start
        while position < span.stop:
            limit = await source.readable(position, span.stop)
            chunk = buffer[: min(len(buffer), limit - position)]
            size = await self._read(source.fileno(), chunk, position, device)
            if not size:
                raise EOFError("a cached file is shorter than it was")
            for record in encrypt(delivery.tls, chunk[:size]):
                writer.write(record)
            delivery.exchange.mark_first_byte()
            if transport.is_closing():
                raise ConnectionResetError("the client is gone")
            async with asyncio.timeout(self._stall):
                await writer.drain()
            position += size
            delivery.sent += size
            # drain() returns without a pause while the socket takes everything: one fast client would own the loop.
            await asyncio.sleep(0)

    async def _read(self, fd: int, buffer: memoryview, position: int, device: int) -> int:
        if device not in self._blocking_devices:
            try:
                return os.preadv(fd, [buffer], position, os.RWF_NOWAIT)
            except BlockingIOError:
                pass  # not in the page cache
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                    raise
                self._blocking_devices.add(device)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reads, os.preadv, fd, [buffer], position)


def encrypt(tls: Sequence[SSL.Connection], data: memoryview | bytes) -> Iterator[memoryview | bytes]:
    """What goes on the wire for `data`: through every TLS layer, innermost first; as it is where there is none."""
    if not tls:
        yield data
        return
    inner, outer = tls[0], tls[1:]
    inner.sendall(data)
    while True:
        try:
            record = inner.bio_read(CHUNK)
        except SSL.WantReadError:
            return
        if outer:
            yield from encrypt(outer, record)
        else:
            yield record


def _abort(transport: asyncio.Transport) -> None:
    """Drop a connection with what is still buffered for it; close() would wait for a stalled peer."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() != -1:
        transport.abort()
