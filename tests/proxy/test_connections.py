"""When a connection goes on behind an answer, and when that was the last one."""

import logging
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mitmproxy import http
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.options import Options
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders, ResponseEndOfMessage, ResponseHeaders

from mitm_cache.demo.image import KIB, MIB
from mitm_cache.proxy.deliver import CHUNK
from mitm_cache.proxy.http1 import OneWriteServer
from tests.fakes.big import Pattern, big_image
from tests.fakes.registry import LyingUpstream
from tests.proxy.doors import Doors
from tests.proxy.raw import LISTENERS, Raw, dial, request
from tests.serving import in_thread

HUB = "docker.io"
SMALL, BIG = 3 * KIB, 2 * CHUNK + 5
SLOW = 4 * KIB
"""A receive buffer that is full at once."""


class _Open:
    """Doors, and where there is content of each size."""

    def __init__(self, directory: Path) -> None:
        self.doors = Doors(directory / "data")
        self.contents = {size: random.Random(size).randbytes(size) for size in (SMALL, BIG)}
        self.targets = {size: self.doors.put(content) for size, content in self.contents.items()}

    def ask(self, size: int, *more: str, version: str = "1.1") -> bytes:
        return request(self.targets[size], *more, host=HUB).replace(b" HTTP/1.1", f" HTTP/{version}".encode())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Open]:
    made = _Open(tmp_path_factory.mktemp("connections"))
    with made.doors.opened():
        yield made


@pytest.fixture(params=LISTENERS)
def listener(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("1.1", ["Connection: close"]),
        ("1.1", ["Connection: Close"]),
        ("1.1", ["connection: X-Other ,\tCLOSE"]),
        ("1.1", ["Connection: keep-alive", "Connection: Close"]),
        ("1.0", []),
        ("1.0", ["Connection: keep-alive"]),
        ("1.0", ["Connection: Keep-Alive"]),
    ],
)
@pytest.mark.parametrize("size", [SMALL, BIG])
def test_the_last_answer(scene: _Open, listener: str, version: str, fields: list[str], size: int) -> None:
    """Who asks for the end, in whatever case, or is too old to know of more than one answer, is told and gets it."""
    with dial(scene.doors, listener) as wire:
        wire.send(scene.ask(size, *fields, version=version))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert answer.body == scene.contents[size]
        assert wire.rest() == b""


@pytest.mark.parametrize("fields", [[], ["Connection: keep-alive"], ["Connection: closed, X-Close"], ["Close: 1"]])
def test_there_are_more(scene: _Open, listener: str, fields: list[str]) -> None:
    """Nobody else loses the connection."""
    with dial(scene.doors, listener) as wire:
        for _ in range(2):
            wire.send(scene.ask(SMALL, *fields))
            answer = wire.answer()
            assert answer.body == scene.contents[SMALL]
            assert "connection" not in answer.headers


@pytest.mark.parametrize("before", [b"\r\n", b"\n", b"\r\n\r\n", b"\n\n\r\n\n"])
def test_empty_lines_before_a_request(scene: _Open, listener: str, before: bytes) -> None:
    """They are passed over, however they end (RFC 9112, 2.2), and the request waits for nothing behind it."""
    with dial(scene.doors, listener) as wire:
        for _ in range(2):
            wire.send(before, scene.ask(SMALL))
            assert wire.answer().body == scene.contents[SMALL]


def test_an_old_client_is_not_told_to_go_on(scene: _Open, listener: str) -> None:
    """HTTP/1.0 knows no 100, which its clients would take for the answer (RFC 9110, 10.1.1)."""
    with dial(scene.doors, listener) as wire:
        wire.send(scene.ask(SMALL, "Content-Length: 1", "Expect: 100-continue", version="1.0"), b"x")
        assert wire.answer().body == scene.contents[SMALL]
        assert wire.rest() == b""


@pytest.mark.parametrize("state", [ConnectionState.OPEN, ConnectionState.CAN_WRITE, ConnectionState.CLOSED])
def test_what_is_asked_behind_the_end(state: ConnectionState) -> None:
    """What came with a request is begun when that has been answered, unless its client has left meanwhile."""
    client = Client(peername=("", 0), sockname=("", 0), state=ConnectionState.OPEN)
    server = OneWriteServer(Context(client, Options()))
    begun = [*server.handle_event(events.Start())]
    sent = request("/1", host=HUB) + request("/2", host=HUB)
    begun += server.handle_event(events.DataReceived(client, sent))
    client.state = state
    answer = http.Response.make(200)
    begun += server.handle_event(ResponseHeaders(1, answer, True))
    begun += server.handle_event(ResponseEndOfMessage(1))
    heads = [each.event for each in begun if isinstance(each, ReceiveHttp) and isinstance(each.event, RequestHeaders)]
    assert [head.request.path for head in heads] == (["/1", "/2"] if state is ConnectionState.OPEN else ["/1"])


def test_deliveries_at_the_end_of_the_service(caplog: pytest.LogCaptureFixture) -> None:
    """Bodies that are read by a thread are cut like others, and nothing is told of as a mistake."""
    root = Path("/dev/shm")
    mounts = dict(line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines())
    if mounts.get(str(root)) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    directory = root / f"mitm-cache-test-{os.getpid()}-end"
    directory.mkdir()
    target = f"/v2/team/app/blobs/{Pattern(16 * MIB, 'big 0').digest}"
    caplog.set_level(logging.ERROR)
    wires: list[Raw] = []
    try:
        with LyingUpstream(directory, name=HUB) as upstream:
            upstream.registry.put("team/app", big_image(16 * MIB), "1")
            with in_thread(directory / "data", upstream) as cache:
                with cache.client() as client:
                    assert client.get(target).status == 200
                for number in range(8):
                    wires.append(dial(cache, LISTENERS[number % 3], receive_buffer=SLOW))
                    wires[-1].send(request(target, host=HUB))
                    assert wires[-1].head()[0] == 200
                takers = [threading.Thread(target=wire.rest) for wire in wires]
                for taker in takers:
                    taker.start()
            for taker in takers:
                taker.join()
    finally:
        for wire in wires:
            wire.close()
        shutil.rmtree(directory)
    assert [record.getMessage() for record in caplog.records] == []
