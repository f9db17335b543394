"""One request and its answer: mitmproxy's stream, with our door before it and our delivery behind it."""

from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from mitmproxy import flow as mitmproxy_flow
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHook
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from OpenSSL import SSL

from mitm_cache.answers import explain
from mitm_cache.errors import ClientError
from mitm_cache.proxy.deliver import DeliverBodyHook, Delivery
from mitm_cache.proxy.door import MAX_BODY, Door, Exchange
from mitm_cache.proxy.http1 import OneWriteServer
from mitm_cache.proxy.logins import Login
from mitm_cache.proxy.patience import Patience
from mitm_cache.proxy.reception import ReceiveBodyHook, Reception
from mitm_cache.proxy.upgrade import CrossHook, Crossing, CrossRoomHook
from mitm_cache.relay import Relay
from mitm_cache.upstream.passage import Passage
from mitm_cache.upstream.upgrade import Upgraded, is_upgrade
from mitm_cache.wire.message import FileBody, Request, Response, StreamBody

HTTP_1_1 = "HTTP/1.1"
MAX_UPLOADS = 64
"""Relayed and received requests of one address, of which some have bodies that may never end: half of what there are
threads for relays."""
TOO_MANY = ClientError(
    f"one client has at most {MAX_UPLOADS} uploads at once", status=HTTPStatus.TOO_MANY_REQUESTS, code="TOOMANYREQUESTS"
)


@dataclass
class Relayed:
    """A request that is passed on, as the hooks are told of it."""

    flow: http.HTTPFlow
    passage: Passage


@dataclass
class Upgrading:
    """A request for a WebSocket, which it may get."""

    flow: http.HTTPFlow
    upgraded: Upgraded | None = None


@dataclass
class UpgradeHook(commands.StartHook):
    """Ask upstream for a WebSocket."""

    name = "upgrade"
    upgrading: Upgrading


@dataclass
class Recognition:
    """A request with a password or token that may be for the cache itself, before anything is done for it."""

    client_id: str
    exchange: Exchange
    login: Login


@dataclass
class RecognizeHook(commands.StartHook):
    """Find out whose it is."""

    name = "recognize"
    recognition: Recognition


@dataclass
class RelayRoomHook(commands.StartHook):
    """Upstream is slower than the client: wait."""

    name = "relay_room"
    relayed: Relayed


@dataclass
class RelayAnswerHook(commands.StartHook):
    """The client has said everything, or need not: make the answer."""

    name = "relay_answer"
    relayed: Relayed


def render(exchange: Exchange, response: Response, http_version: str = HTTP_1_1) -> http.Response:
    """The answer as mitmproxy's message; a body that is not in memory stays outside of it."""
    reason = "".join(c for c in response.reason if " " <= c <= "~")[:200]
    fields = [
        *response.headers,
        ("X-Cache", response.outcome),
        ("X-Cache-Reason", reason),
        ("X-Request-Id", exchange.request_id),
    ]
    if response.headers.get("date") is None:
        fields.append(("Date", formatdate(usegmt=True)))  # RFC 9110, 6.6.1: whoever has a clock says it
    if isinstance(response.body, StreamBody) and response.body.length is None:
        # RFC 9112, 6.3: without a length a body is chunked, or for older clients as long as the connection.
        fields.append(("Transfer-Encoding", "chunked") if http_version == HTTP_1_1 else ("Connection", "close"))
    content = response.body if isinstance(response.body, bytes) else b""
    message = http.Response.make(response.status, b"", ())
    message.http_version = HTTP_1_1
    message.headers = http.Headers([(k.encode("latin-1"), v.encode("latin-1", "replace")) for k, v in fields])
    message.data.content = content
    return message


