"""A gate in the way of bytes: tests open it when they have seen enough, so that nothing has to sleep."""

import threading
from collections.abc import Iterator

from mitm_cache.demo.content import Chunk
from mitm_cache.demo.message import Answer, Around, CutError, Incoming, Proceed

_PATIENCE = 60.0


class Gate:
    """Holds answers back, each by itself, until `allow` or `release`.

    A gate that nobody opens cuts the connection in the end: the test has failed by then.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limit = 0
        self._open = self._broken = False
        self._waiting = 0

    def __repr__(self) -> str:
        return f"Gate({'open' if self._open else f'{self._limit} bytes'}, {self._waiting} waiting)"

    def hang(self) -> Around:
        """A fault: not even headers come before `release`."""

        def fault(incoming: Incoming, proceed: Proceed) -> Answer:
            self._pass(-1)
            return proceed(incoming)

        return fault

    def hold_after(self, number: int) -> Around:
        """A fault: the body stops after `number` bytes, until `allow` or `release`."""
        self._limit = number

        def fault(incoming: Incoming, proceed: Proceed) -> Answer:
            answer = proceed(incoming)
            answer.chunks = self._hold(answer.chunks)
            return answer

        return fault

    def allow(self, number: int) -> None:
        """Let `number` more bytes of each body pass."""
        with self._changed:
            self._limit += number
            self._changed.notify_all()

    def release(self) -> None:
        """Let everything pass from now on."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Cut whatever still waits."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()

    def wait_held(self, number: int = 1, *, timeout: float = 30) -> None:
        """Block until this many answers are being held.

        Raises:
            TimeoutError: they are not, in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting >= number, timeout):
                raise TimeoutError(f"{self!r} instead of {number}")

    def _hold(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        sent = 0
        for chunk in chunks:
            rest = chunk
            while rest:
                allowed = self._pass(sent)
                piece = rest[: max(0, allowed - sent)] if allowed is not None else rest
                yield piece
                sent += len(piece)
                rest = rest[len(piece) :]

    def _pass(self, sent: int) -> int | None:
        """Wait until more than `sent` bytes may pass; how many may, or None for all."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            passed = self._changed.wait_for(lambda: self._open or self._broken or 0 <= sent < self._limit, _PATIENCE)
            self._waiting -= 1
            if self._broken or not passed:
                raise CutError
            return None if self._open else self._limit
