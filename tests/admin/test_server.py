"""The admin listener's HTTP server: what it answers, and what a client cannot make it hold."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from mitm_cache.admin.server import MAX_CONNECTIONS, MAX_HEAD, Page, Server, document

BIG = 64 << 20


async def good(headers: Mapping[str, str]) -> Page:
    return document({"accept": headers.get("accept", "")})


async def big(headers: Mapping[str, str]) -> Page:
    return Page(200, "text/plain", bytes(BIG))


async def broken(headers: Mapping[str, str]) -> Page:
    raise RuntimeError("unexpected")


PAGES = {"/good": good, "/big": big, "/broken": broken}


@asynccontextmanager
async def serving(patience: float = 30.0) -> AsyncIterator[int]:
    """The server at work; its port."""
    bound = socket.create_server(("127.0.0.1", 0))
    port: int = bound.getsockname()[1]
    async with Server([bound], PAGES, admits=lambda _: False, patience=patience):
        yield port


async def tell(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    return head, body


async def received(reader: asyncio.StreamReader) -> int:
    """How many bytes come until the connection ends, in whatever way."""
    count = 0
    try:
        while data := await reader.read(1 << 20):
            count += len(data)
    except ConnectionError:
        pass
    return count


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        pytest.param(b"GET /good HTTP/1.1\r\nAccept: a/b\r\n\r\n", 200, b'"accept": "a/b"', id="a page"),
        pytest.param(b"GET /good?x=1 HTTP/1.0\r\n\r\n", 200, b"accept", id="a query is let be"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 404, b"There is /good, /big, /broken.", id="no page"),
        pytest.param(b"GET /good/ HTTP/1.1\r\n\r\n", 404, b"There is /good", id="nor below one"),
        pytest.param(b"POST /good HTTP/1.1\r\n\r\n", 405, b"GET or HEAD only.", id="method"),
        pytest.param(b"GET /good\r\n\r\n", 400, b"not an HTTP/1.1 request", id="HTTP/0.9"),
        pytest.param(b"\x16\x03\x01\x02\x00\r\n\r\n", 400, b"not an HTTP/1.1 request", id="TLS"),
        pytest.param(b"GET /good HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n", 400, b"cannot be read", id="500 fields"),
        pytest.param(b"GET /good HTTP/1.1\r\nA: " + bytes(2 * MAX_HEAD), 431, b"at most 8192 bytes", id="a long head"),
        pytest.param(b"GET /broken HTTP/1.1\r\n\r\n", 500, b"the log has it", id="a page that fails"),
    ],
)
async def test_answers(request_: bytes, status: int, words: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Each answer has a status and clear words, and is the last one of its connection."""
    caplog.set_level(logging.ERROR)
    async with serving() as port:
        head, body = await tell(port, request_)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert words in body
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert b"\r\nConnection: close" in head
    assert ("RuntimeError: unexpected" in caplog.text) == (status == 500)


async def test_a_wrong_method_is_told_the_right_ones() -> None:
    """405 carries Allow (RFC 9110, 15.5.6)."""
    async with serving() as port:
        head, _ = await tell(port, b"DELETE /good HTTP/1.1\r\n\r\n")
    assert b"\r\nAllow: GET, HEAD" in head


async def test_head() -> None:
    """HEAD has the head of GET and no body."""
    async with serving() as port:
        get, body = await tell(port, b"GET /good HTTP/1.1\r\n\r\n")
        assert await tell(port, b"HEAD /good HTTP/1.1\r\n\r\n") == (get, b"")
    assert body


async def test_an_answer_survives_a_body_that_nobody_wants() -> None:
    """A client that goes on sending reads the answer all the same: no reset takes it away."""
    async with serving() as port:
        head, body = await tell(port, b"POST /good HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n" + bytes(4_000_000))
    assert head.startswith(b"HTTP/1.1 405 ")
    assert body == b"GET or HEAD only.\n"


@pytest.mark.parametrize(
    "request_",
    [b"", b"GET /good HTT", b"GET /big HTTP/1.1\r\n\r\n"],
    ids=["says nothing", "half a head", "reads nothing"],
)
async def test_a_slow_client_is_cut(request_: bytes) -> None:
    """A connection lasts so long and no longer, whatever its client does."""
    async with serving(patience=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request_)
        later, after = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(20):
            assert await received(later) == 0  # its time is over, so that of the one before it is, too
            assert await received(reader) < BIG
        writer.close()
        after.close()
        assert (await tell(port, b"GET /good HTTP/1.1\r\n\r\n"))[0].startswith(b"HTTP/1.1 200 ")


async def test_there_are_not_too_many() -> None:
    """Who comes when all places are taken is told so; once they are free, all is well."""
    async with serving() as port:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        head, body = await tell(port, b"")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Too many connections" in body
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(20):
            while not (await tell(port, b"GET /good HTTP/1.1\r\n\r\n"))[0].startswith(b"HTTP/1.1 200 "):
                pass


async def test_nobody_is_waited_for() -> None:
    """The server ends at once while clients dawdle, and cuts them."""
    async with serving(patience=60) as port:
        connections = []
        for request in (b"", b"GET /good HTT", b"GET /big HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(request)
            connections.append((reader, writer))
        await connections[2][0].readexactly(100)  # the other two have been accepted before
        began = time.monotonic()
    assert time.monotonic() - began < 20
    for reader, writer in connections:
        async with asyncio.timeout(20):
            assert await received(reader) < BIG
        writer.close()
