"""Delivery: the body moves from the file through TLS into the socket, past mitmproxy's events.

mitmproxy cannot stream what an addon answers with: it would hold the whole body, or spend four times the CPU on
events. So our stream sends the head, then yields one blocking hook whose coroutine moves the body and never holds more
than one chunk. mitmproxy's internals are used here and in `layer`, `mode`, `stream`; `tests/contracts/` watches them.

What the pump takes care of, each of it with a test: a delivery that fails cuts the connection, so that the next
answer's head never lands inside a body; other connections get a turn after each chunk; the client cannot fill our
memory with pipelined requests meanwhile; a client that takes nothing for a minute is cut.
"""

import asyncio
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from mitmproxy import http
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import commands
from OpenSSL import SSL

from mitm_cache.errors import MitmCacheError
from mitm_cache.proxy.door import Exchange
from mitm_cache.tasks import in_pool
from mitm_cache.wire.message import FileBody, Source, StreamBody

CHUNK = 256 << 10
CROWD = 4
"""Deliveries at once from which on chunks are smaller, so that everybody's turn comes as soon."""
CROWD_CHUNK = 64 << 10
STALL_SECONDS = 60.0
"""A client that takes no byte for this long is cut."""


@dataclass
class Delivery:
    """A body on its way to a client; `complete` only once every byte of it has been handed to the socket."""

    flow: http.HTTPFlow
    body: FileBody | StreamBody
    exchange: Exchange
    tls: Sequence[SSL.Connection] = field(repr=False)
    chunked: bool = False
    sent: int = 0
    complete: bool = False
    failure: str = ""


@dataclass
class DeliverBodyHook(commands.StartHook):
    """The head has been sent: move the body."""

    name = "deliver_body"
    delivery: Delivery


class Pump:
    """The addon that moves bodies."""

    def __init__(self, proxyserver: Proxyserver, reads: Executor, *, stall: float = STALL_SECONDS) -> None:
        """`reads`: threads for reading what is not in the page cache."""
        self._proxyserver = proxyserver
        self._reads = reads
        self._stall = stall
        self._blocking_devices: set[int] = set()
        self._moving = 0

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
                self._moving += 1
                try:
                    if isinstance(delivery.body, FileBody):
                        await self._move(delivery, delivery.body, io.writer)
                    else:
                        await self._pass(delivery, delivery.body, io.writer)
                finally:
                    self._moving -= 1
            delivery.complete = True
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

    async def _move(self, delivery: Delivery, body: FileBody, writer: asyncio.StreamWriter) -> None:
        source, span = body.source, body.span
        writer.transport.set_write_buffer_limits(0)  # drain() then means that the buffer may be used again
        buffer = memoryview(bytearray(min(CHUNK, max(span.length, 1))))
        device = -1
        position = span.start
        while position < span.stop:
            limit = await source.readable(position, span.stop)
            if limit == position:
                await self._pass_rest(delivery, source, span.stop - position, writer)
                return
            if device < 0:
                device = os.fstat(source.fileno()).st_dev
            turn = CHUNK if self._moving < CROWD else CROWD_CHUNK
            chunk = buffer[: min(len(buffer), turn, limit - position)]
            size = await self._read_from(source, chunk, position, device)
            await self._write(delivery, [chunk[:size]], writer)
            position += size
            delivery.sent += size

    async def _pass_rest(self, delivery: Delivery, source: Source, missing: int, writer: asyncio.StreamWriter) -> None:
        """What the disk did not take: it is not in the file, and comes as a stream."""
        if delivery.exchange.response is not None:
            delivery.exchange.response.reason = source.reason
        while data := await source.receive():
            await self._write(delivery, [data], writer)
            delivery.sent += len(data)
            missing -= len(data)
        if missing:
            raise EOFError("the rest came short")

    async def _pass(self, delivery: Delivery, body: StreamBody, writer: asyncio.StreamWriter) -> None:
        delivery.exchange.mark_first_byte()
        writer.transport.set_write_buffer_limits(0)
        while data := await body.source.receive():
            framed = [b"%x\r\n" % len(data), data, b"\r\n"] if delivery.chunked else [data]
            await self._write(delivery, framed, writer)
            delivery.sent += len(data)

    async def _write(
        self, delivery: Delivery, pieces: Iterable[bytes | memoryview], writer: asyncio.StreamWriter
    ) -> None:
        for piece in pieces:
            for record in encrypt(delivery.tls, piece):
                writer.write(record)
        delivery.exchange.mark_first_byte()
        if writer.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        async with asyncio.timeout(self._stall):
            await writer.drain()
        # drain() returns without a pause while the socket takes everything: one fast client would own the loop.
        await asyncio.sleep(0)

    async def _read_from(self, source: Source, buffer: memoryview, position: int, device: int) -> int:
        try:
            size = await self._read(source.fileno(), buffer, position, device)
        except OSError as error:
            source.doubt()
            raise EOFError(f"the cached content cannot be read: {error.strerror}") from error
        if not size:
            source.doubt()
            raise EOFError("a cached file is shorter than it was")
        return size

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
        return await in_pool(self._reads, lambda: os.preadv(fd, [buffer], position))


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
