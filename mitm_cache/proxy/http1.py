"""HTTP/1.1 as mitmproxy speaks it, with what it leaves out, and the framing of bodies that go past its events."""

import re
from http import HTTPStatus

import h11
from h11._readers import ChunkedReader, ContentLengthReader
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestEndOfMessage, ResponseHeaders
from mitmproxy.proxy.layers.http._http1 import Http1Server

from mitm_cache.errors import ClientError
from mitm_cache.proxy.head import MAX_HEAD, refuse_head

_EMPTY_LINES = re.compile(rb"(?:\r?\n)++")
LINE = 64
"""Bytes that are shown to h11 at a time: enough for the line before a chunk, and little to copy."""


class OneWriteServer(Http1Server):
    """Sends the head of an answer together with the body that follows at once: one record, one system call."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._head: bytes | None = None
        self.body_follows = False

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, ResponseHeaders) and event.response.status_code >= HTTPStatus.OK and self._is_last():
            event.response.headers["Connection"] = "close"
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

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            if not self.conn.state & ConnectionState.CAN_READ:
                return  # its client has left, of which mitmproxy need not say more, and nobody waits for an answer
            received: bytearray = self.buf._data  # not copied: a megabyte of requests may wait in it
            if empty := _EMPTY_LINES.match(received):
                # RFC 9112, 2.2; mitmproxy takes one of them for a head, and waits
                self.buf.maybe_extract_at_most(empty.end())
            if refusal := refuse_head(received):
                yield commands.SendData(self.conn, refusal)
                yield commands.CloseTcpConnection(self.conn, half_close=True)
                self.state = self.done
                return
        yield from super().read_headers(event)

    def _is_last(self) -> bool:
        """Whether a connection ends with the answer: its client has said so (RFC 9112, 9.6), in capitals too, which
        mitmproxy does not know; or it is of a time when connections were not kept."""
        request = self.request
        assert request is not None
        words = ",".join(request.headers.get_all("connection")).lower().split(",")
        return request.http_version != "HTTP/1.1" or "close" in (word.strip() for word in words)

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        reader, received = self.body_reader, self.buf._data
        between = isinstance(reader, ChunkedReader) and not reader._bytes_in_chunk
        if between and len(received) > MAX_HEAD and received.find(b"\n", 0, MAX_HEAD) < 0:
            return  # the limit of the buffer refuses it; h11 would take it, however long it is, once it has an end
        try:
            yield from super().read_body(event)
        except NotImplementedError:
            # mitmproxy knows no trailers. They end a body, and may be left out (RFC 9110, 6.5.1).
            yield ReceiveHttp(RequestEndOfMessage(self.stream_id))
            yield from self.mark_done(request=True)


class Framing:
    """Takes a request's body out of what a client sends, by the reader that mitmproxy has chosen for it.

    That reader copies each byte three times, so it is shown only what is around bodies and chunks.
    """

    def __init__(self, server: Http1Server) -> None:
        self._server = server
        self.ended = False
        """Whether the body is whole; what came behind it is kept for the next request."""

    def take(self, data: memoryview) -> int:
        """Move the bytes of the body within `data` to its beginning, and return how many they are.

        Raises ClientError for what is no HTTP/1.1.
        """
        kept = self._server.buf
        position = written = 0
        while position < len(data) and not self.ended:
            inside = min(self._missing() - 1, len(data) - position)
            if inside > 0 and not kept:
                if written != position:
                    data[written : written + inside] = data[position : position + inside]
                self._skip(inside)
                position, written = position + inside, written + inside
                continue
            line = data[position : position + LINE]
            kept += bytes(line)
            position += len(line)
            written = self._read(data, written)
        kept += bytes(data[position:])
        return written

    def _read(self, data: memoryview, written: int) -> int:
        """Have the reader go as far as it can. What it has kept is framing, so the body's bytes have room in `data`."""
        try:
            while not self.ended and (event := self._server.body_reader(self._server.buf)) is not None:
                if isinstance(event, h11.Data):
                    data[written : written + len(event.data)] = event.data
                    written += len(event.data)
                else:
                    self._end()
        except h11.ProtocolError as error:
            raise ClientError(f"the body is not framed as HTTP/1.1 has it: {error}") from error
        if not self.ended and len(self._server.buf) > MAX_HEAD:
            raise ClientError("a line of the body's framing has no end", status=431)
        return written

    def _end(self) -> None:
        """As mitmproxy notes it when it has read the end itself."""
        self.ended = True
        self._server.request_done = True
        self._server.state = self._server.wait

    def _missing(self) -> int:
        """How many bytes of the body come before there is framing to be read again."""
        match self._server.body_reader:
            case ContentLengthReader() as reader:
                return int(reader._remaining)
            case ChunkedReader() as reader:
                return int(reader._bytes_in_chunk)
            case _:
                return 0

    def _skip(self, count: int) -> None:
        match self._server.body_reader:
            case ContentLengthReader() as reader:
                reader._remaining -= count
            case ChunkedReader() as reader:
                reader._bytes_in_chunk -= count
            case _:
                raise AssertionError("nothing is missing there")
