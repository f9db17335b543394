"""Pushes to local names: a body comes whole and in order to who keeps it, however it is sent, and never all at once."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mitm_cache.answers import explain, small
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.proxy.stream import MAX_UPLOADS
from mitm_cache.wire.message import Intake, Request, Response
from tests.proxy.doors import LOCAL_HOST as NAME
from tests.proxy.doors import Doors
from tests.proxy.raw import Raw, dial, request

KIB, MIB = 1 << 10, 1 << 20
UPLOAD = "/v2/team/app/blobs/uploads/1"


class Kept(Intake):
    """Hashes what it is given."""

    def __init__(self, keeper: "Keeper", request: Request) -> None:
        self._keeper, self.request = keeper, request
        self._hash = hashlib.sha256()
        self.size = self.writes = self.largest = 0
        self.closed = threading.Event()
        self.written = threading.Condition()
        self.finished = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert threading.current_thread().name.startswith("receive")
        assert not self.closed.is_set()
        self._hash.update(data)
        with self.written:
            self.size += len(data)
            self.writes += 1
            self.largest = max(self.largest, len(data))
            self.written.notify_all()
        if self._keeper.limit is not None and self.size > self._keeper.limit:
            raise StoreError("the disk is full")

    async def finish(self) -> Response:
        self.finished = True
        return said(201, f"{self.size} {self._hash.hexdigest()}", self.request)

    def close(self) -> None:
        self.closed.set()

    def wait(self, size: int) -> None:
        with self.written:
            assert self.written.wait_for(lambda: self.size >= size, 20), self.size


def said(status: int, words: str, asked: Request) -> Response:
    return small(status, [], words.encode(), asked, outcome="LOCAL", reason="kept")


@dataclass
class Keeper:
    """A local registry that keeps everything, but for what it refuses by the head."""

    limit: int | None = None
    intakes: list[Kept] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    async def receive(self, request: Request) -> Response | Intake:
        if "refused" in request.target:
            return explain(ClientError("not that", status=403, code="DENIED"), request)
        if request.method == "DELETE":
            return said(202, "deleted", request)
        if "broken" in request.target:
            raise RuntimeError("a mistake")
        kept = Kept(self, request)
        with self.came:
            self.intakes.append(kept)
            self.came.notify_all()
        return kept

    def wait(self, number: int = 1) -> Kept:
        with self.came:
            assert self.came.wait_for(lambda: len(self.intakes) >= number, 20)
            return self.intakes[number - 1]


@dataclass(frozen=True)
class Scene:
    doors: Doors
    keeper: Keeper

    def dial(self, listener: str = "tls", source: str = "127.0.0.1") -> Raw:
        return dial(self.doors, listener, name=NAME, source=source)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    keeper = Keeper()
    with Doors(tmp_path / "data", local=keeper).opened() as doors:
        yield Scene(doors, keeper)


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Scene]:
    """One that waits for two seconds."""
    keeper = Keeper()
    with Doors(tmp_path / "data", local=keeper, stall=2).opened() as doors:
        yield Scene(doors, keeper)


@pytest.fixture(params=["tls", "clear", "mirror"])
def listener(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def bytes_of(size: int) -> bytes:
    return hashlib.shake_128(b"%d" % size).digest(size)


def put(body: bytes, *more: str, method: str = "PUT", target: str = UPLOAD) -> bytes:
    return request(target, f"Content-Length: {len(body)}", *more, method=method, host=NAME)


def proof(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


def chunks(body: bytes, size: int, extension: str = "") -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension.encode(), piece) for piece in pieces)


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize("size", [0, 1, 100, 16 * KIB - 1, 256 * KIB, 256 * KIB + 1, 9 * MIB + 7, 40 * MIB])
def test_by_length(scene: Scene, listener: str, size: int) -> None:
    """Every byte comes, in order, in pieces of a bounded size; the connection can be used again."""
    body = bytes_of(size)
    with scene.dial(listener) as wire:
        for _ in range(2):
            wire.send(put(body), body)
            answer = wire.answer()
            assert (answer.status, answer.body, answer.headers["x-cache"]) == (201, proof(body), "LOCAL")
    assert [event["bytes_in"] for event in scene.doors.log.wait(2, method="PUT")] == [size, size]
    for kept in scene.keeper.intakes:
        assert kept.largest <= 320 * KIB
        assert kept.closed.wait(5)


@pytest.mark.parametrize(
    ("size", "chunk"), [(0, 1), (1, 1), (3000, 7), (MIB, 32 * KIB), (5 * MIB, 65), (20 * MIB, 3 * MIB)]
)
def test_in_chunks(scene: Scene, listener: str, size: int, chunk: int) -> None:
    """Chunks of any size, extensions and trailers."""
    body = bytes_of(size)
    with scene.dial(listener) as wire:
        for number, end in enumerate([b"0\r\n\r\n", b"0\r\nX-Trailer: 1\r\n\r\n"]):
            wire.send(request(UPLOAD, CHUNKED, method="PATCH", host=NAME))
            wire.send(chunks(body, chunk, extension=";a=b" * number), end)
            answer = wire.answer()
            assert (answer.status, answer.body) == (201, proof(body))
    assert [event["bytes_in"] for event in scene.doors.log.wait(2, method="PATCH")] == [size, size]


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_as_it_arrives(scene: Scene, listener: str, pieces: int) -> None:
    """What has been sent has been kept while the rest is still to come: head and body by any pieces."""
    body = bytes_of(pieces * 50)
    whole = put(body) + body
    with scene.dial(listener) as wire:
        for at in range(0, len(whole), pieces):
            wire.send(whole[at : at + pieces])
        assert wire.answer().body == proof(body)


def test_piece_by_piece(scene: Scene, listener: str) -> None:
    """Each piece comes to the keeper before the next is sent."""
    body = bytes_of(64)
    with scene.dial(listener) as wire:
        wire.send(put(body))
        kept = scene.keeper.wait()
        for at in range(8):
            wire.send(body[at * 8 : at * 8 + 8])
            kept.wait(at * 8 + 8)
        assert wire.answer().body == proof(body)


def test_what_follows_is_the_next_request(scene: Scene, listener: str) -> None:
    """Pipelined: the end of a body and the next request in one packet; bodies in both framings, and none."""
    body = bytes_of(3 * MIB + 5)
    with scene.dial(listener) as wire:
        wire.send(
            put(body), body,
            request(UPLOAD, method="DELETE", host=NAME),
            request(UPLOAD, CHUNKED, method="PATCH", host=NAME), chunks(body, 100_000), b"0\r\n\r\n",
            request(UPLOAD, method="DELETE", host=NAME),
            put(b"x"), b"x",
        )  # fmt: skip
        assert wire.answer().body == proof(body)
        assert wire.answer().status == 202
        assert wire.answer().body == proof(body)
        assert wire.answer().status == 202
        assert wire.answer().body == proof(b"x")


def test_an_old_client(scene: Scene) -> None:
    """HTTP/1.0: answered, and closed."""
    with scene.dial() as wire:
        body = bytes_of(MIB)
        wire.send(put(body).replace(b"HTTP/1.1", b"HTTP/1.0"), body)
        assert wire.answer().body == proof(body)
        assert wire.rest() == b""


def test_connection_close(scene: Scene, listener: str) -> None:
    """Answered, and closed."""
    with scene.dial(listener) as wire:
        body = bytes_of(MIB)
        wire.send(put(body, "Connection: close"), body)
        assert wire.answer().body == proof(body)
        assert wire.rest() == b""


def test_who_asks_before_sending(scene: Scene, listener: str) -> None:
    """100 comes once the head has been judged; a refusal comes in its stead."""
    with scene.dial(listener) as wire:
        body = bytes_of(MIB)
        wire.send(put(body, "Expect: 100-continue"))
        assert wire.head() == (100, {})
        wire.send(body)
        assert wire.answer().body == proof(body)
        wire.send(put(body, "Expect: 100-continue", target="/v2/refused/blobs/uploads/1"))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (403, "close")
        assert wire.rest() == b""


def test_refused_by_its_head(scene: Scene, listener: str) -> None:
    """The answer comes at once, and no reset takes it from a client that goes on sending."""
    with scene.dial(listener) as wire:
        wire.send(put(b"", target="/v2/refused/blobs/uploads/1"))
        assert wire.answer().status == 403
        body = bytes_of(20 * MIB)
        wire.send(put(body, target="/v2/refused/blobs/uploads/1"))
        wire.send(body)
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (403, "close")
        assert wire.rest() == b""
    assert scene.keeper.intakes == []
    assert [event["bytes_in"] for event in scene.doors.log.wait(2, outcome="REFUSED")] == [0, 0]


def test_a_full_disk(scene: Scene, listener: str) -> None:
    """What is not kept is answered while the client still sends, and no reset takes the answer."""
    scene.keeper.limit = MIB
    with scene.dial(listener) as wire:
        body = bytes_of(20 * MIB)
        wire.send(put(body))
        wire.send(body)
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert wire.rest() == b""
    assert scene.keeper.wait().closed.wait(5)
    assert not scene.keeper.wait().finished
    [event] = scene.doors.log.wait(1, status=503)
    assert MIB < event["bytes_in"] <= len(body)


def test_a_mistake(scene: Scene) -> None:
    """What nobody has foreseen is answered with 502."""
    with scene.dial() as wire:
        wire.send(put(b"x", target="/v2/broken/blobs/uploads/1"), b"x")
        assert wire.answer().status == 502


@pytest.mark.parametrize(
    "wrong", [b"zz\r\n", b"5\r\nhelloXX0\r\n\r\n", b"5;" + b"x" * 100 * KIB], ids=["size", "end", "line"]
)
@pytest.mark.parametrize("before", [0, MIB])
def test_bad_framing(scene: Scene, listener: str, wrong: bytes, before: int) -> None:
    """It is refused, or cut, and the next request is not read from it."""
    with scene.dial(listener) as wire:
        wire.send(request(UPLOAD, CHUNKED, method="PATCH", host=NAME))
        if before:
            wire.send(chunks(bytes(before), 1000))
            scene.keeper.wait().wait(before)
        wire.send(wrong, put(b"x"), b"x")
        assert b"HTTP/1.1 2" not in wire.rest()
    assert len(scene.keeper.intakes) <= 1


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_client_that_leaves(scene: Scene, listener: str, how: str, framing: str) -> None:
    """The intake is let go of, unfinished, and the connection ends."""
    with scene.dial(listener) as wire:
        head = put(bytes(5 * MIB)) if framing == "length" else request(UPLOAD, CHUNKED, method="PATCH", host=NAME)
        wire.send(head, bytes(MIB) if framing == "length" else chunks(bytes(MIB), 9999))
        kept = scene.keeper.wait()
        kept.wait(MIB)
        if how == "half":
            wire.socket.shutdown(socket.SHUT_WR)
            wire.socket.recv(1)
        elif how == "reset":
            wire.reset()
        else:
            wire.close()
        assert kept.closed.wait(10)
    assert (kept.size, kept.finished) == (MIB, False)
    [event] = scene.doors.log.wait(1, method="PUT" if framing == "length" else "PATCH", outcome="ERROR")
    assert "client" in event["reason"]
    assert event["bytes_in"] == MIB


def test_a_client_that_stalls(impatient: Scene, listener: str) -> None:
    """It is cut, and holds nothing."""
    with impatient.dial(listener) as wire:
        wire.send(put(bytes(5 * MIB)), bytes(MIB))
        kept = impatient.keeper.wait()
        assert kept.closed.wait(10)
        assert wire.rest() == b""
        assert not kept.finished
    [event] = impatient.doors.log.wait(1, method="PUT", outcome="ERROR")
    assert event["reason"] == "the client sent nothing for 2 s"
    assert event["bytes_in"] == MIB


def test_many_that_wait(scene: Scene) -> None:
    """They hold no threads: others are served meanwhile. One address has so many, and no more."""
    wires = [scene.dial("clear") for _ in range(MAX_UPLOADS)]
    try:
        for number, wire in enumerate(wires):
            wire.send(put(bytes(100)), b"first")
            scene.keeper.wait(number + 1).wait(5)
        with scene.dial("clear") as wire:
            wire.send(put(b"x"), b"x")
            assert wire.answer().status == 429
        with scene.dial("clear", source="127.0.0.2") as wire:
            wire.send(put(b"x"), b"x")
            assert wire.answer().status == 201
    finally:
        for wire in wires:
            wire.close()


def test_the_end_of_the_cache(tmp_path: Path) -> None:
    """It ends while clients are in the middle of their bodies: they are cut, and nothing waits for them."""
    keeper, wires = Keeper(), []
    with Doors(tmp_path / "data", local=keeper).opened() as doors:
        for number, listener in enumerate(("tls", "clear", "mirror"), 1):
            wires.append(dial(doors, listener, name=NAME))
            wires[-1].send(put(bytes(100 * MIB)), bytes(MIB))
            keeper.wait(number).wait(MIB)
    for kept, wire in zip(keeper.intakes, wires, strict=True):
        assert kept.closed.is_set()
        assert not kept.finished
        with wire:
            assert b" 201 " not in wire.rest()
