"""How long a client may keep us waiting: for its TLS, a request's head or body, or its next request."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

UPLOAD_PIECE = 64 << 10
"""Bytes of an upload that have to come within `Limits.upload`: less than 250 a second is no client."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. Clients keep idle connections for 90 at most (Go's default), so they are the first to close one."""

    beginning: float = 30.0
    """From a connection's beginning to the end of TLS's handshake, or to the first bytes of a request."""
    head: float = 30.0
    """For a request's head from its first byte on, and for the body of a pull, which is of no use."""
    idle: float = 120.0
    """For the next request."""
    upload: float = 300.0
    """For each UPLOAD_PIECE of a body that is passed on; and for a client to take its refusal."""


class Patience:
    """One connection's alarm clock. What is waited for is told by `expect`; at its end the connection is cut."""

    def __init__(self, writer: asyncio.StreamWriter, limits: Limits, *, held_back: Callable[[], bool]) -> None:
        """`held_back`: whether the client is not read from, so that a body does not come because of us."""
        self.limits = limits
        self._transport = writer.transport
        self._held_back = held_back
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._waiting_for: object = None
        self._body = False
        self.expect("the beginning", limits.beginning)

    def expect(self, what: object, seconds: float, *, body: bool = False) -> None:
        """Wait for something from now on; it is not begun anew where the same is waited for already.

        `body`: it may be us who do not let it come. Between requests only a client is held back that does not take
        its answers.
        """
        if what != self._waiting_for:
            self.rest()
            self._waiting_for, self._body = what, body
            self._alarm = self._loop.call_later(seconds, self._ring, seconds)

    def rest(self) -> None:
        """Nothing is expected of the client."""
        self._waiting_for = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self, seconds: float) -> None:
        if self._body and self._held_back():
            self._alarm = self._loop.call_later(seconds, self._ring, seconds)
        else:
            self._transport.abort()
