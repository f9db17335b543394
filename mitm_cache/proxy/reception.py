"""A request whose body is received past mitmproxy's events: what is known of it, and how its bytes are taken."""

import select
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from mitmproxy import http
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage
from OpenSSL import SSL

from mitm_cache.proxy.http1 import Framing, OneWriteServer
from mitm_cache.proxy.patience import Patience

CHUNK = 256 << 10
"""Bytes that are taken from a socket at a time."""
RECORD = 16 << 10
"""Bytes in a TLS record at most (RFC 8446, 5.1)."""
TURN = 16 << 20
"""Bytes after which it is another client's turn, if one waits for a thread."""
SMALL = 32 << 10
"""Bytes that are written sooner than another thread is told to."""
LINGER_MS, CROWDED_LINGER_MS = 100, 5
"""Milliseconds that a thread waits for more: to come back costs as much as a chunk."""


@dataclass
class Reception:
    """A request whose body is still to come. `whole` once all of it has been taken; `failure` where it never will be.

    `tls`: innermost first; `waiting`: the events that mitmproxy has made of what it has read; `awaits`: the client
    sends its body once it is told to; `received`: bytes of it that have come and were not refused on the head alone.
    """

    flow: http.HTTPFlow
    server: OneWriteServer = field(repr=False)
    tls: Sequence[SSL.Connection] = field(repr=False)
    waiting: deque[events.Event] = field(repr=False)
    patience: Patience | None = field(repr=False)
    awaits: bool = False
    whole: bool = False
    failure: str = ""
    received: int = 0

    def take_waiting(self) -> list[bytes]:
        """The part of the body that is among the events, which are left without it."""
        part = [event.data for event in self.waiting if isinstance(event, RequestData)]
        self.whole = self.whole or any(isinstance(event, RequestEndOfMessage) for event in self.waiting)
        others = [event for event in self.waiting if not isinstance(event, RequestData | RequestEndOfMessage)]
        self.waiting.clear()
        self.waiting.extend(others)
        return part


@dataclass
class ReceiveBodyHook(commands.StartHook):
    """The head has been read: find out where the body goes, and move it there."""

    name = "receive_body"
    reception: Reception


class GoneError(Exception):
    """The client has left in the middle of a body, or has to."""


class Buffers:
    """Room for a chunk as it comes, and for what is in it: two for each thread at work."""

    def __init__(self) -> None:
        self._free: list[tuple[memoryview, memoryview]] = []

    def borrow(self) -> tuple[memoryview, memoryview]:
        try:
            return self._free.pop()
        except IndexError:
            # Within TLS the beginning of a record may have come before.
            return memoryview(bytearray(CHUNK)), memoryview(bytearray(CHUNK + 2 * RECORD))

    def give_back(self, buffers: tuple[memoryview, memoryview]) -> None:
        self._free.append(buffers)


class Keeper:
    """Has each piece written by a thread of `pool` while the next one is taken: in order, one at a time."""

    def __init__(self, write: Callable[[memoryview], None], pool: Executor) -> None:
        self._write = write
        self._pool = pool
        self._writing: Future[None] | None = None

    def keep(self, piece: memoryview) -> None:
        """Begin to write a piece, once the one before has been written. Raises what `write` does, for that one."""
        self.wait()
        if len(piece) < SMALL:
            self._write(piece)
        else:
            self._writing = self._pool.submit(self._write, piece)

    def wait(self) -> None:
        """Wait until all has been written. Raises what `write` does."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


class Inlet:
    """The bytes of one client, from the socket through TLS and framing. One thread at a time."""

    def __init__(
        self,
        connected: socket.socket,
        *,
        tls: Sequence[SSL.Connection],
        framing: Framing,
        closing: Callable[[], bool],
    ) -> None:
        """`connected` does not block; `tls`: outermost first; `closing`: whether the connection is to end."""
        self._socket = connected
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        self._tls = tls
        self._framing = framing
        self._closing = closing
        self._over = False
        self.received = 0
        """Bytes of the body that have been taken."""

    def run(self, keeper: Keeper, buffers: Buffers, crowded: Callable[[], bool]) -> bool:
        """Take what the client sends, until it sends nothing for a moment, or has sent much and others wait: `crowded`.
        Returns whether there may be more at once.

        Raises GoneError, and MitmCacheError for a body that is not framed well or that is not kept.
        """
        begun = self.received
        here, there = buffers.borrow(), buffers.borrow()
        try:
            while not self._framing.ended and not (self.received - begun >= TURN and crowded()):
                size = self._receive(here[0], CROWDED_LINGER_MS if crowded() else LINGER_MS)
                if not size:
                    return False
                plain = self._open(here[0][:size], here[1]) if self._tls else here[0][:size]
                body = self._framing.take(plain)
                if body:
                    self.received += body
                    keeper.keep(plain[:body])
                    here, there = there, here
                if self._over and not self._framing.ended:
                    raise GoneError("the client has closed its side in the middle of a body")
        finally:
            keeper.wait()
            buffers.give_back(here)
            buffers.give_back(there)
        return not self._framing.ended

    def _receive(self, buffer: memoryview, linger: int) -> int:
        """What has come, 0 where nothing comes for now."""
        if self._closing():
            raise GoneError("the connection has been closed")
        try:
            try:
                size = self._socket.recv_into(buffer)
            except BlockingIOError:
                if not self._poll.poll(linger):
                    return 0
                size = self._socket.recv_into(buffer)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise GoneError("the client is gone") from error
        if not size:
            raise GoneError("the client is gone in the middle of a body")
        return size

    def _open(self, received: memoryview, into: memoryview) -> memoryview:
        """What is within TLS, layer by layer."""
        *outer, innermost = self._tls
        data: memoryview | bytes = received
        for each in outer:
            each.bio_write(data)
            data = b"".join(self._read(lambda: each.recv(RECORD)))  # noqa: B023 - called before the next one
            if not data:
                return into[:0]
        innermost.bio_write(data)
        size = 0
        for count in self._read(lambda: innermost.recv_into(into[size:], RECORD)):  # noqa: B023 - it is to grow
            size += count
        return into[:size]

    def _read[T](self, read: Callable[[], T]) -> Iterator[T]:
        """All that can be read by now."""
        while True:
            try:
                yield read()
            except SSL.WantReadError:
                return
            except SSL.ZeroReturnError:
                self._over = True
                return
            except SSL.Error as error:
                raise GoneError("TLS failed") from error
