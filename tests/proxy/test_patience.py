"""Clients that keep us waiting are cut, each by the limit for what is waited for; who waits for us is not."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import override

import pytest

from mitm_cache.demo.image import MIB
from mitm_cache.proxy.mode import Listeners
from mitm_cache.proxy.patience import UPLOAD_PIECE, Limits
from mitm_cache.proxy.serve import MAX_UNTAKEN
from mitm_cache.upstream.client import Call
from mitm_cache.upstream.passage import Passage
from tests.hostile.cases.tls import hello
from tests.proxy.doors import Doors, Unreachable
from tests.proxy.raw import Raw, dial, request

HUB = "registry-1.docker.io"
LIMITS = Limits(beginning=0.4, head=0.5, idle=0.6, upload=0.7)
CALM = Limits(beginning=1.6, head=1.6, idle=1.6, upload=1.6)
"""For clients that keep to them: they have a second to spare."""
SOON = 10.0
"""Seconds that a loaded machine may add."""


class _Quick(Listeners):
    def __init__(self, **rest: object) -> None:
        super().__init__(limits=LIMITS, **rest)  # type: ignore[arg-type]  # as Doors calls it


class _Calm(Listeners):
    def __init__(self, **rest: object) -> None:
        super().__init__(limits=CALM, **rest)  # type: ignore[arg-type]  # as Doors calls it


class _Taking(Unreachable):
    """Takes what is uploaded, and says nothing before the end."""

    @override
    def relay(self, call: Call, passage: Passage) -> None:
        while passage.read(1 << 16):
            pass
        super().relay(call, passage)


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    made = Doors(tmp_path / "data", listeners=_Quick)
    made.upstream = _Taking()
    with made.opened():
        yield made


@pytest.fixture
def calm(tmp_path: Path) -> Iterator[Doors]:
    made = Doors(tmp_path / "data", listeners=_Calm)
    made.upstream = _Taking()
    with made.opened():
        yield made


def drip(wire: Raw, data: bytes, *, every: float = 0.05) -> None:
    """Send a byte now and then until the connection ends."""
    try:
        for byte in data:
            wire.send(bytes([byte]))
            if select.select([wire.socket], [], [], every)[0]:
                break
    except OSError:
        pass
    wire.rest()


HEAD = request("/v2/", "X-Long: " + "a" * 400, host=HUB)
BODY = request("/v2/", "Content-Length: 9999", host=HUB)
STARTS: dict[str, tuple[str, bytes, bytes, float]] = {
    "nothing": ("clear", b"", b"", LIMITS.beginning),
    "a ClientHello and no more": ("tls", hello(HUB), b"", LIMITS.beginning),
    "a handshake byte by byte": ("tls", hello(HUB), b"\x14\x03\x03\x00\x01\x01" + b"\x17\x03\x03\x10\x00" + bytes(400),
                                 LIMITS.beginning),
    "a head byte by byte": ("clear", b"", HEAD, LIMITS.head),
    "a head at a mirror, byte by byte": ("mirror", b"", HEAD, LIMITS.head),
    "half a head": ("clear", HEAD[:50], b"", LIMITS.head),
    "line breaks": ("clear", b"", b"\r\n" * 200, LIMITS.idle),
    "the body of a pull, byte by byte": ("clear", BODY, bytes(400), LIMITS.head),
    "the body of a pull that does not come": ("clear", BODY, b"", LIMITS.head),
    "an upload byte by byte": (
        "clear", request("/v2/a/b/blobs/uploads/", "Content-Length: 9999", method="POST", host=HUB), bytes(400),
        LIMITS.upload,
    ),
    "an upload that does not come": (
        "clear", request("/v2/a/b/blobs/uploads/", "Content-Length: 9999", method="POST", host=HUB), b"", LIMITS.upload,
    ),
}  # fmt: skip


@pytest.mark.parametrize("start", STARTS)
def test_cut(doors: Doors, start: str) -> None:
    """Whatever comes meanwhile, if it is not what is waited for: the end, not before its time nor long after."""
    listener, first, later, seconds = STARTS[start]
    began = time.monotonic()  # before the cache can begin to count
    with Raw(doors.address(listener)) as wire:
        wire.send(first)
        drip(wire, later)
    assert seconds - 0.2 < time.monotonic() - began < seconds + SOON
    assert doors.listeners.ways == {} or _soon(lambda: doors.listeners.ways == {})


def test_a_refusal_that_is_not_taken_leave_of(doors: Doors) -> None:
    """What is still sent after a refusal is dropped for a while, then the connection is."""
    with Raw(doors.address("clear")) as wire:
        began = time.monotonic()
        wire.send(request("/v2/UP/manifests/1", host=HUB))
        assert wire.answer().status == 400
        while _sends(wire):
            assert time.monotonic() < began + SOON
            select.select([], [], [], 0.05)
        assert time.monotonic() - began > LIMITS.upload - 0.2


def test_cut_inside_tls(doors: Doors) -> None:
    """A head that never ends is cut behind a handshake too."""
    with dial(doors, "tls", name=HUB) as wire:
        began = time.monotonic()
        drip(wire, HEAD)
        assert LIMITS.head - 0.2 < time.monotonic() - began < LIMITS.head + SOON


@pytest.mark.parametrize("listener", ["tls", "clear", "mirror"])
def test_idle(calm: Doors, listener: str) -> None:
    """A connection that waits for its next request is kept for a while, and no longer."""
    target = calm.put(b"content")
    with dial(calm, listener, name=HUB) as wire:
        for _ in range(3):
            wire.send(request(target, host=HUB))
            assert wire.answer().status == 200
            assert not select.select([wire.socket], [], [], CALM.idle * 3 / 8)[0]
        began = time.monotonic()
        assert wire.rest() == b""
        assert time.monotonic() - began < CALM.idle + SOON


def test_who_waits_for_us(doors: Doors) -> None:
    """A client that reads its answer slowly, or asks for another one while it does, is not waited for."""
    target = doors.put(bytes(8 * MIB))
    with dial(doors, "clear", name=HUB, receive_buffer=1 << 16) as wire:
        wire.send(request(target, host=HUB) * 2)
        for _ in range(2):
            assert select.select([wire.socket], [], [], SOON)[0]
            assert select.select([], [], [], 2 * LIMITS.upload) == ([], [], [])
            assert len(wire.answer().body) == 8 * MIB


def test_an_upload_that_goes_on(calm: Doors) -> None:
    """A slow upload lasts longer than the limit, which is for each piece of it."""
    pieces = 10
    with dial(calm, "clear", name=HUB) as wire:
        wire.send(
            request("/v2/a/b/blobs/uploads/", f"Content-Length: {pieces * UPLOAD_PIECE}", method="POST", host=HUB)
        )
        began = time.monotonic()
        for _ in range(pieces):
            wire.send(bytes(UPLOAD_PIECE))
            select.select([], [], [], CALM.upload / 8)
        assert time.monotonic() - began > CALM.upload
        assert wire.answer().status == 502  # there is no upstream, but it has been asked


SHORT = 60_000
"""Bytes of an answer that is written at once, with its head."""


def test_short_answers_that_nobody_takes(tmp_path: Path) -> None:
    """Hundreds of requests in one packet are answered as far as the answers are taken, and then not for long."""
    doors = Doors(tmp_path / "data", listeners=_Quick, stall=LIMITS.idle)
    with doors.opened():
        ask = request(doors.put(bytes(SHORT)), host=HUB)
        with dial(doors, "clear", name=HUB, receive_buffer=4096) as wire:
            wire.send(ask * 400)
            assert doors.log.wait(1)
            assert _soon(lambda: doors.listeners.connections == 0)
        # The kernel takes some megabytes. Another one may be under way, for which its client is gone.
        assert doors.log.count(outcome="HIT") < 200


def test_half_a_head_behind_answers_that_nobody_takes(tmp_path: Path) -> None:
    """A client that is held back because it takes nothing is waited for no longer than another one."""
    doors = Doors(tmp_path / "data", listeners=_Calm)
    with doors.opened():
        ask = request(doors.put(bytes(SHORT)), host=HUB)
        with dial(doors, "clear", name=HUB, receive_buffer=4096) as wire:
            asked = 0
            while _untaken(doors) <= MAX_UNTAKEN:
                wire.send(ask)
                asked += 1
                doors.log.wait(asked)
            wire.send(b"GET")
            assert _soon(lambda: doors.listeners.connections == 0)


def test_who_leaves_its_answer_lying_is_counted(tmp_path: Path) -> None:
    """A client that says no more and takes nothing is there until it is cut: the limits of the crowd hold."""
    doors = Doors(tmp_path / "data", listeners=_Calm)
    with doors.opened():
        ask = request(doors.put(bytes(SHORT)), host=HUB)
        with dial(doors, "clear", name=HUB, receive_buffer=4096) as wire:
            asked = 0
            while not _untaken(doors):
                wire.send(ask)
                asked += 1
                doors.log.wait(asked)
            [left] = doors.listeners._writers
            connected = left.get_extra_info("socket")
            wire.socket.shutdown(socket.SHUT_WR)
            assert _soon(lambda: doors.listeners.connections == 0)
            assert connected.fileno() == -1


def _untaken(doors: Doors) -> int:
    """Bytes that the one client has not taken."""
    return sum(writer.transport.get_write_buffer_size() for writer in list(doors.listeners._writers))


def _sends(wire: Raw) -> bool:
    try:
        wire.send(b"x")
    except OSError:
        return False
    return True


def _soon(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > until:
            return False
        select.select([], [], [], 0.02)
    return True
