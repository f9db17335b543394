"""Receiving: the body of a request to a local name moves from the socket through TLS to who keeps it, past mitmproxy.

By mitmproxy's events each 64 KiB of a push would be copied several times, in the event loop. So the stream yields one
blocking hook on the head of the request. Its coroutine stops mitmproxy's reading, and threads take what the client
sends: never more than a chunk of it is in memory, and not to read is what holds the client back.

What is taken care of, each of it with a test: what mitmproxy has read already comes first; what follows the body is the
next request; a client that sends nothing for a while holds no thread, and one that does so for a minute is cut.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from mitmproxy.addons.proxyserver import Proxyserver

from mitm_cache.answers import explain
from mitm_cache.errors import ClientError, MitmCacheError, StoppingError
from mitm_cache.proxy.deliver import STALL_SECONDS, encrypt
from mitm_cache.proxy.http1 import Framing
from mitm_cache.proxy.patience import UPLOAD_PIECE
from mitm_cache.proxy.peek import Replay, holds
from mitm_cache.proxy.reception import Buffers, GoneError, Inlet, Keeper, Reception
from mitm_cache.proxy.serve import Serve
from mitm_cache.wire.message import Intake, Request, Response

THREADS = 8
"""That take what clients send; as many keep it."""
TICK_SECONDS = 1.0
"""How often it is looked whether a connection that nobody reads from has been closed by ourselves."""
PAUSE_SECONDS = 0.01
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Local(Protocol):
    """Who answers requests for local names that are no GET or HEAD."""

    async def receive(self, request: Request) -> Response | Intake:
        """The answer to a request, judged on its head alone, or where its body goes. What goes wrong is an answer."""
        ...


class Receive:
    """The addon that has such requests answered."""

    def __init__(self, *, proxyserver: Proxyserver, serve: Serve, local: Local, stall: float = STALL_SECONDS) -> None:
        """`stall`: seconds for which a client may send nothing."""
        self._proxyserver = proxyserver
        self._serve = serve
        self._local = local
        self._stall = stall
        self._buffers = Buffers()
        self._asked = 0
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="receive")
        self._keeping = ThreadPoolExecutor(THREADS, thread_name_prefix="receive-keep")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
        self._keeping.shutdown()

    async def receive_body(self, reception: Reception) -> None:
        """Answer a request, and take its body before; where that cannot be, say so in `failure`."""

        async def answer(request: Request) -> Response:
            try:
                return await self._answer(reception, request)
            except (GoneError, TimeoutError) as error:
                reception.failure = str(error) or f"the client sent nothing for {self._stall:.0f} s"
                return explain(ClientError(reception.failure), request)
            except MitmCacheError as error:
                return explain(error, request)

        await self._serve.settle(reception.flow, answer)

    async def _answer(self, reception: Reception, request: Request) -> Response:
        part = reception.take_waiting()
        if reception.whole:
            async with self._serve.held_back(reception.flow.client_conn.id):
                return await self._keep(reception, request, part, None)
        handler, io = self._io(reception)
        async with asyncio.timeout(self._stall):
            await _stop_reading(handler, io)
        try:
            return await self._keep(reception, request, part + reception.take_waiting(), io)
        finally:
            if not io.writer.transport.is_closing():
                io.writer.transport.resume_reading()

    def _io(self, reception: Reception) -> tuple[Any, Any]:
        """mitmproxy's handler of a connection, with its reader and writer. Raises GoneError."""
        client = reception.flow.client_conn
        handler = self._proxyserver.connections.get(client.id)
        io = handler.transports.get(client) if handler is not None else None
        if io is None or not isinstance(io.writer, asyncio.StreamWriter) or io.writer.transport.is_closing():
            raise GoneError("the client is gone")
        return handler, io

    async def _keep(self, reception: Reception, request: Request, part: list[bytes], io: Any) -> Response:
        taken = await self._local.receive(request)
        if isinstance(taken, Response):
            return taken
        reception.received = sum(map(len, part))
        try:
            await self._work(lambda: _write(taken, part))
            if not reception.whole:
                await self._move(reception, taken, io)
            if reception.patience is not None:
                reception.patience.rest()
            return await taken.finish()
        finally:
            taken.close()

    async def _move(self, reception: Reception, intake: Intake, io: Any) -> None:
        writer: asyncio.StreamWriter = io.writer
        if reception.awaits:
            for record in encrypt(reception.tls, CONTINUE):
                writer.write(record)
        framing = Framing(reception.server)
        with _shared(writer) as connected:
            inlet = Inlet(
                connected,
                tls=list(reversed(reception.tls)),
                framing=framing,
                closing=writer.transport.is_closing,
            )
            keeper = Keeper(intake.write, self._keeping)
            before = reception.received
            try:
                while not framing.ended:
                    more = await self._work(lambda: inlet.run(keeper, self._buffers, self._crowded))
                    if not more and not framing.ended:
                        self._expect(reception, before + inlet.received)
                        await self._readable(connected, writer)
            finally:
                reception.received = before + inlet.received
        reception.whole = True

    def _expect(self, reception: Reception, received: int) -> None:
        """A client that sends a byte now and then is cut too."""
        patience = reception.patience
        if patience is not None:
            what = ("receiving", reception.server.stream_id, received // UPLOAD_PIECE)
            patience.expect(what, patience.limits.upload, body=True)

    async def _readable(self, connected: socket.socket, writer: asyncio.StreamWriter) -> None:
        """Wait until the client sends more. Raises GoneError, TimeoutError."""
        loop = asyncio.get_running_loop()
        comes = loop.create_future()

        def tell() -> None:
            loop.remove_reader(connected)
            comes.set_result(None)

        loop.add_reader(connected, tell)
        try:
            async with asyncio.timeout(self._stall):
                while not comes.done():
                    if writer.transport.is_closing():
                        raise GoneError("the connection has been closed")
                    await asyncio.wait([comes], timeout=TICK_SECONDS)
        finally:
            loop.remove_reader(connected)

    async def _work[T](self, work: Callable[[], T]) -> T:
        """Do it in a thread, and in no case go on before it has ended."""
        try:
            done = asyncio.wrap_future(self._pool.submit(work))
        except RuntimeError as error:
            raise StoppingError("the cache is shutting down") from error
        self._asked += 1
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            raise
        finally:
            self._asked -= 1

    def _crowded(self) -> bool:
        """Whether all threads are wanted."""
        return self._asked >= THREADS


def _write(intake: Intake, part: list[bytes]) -> None:
    for data in part:
        intake.write(data)


async def _stop_reading(handler: Any, io: Any) -> None:
    """Have mitmproxy read no more, once it has handed on what has come."""
    transport: asyncio.Transport = io.writer.transport
    while True:
        transport.pause_reading()
        # asyncio's reader may resume what is paused as long as it holds something, which mitmproxy's handler takes.
        if not (io.reader.holds() if isinstance(io.reader, Replay) else holds(io.reader)):
            break
        await asyncio.sleep(PAUSE_SECONDS if transport.get_write_buffer_size() else 0)
    async with handler._server_event_lock:
        pass  # what the handler has taken waits for this lock, in front of us


@contextmanager
def _shared(writer: asyncio.StreamWriter) -> Iterator[socket.socket]:
    """The socket of a connection by a descriptor of our own: asyncio keeps others from waiting for its own one."""
    try:
        connected: socket.socket = writer.get_extra_info("socket").dup()
    except OSError as error:
        raise GoneError(f"the connection has been closed: {error.strerror}") from error
    with connected:
        yield connected
