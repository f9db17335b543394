"""HTTP with clients: mitmproxy's layer, with our streams in it and with limits.

mitmproxy's internals are used here, in `stream.py`, `deliver.py` and `mode.py`; `tests/contracts/` watches them.
"""

import logging

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestProtocolError

from mitm_cache.proxy.door import Door
from mitm_cache.proxy.head import MAX_HEAD, answer
from mitm_cache.proxy.http1 import OneWriteServer
from mitm_cache.proxy.patience import UPLOAD_PIECE, Patience
from mitm_cache.proxy.stream import DeliveryStream
from mitm_cache.relay import Relay

MAX_AHEAD = 1 << 20
"""Bytes of requests that a client may send ahead of its answers: each answer lets some more of them in."""

logger = logging.getLogger(__name__)


class DeliveryLayer(HttpLayer):
    """HTTP/1.1 with our streams, and with limits on what a client may send ahead of its answers."""

    def __init__(self, context: Context, door: Door, relay: Relay) -> None:
        super().__init__(context, HTTPMode.regular)
        self._door = door
        self._relay = relay
        self.patience: Patience | None = None
        self._received = 0
        self.server = OneWriteServer(context.fork())
        self.connections[context.client] = self.server

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = DeliveryStream(
            self.context.fork(),
            stream_id,
            door=self._door,
            relay=self._relay,
            server=self.server,
            patience=self.patience,
        )
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        client = self.context.client
        try:
            if isinstance(event, events.DataReceived) and not client.state & ConnectionState.CAN_WRITE:
                return  # what follows a refusal is dropped
            yield from super()._handle_event(event)
            if isinstance(event, events.DataReceived):
                self._received += len(event.data)
                yield from self._limit()
            self._expect()
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
            yield commands.SendData(client, answer(b"431 Request Header Fields Too Large"))
            yield commands.CloseTcpConnection(client, half_close=True)
            http1.state = http1.done

    def _expect(self) -> None:
        """Say what is waited for, and how long."""
        patience, http1 = self.patience, self.server
        if patience is None:
            return
        limits = patience.limits
        if http1.state == http1.done or not self.context.client.state & ConnectionState.CAN_WRITE:
            patience.expect("the end", limits.upload)
        elif http1.state == http1.read_headers:
            # One byte may be half a line break, of which there may be any number before a head.
            part, seconds = ("head", limits.head) if len(http1.buf) > 1 else ("idle", limits.idle)
            patience.expect((part, http1.stream_id), seconds)
        elif http1.state == http1.read_body:
            stream = self.streams.get(http1.stream_id)
            passed_on = isinstance(stream, DeliveryStream) and stream.passes_on
            piece, seconds = (self._received // UPLOAD_PIECE, limits.upload) if passed_on else (0, limits.head)
            patience.expect(("body", http1.stream_id, piece), seconds, body=True)
        else:
            patience.rest()


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
