"""One hostile input: what is sent, and what must come of it, in words for the table and as a check."""

import contextlib
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.hostile.scene import HUB, TAG, Scene
from tests.proxy.raw import Answer, Raw, dial, request

SECONDS = 45.0
"""No case may take longer: nearly all of that is a loaded machine's."""


@dataclass(frozen=True, slots=True)
class Case:
    """`must`: what has to happen, in words; `run` fails where it does not; `asks`: upstream may be asked."""

    name: str
    must: str
    run: Callable[[Scene], None]
    asks: bool = False
    seconds: float = SECONDS


class Expectation(Protocol):
    """What must come back on a connection on which something hostile has been sent."""

    @property
    def words(self) -> str: ...

    @property
    def asks(self) -> bool: ...

    def check(self, wire: Raw, method: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Refused:
    """One answer of these statuses, then the end: a request that follows is not served."""

    statuses: tuple[int, ...]
    asks = False

    @property
    def words(self) -> str:
        return f"{_listed(self.statuses)}, and the end of the connection"

    def check(self, wire: Raw, method: str) -> None:
        answer = _answer(wire, method)
        assert answer.status in self.statuses, (answer.status, answer.body)
        assert wire.rest() == b"", "something followed a refusal"


@dataclass(frozen=True, slots=True)
class Cut:
    """Nothing but the end, or the alert by which TLS says it."""

    asks = False

    @property
    def words(self) -> str:
        return "the end of the connection, without an answer"

    def check(self, wire: Raw, method: str) -> None:
        said = wire.rest()
        assert said == b"" or said[0] == 0x15, said[:200]


@dataclass(frozen=True, slots=True)
class Unserved:
    """The end, perhaps behind a refusal; no request in it or behind it is served."""

    asks = False

    @property
    def words(self) -> str:
        return "a refusal or the end of the connection: nothing in it or behind it is served"

    def check(self, wire: Raw, method: str) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            wire.socket.shutdown(socket.SHUT_WR)
        said = wire.rest()
        assert not re.search(rb"HTTP/1\.1 [235]", said), said[:500]


@dataclass(frozen=True, slots=True)
class PassedOn:
    """A request that is no pull: upstream is asked as the client asked, and its answer of this status comes back."""

    status: int
    asks = True

    @property
    def words(self) -> str:
        return f"passed on to the registry that Host names, whose {self.status} comes back"

    def check(self, wire: Raw, method: str) -> None:
        answer = _answer(wire, method)
        assert answer.status == self.status, (answer.status, answer.body)
        assert answer.headers["x-cache"] == "RELAY"


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer of one of these statuses by the cache alone, and the next request on the connection is its own."""

    statuses: tuple[int, ...]
    asks = False

    @property
    def words(self) -> str:
        return f"{_listed(self.statuses)}, by the cache alone"

    def check(self, wire: Raw, method: str) -> None:
        answer = _answer(wire, method)
        assert answer.status in self.statuses, (answer.status, answer.body)


@dataclass(frozen=True, slots=True)
class Served:
    """Harmless: served as if what is odd about it had not been sent, and the request behind it too."""

    behind: bool = True
    asks = True

    @property
    def words(self) -> str:
        return "served as any other request" + (", and the one behind it too" if self.behind else "")

    def check(self, wire: Raw, method: str) -> None:
        assert _answer(wire, method).status == 200
        if self.behind:
            assert _answer(wire, "GET").status == 200


def _answer(wire: Raw, method: str) -> Answer:
    answer = wire.answer(method)
    assert answer.status < 500 or answer.status in (501, 502, 505), answer.body
    return answer


def _listed(statuses: tuple[int, ...]) -> str:
    return " or ".join(map(str, statuses))


type Sent = bytes | Callable[[Scene], bytes]


def wire(
    name: str,
    sent: Sent,
    expected: Expectation,
    *,
    listener: str = "clear",
    method: str = "GET",
    sni: str = HUB,
    follow: bool = True,
) -> Case:
    """Bytes on one connection to a listener, with an honest request behind them."""

    def run(scene: Scene) -> None:
        with dial(scene.cache, listener, name=sni) as raw:
            raw.send(sent if isinstance(sent, bytes) else sent(scene))
            if follow:
                _send_quietly(raw, request(TAG, "Accept: */*", host=HUB))
            expected.check(raw, method)

    return Case(name, expected.words, run, asks=expected.asks)


def plain(name: str, sent: Sent, expected: Expectation, *, listener: str) -> Case:
    """Bytes on a bare TCP connection, whatever its listener speaks."""

    def run(scene: Scene) -> None:
        with Raw(scene.cache.address(listener)) as raw:
            raw.send(sent if isinstance(sent, bytes) else sent(scene))
            expected.check(raw, "GET")

    return Case(name, expected.words, run, asks=expected.asks)


def _send_quietly(raw: Raw, data: bytes) -> None:
    try:
        raw.send(data)
    except OSError:
        pass  # it has been refused already, and what it was told can still be read


@dataclass(slots=True)
class Watch:
    """How long a case may take."""

    limit: float
    began: float = 0.0

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        took = time.monotonic() - self.began
        assert error is not None or took < self.limit, f"{took:.1f} s"