class DeliveryStream(HttpStream):
    """A stream that asks the door first, and whose file bodies are delivered by the pump."""

    def __init__(
        self,
        context: Context,
        stream_id: int,
        *,
        door: Door,
        relay: Relay,
        server: OneWriteServer,
        patience: Patience | None,
    ) -> None:
        super().__init__(context, stream_id)
        self._door = door
        self._relay = relay
        self._server = server
        self._patience = patience
        self._receives = False
        self._crossing: Crossing

    @property
    def passes_on(self) -> bool:
        """Whether the body of the request is passed on, or kept, as it comes."""
        return self._receives or bool(self.client_state == self.state_relay_request_body)

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        exchange = self._door.admit(self.context.client, event.request)
        if (login := self._door.login(exchange)) is not None:
            yield RecognizeHook(Recognition(self.context.client.id, exchange, login))
        if exchange.response is not None:
            self.flow = http.HTTPFlow(self.context.client, self.context.server)
            self.flow.request = event.request
            yield from self._refuse(exchange, exchange.response)
            return
        expected, is_old = "", event.request.http_version != HTTP_1_1
        if exchange.received or is_old:
            # mitmproxy would say "continue" at once, to what may be refused and to who does not know the word.
            expected = event.request.headers.pop("expect", "").lower()
        yield from super().state_wait_for_request_headers(event)
        if not self.flow.live:
            exchange.finish(bytes_out=0, failure="the request is malformed")
            return
        self._door.pending[self.flow] = exchange
        if exchange.relayed and exchange.request is not None:
            yield from self._begin_relay(exchange, exchange.request)
        elif exchange.received and exchange.request is not None:
            yield from self._receive(exchange, exchange.request, expected == "100-continue" and not is_old)

    def _begin_relay(self, exchange: Exchange, request: Request) -> layer.CommandGenerator[None]:
        exchange.response = self._relay.judge(request)
        if exchange.response is not None:
            yield from self._refuse(exchange, exchange.response)
        elif self._has_too_many(exchange, request):
            exchange.response = explain(TOO_MANY, request)
            yield from self._refuse(exchange, exchange.response)
        elif request.size == 0 and is_upgrade(request.headers):
            self.client_state = self.state_upgrade
        else:
            exchange.passage = self._relay.begin(request)
            self.client_state = self.state_relay_request_body

    def _has_too_many(self, exchange: Exchange, request: Request) -> bool:
        return request.size != 0 and self._door.uploads(exchange.client) >= MAX_UPLOADS

    def _receive(self, exchange: Exchange, request: Request, awaits: bool) -> layer.CommandGenerator[None]:
        """Have a request for a local name answered, and its body taken past our events."""
        if self._has_too_many(exchange, request):
            exchange.response = explain(TOO_MANY, request)
            yield from self._refuse(exchange, exchange.response)
            return
        waiting = self._paused_event_queue
        reception = Reception(self.flow, self._server, self._tls(), waiting, self._patience, awaits)
        self.client_state = self.state_errored
        exchange.uploading, self._receives = request.size != 0, True
        yield ReceiveBodyHook(reception)
        exchange.uploading = self._receives = False
        exchange.taken = reception.received
        if reception.failure or exchange.response is None:
            exchange.close()
            exchange.finish(bytes_out=0, failure=reception.failure or "no answer was made")
            yield from self._cut(reception.failure)
        elif reception.whole:
            self.client_state = self.state_done
            if not (yield from self.check_killed(True)):
                yield from self.send_response()
        else:
            yield from self._refuse(exchange, exchange.response)

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        exchange = self._door.pending.get(self.flow)
        if exchange and isinstance(event, RequestData) and len(self.request_body_buf) + len(event.data) > MAX_BODY:
            error = ClientError(f"the body of a pull is at most {MAX_BODY} bytes", status=413)
            exchange.response = explain(error, exchange.request)
            yield from self._refuse(exchange, exchange.response)
            return
        yield from super().state_consume_request_body(event)

    def state_relay_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        exchange = self._door.pending[self.flow]
        passage = exchange.passage
        assert passage is not None
        relayed = Relayed(self.flow, passage)
        if isinstance(event, RequestData):
            passage.upload.send(event.data)
            if passage.upload.full:
                yield RelayRoomHook(relayed)
            if passage.refused:
                yield from self._answer_early(exchange, relayed)
        elif isinstance(event, RequestEndOfMessage):
            passage.upload.end()
            self.client_state = self.state_done
            yield RelayAnswerHook(relayed)
            if not (yield from self.check_killed(True)):
                yield from self.send_response()

    def state_upgrade(self, event: events.Event) -> layer.CommandGenerator[None]:
        exchange = self._door.pending[self.flow]
        assert exchange.request is not None
        upgrading = Upgrading(self.flow)
        yield UpgradeHook(upgrading)
        if (yield from self.check_killed(True)):
            if upgrading.upgraded is not None:
                upgrading.upgraded.writer.close()
        elif upgrading.upgraded is None:
            exchange.passage = self._relay.begin(exchange.request)
            yield from self.state_relay_request_body(event)
        else:
            yield from self._cross(exchange, upgrading.upgraded)

    def _cross(self, exchange: Exchange, upgraded: Upgraded) -> layer.CommandGenerator[None]:
        assert self.flow.response
        self._crossing = Crossing(self.flow, exchange, upgraded, self._tls())
        self.client_state = self.state_cross
        self.server_state = self.state_done
        yield HttpResponseHook(self.flow)
        yield SendHttp(ResponseHeaders(self.stream_id, self.flow.response, False), self.context.client)
        yield CrossHook(self._crossing)
        # mitmproxy's HTTP/1 then hands everything on as it comes.
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def state_cross(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestData):
            self._crossing.inbox.send(event.data)
            if self._crossing.inbox.full:
                yield CrossRoomHook(self._crossing)
        else:
            self._crossing.inbox.end()

    def _answer_early(self, exchange: Exchange, relayed: Relayed) -> layer.CommandGenerator[None]:
        """Upstream wants no more of the request: pass its answer on, and close our side."""
        self.client_state = self.server_state = self.state_errored
        yield RelayAnswerHook(relayed)
        if (yield from self.check_killed(True)):
            return
        assert self.flow.response
        self.flow.response.headers["Connection"] = "close"
        yield from self.send_response()

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
        if exchange is not None and response is not None and not isinstance(response.body, bytes):
            yield from self._send_body(exchange, response.body)
            return
        self._expect_body()
        yield from super().send_response(already_streamed)
        gone = self.flow.error is not None
        if exchange is not None:
            exchange.mark_first_byte()
            sent = len(response.body) if response and isinstance(response.body, bytes) else 0
            exchange.finish(bytes_out=0 if gone else sent, failure="the client is gone" if gone else "")
        if not gone and self.client_state == self.state_errored:
            yield from self._end_early()

    def _expect_body(self) -> None:
        """The body is at hand: let the head wait for it."""
        self._server.body_follows = True

    def _send_body(self, exchange: Exchange, body: FileBody | StreamBody) -> layer.CommandGenerator[None]:
        assert self.flow.response
        yield HttpResponseHook(self.flow)
        self.server_state = self.state_done
        if (yield from self.check_killed(False)):
            body.source.close()
            exchange.finish(bytes_out=0, failure="the client is gone")
            return
        yield SendHttp(ResponseHeaders(self.stream_id, self.flow.response, False), self.context.client)
        chunked = "transfer-encoding" in self.flow.response.headers
        delivery = Delivery(self.flow, body, exchange, self._tls(), chunked)
        yield DeliverBodyHook(delivery)
        exchange.finish(bytes_out=delivery.sent, failure="" if delivery.complete else delivery.failure or "cut")
        if not delivery.complete:
            yield from self._cut(delivery.failure)
        elif self.client_state == self.state_errored:
            yield from self._end_early()
        else:
            yield from self.flow_done()

    def _tls(self) -> list[SSL.Connection]:
        """Innermost first: within TLS within TLS each layer encrypts what the one inside it has made."""
        return [below.tls for below in reversed(self.context.layers) if isinstance(below, ClientTLSLayer)]

    def _end_early(self) -> layer.CommandGenerator[None]:
        """The answer is whole and the request is not: what the client still sends of it is read, and dropped."""
        self.flow.live = False
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
        yield commands.CloseTcpConnection(self.context.client, half_close=True)

    def _cut(self, failure: str) -> layer.CommandGenerator[None]:
        self.flow.error = mitmproxy_flow.Error(failure or "it was cut")
        self.flow.live = False
        yield HttpErrorHook(self.flow)
        yield commands.CloseConnection(self.context.client)
        self.client_state = self.server_state = self.state_errored
