"""Bytes on their way between the event loop and a thread: few of them at a time, however long the whole is."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from mitm_cache.errors import ClientError, MitmCacheError, StoppingError

LIMIT = 1 << 20
"""Bytes that wait in a channel before its writer waits too."""
PATIENCE = 60.0
"""Seconds that a thread waits for the other side, which is a client: by then it has stalled."""
TICK = 1.0


class Channel:
    """One end is the event loop's and the other a thread's; each may be the one that writes.

    The loop writes by `send` and `room`, and reads by `receive`; the thread by `put` and `get`.
    """

    def __init__(self, *, stopped: Callable[[], bool], patience: float = PATIENCE) -> None:
        """`stopped`: whether the service is ending; a thread that waits asks once a second."""
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._changed = threading.Condition()
        self._stopped = stopped
        self._patience = patience
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._failure: MitmCacheError | None = None
        self.waiting = 0
        self.taken = 0

    @property
    def failed(self) -> bool:
        """Whether either end has given up."""
        return self._failure is not None

    @property
    def full(self) -> bool:
        """Whether the writer had better wait."""
        return self.waiting >= LIMIT

    def end(self) -> None:
        """No more will be written."""
        with self._changed:
            self._ended = True
            self._tell()

    def fail(self, error: MitmCacheError) -> None:
        """Give up: whoever waits at the other end, or comes there later, is told `error`."""
        with self._changed:
            self._failure = self._failure or error
            self._pieces.clear()
            self.waiting = 0
            self._tell()

    def wake(self) -> None:
        """Have the loop look again at what it waits for."""
        with self._changed:
            self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        try:
            self._loop.call_soon_threadsafe(self._moved.set)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits there

    def _push(self, data: bytes) -> None:
        self._pieces.append(data)
        self.waiting += len(data)
        self._tell()

    def _pop(self, limit: int) -> bytes:
        piece = self._pieces.popleft()
        if len(piece) > limit:
            self._pieces.appendleft(piece[limit:])
            piece = piece[:limit]
        self.waiting -= len(piece)
        self.taken += len(piece)
        self._tell()
        return piece

    def send(self, data: bytes) -> None:
        """Write from the loop, which waits for nothing here: see `full`."""
        with self._changed:
            if self._failure is None:
                self._push(data)

    async def room(self, enough: Callable[[], bool]) -> None:
        """Wait, in the loop, until there is room, the other end has given up, or it is `enough`: see `wake`."""
        while self.full and not self.failed and not enough():
            self._moved.clear()
            await self._moved.wait()

    async def receive(self, limit: int = LIMIT) -> bytes:
        """Up to `limit` bytes for the loop; b"" at the end. Raises what the other end failed with."""
        while True:
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                if self._pieces:
                    return self._pop(limit)
                if self._ended:
                    return b""
                self._moved.clear()
            await self._moved.wait()

    def put(self, data: bytes) -> None:
        """Write from the thread, once there is room. Raises MitmCacheError."""
        with self._changed:
            self._wait(lambda: not self.full)
            self._push(data)

    def get(self, limit: int) -> bytes:
        """Up to `limit` bytes for the thread; b"" at the end. Raises MitmCacheError."""
        with self._changed:
            self._wait(lambda: bool(self._pieces) or self._ended)
            return self._pop(limit) if self._pieces else b""

    def _wait(self, ready: Callable[[], bool]) -> None:
        waited = 0.0
        while True:
            if self._failure is not None:
                raise self._failure
            if ready():
                return
            if self._stopped():
                raise StoppingError("the cache is shutting down")
            if waited >= self._patience:
                raise ClientError(f"the client has not gone on for {self._patience:.0f} s", status=408)
            self._changed.wait(TICK)
            waited += TICK
