"""What is refused of a request's head before anybody parses it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import ClientError
from mitm_cache.proxy.head import MAX_HEAD, refuse_head
from mitm_cache.proxy.peek import read_connect

HEAD = b"GET /v2/ HTTP/1.1\r\nHost: quay.io\r\n\r\n"


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (HEAD, 0),
        (HEAD.replace(b"\r\n", b"\n"), 0),
        (HEAD[:-1], 0),
        (HEAD + bytes(9), 0),  # a body
        (HEAD.replace(b"quay", b"\xffuay"), 0),
        (HEAD.replace(b": ", b":\t"), 0),
        (HEAD.replace(b": ", b": \x0b"), 400),
        (HEAD.replace(b"io\r", b"io\x0c\r"), 400),
        (HEAD.replace(b"GET", b"G\0T"), 400),
        (HEAD.replace(b"quay", b"\x7fuay"), 400),
        (HEAD.replace(b".io\r\n", b".io\rX: y\r\n"), 400),
        (HEAD.replace(b".io\r\n", b".io\r\r\n"), 400),
        (b"a" * MAX_HEAD, 0),
        (b"a" * (MAX_HEAD + 1), 431),
        (b"a" * MAX_HEAD + b"\r\n\r\n", 431),
        (b"a" * (MAX_HEAD - 4) + b"\r\n\r\n" + b"b" * MAX_HEAD, 0),
    ],
)
def test_refusals(received: bytes, status: int) -> None:
    """Control characters, and heads beyond the limit; what is behind a head is not looked at."""
    answer = refuse_head(received)
    assert (int(answer.split()[1]) if answer else 0) == status


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_like_the_model(head: bytes, rest: bytes) -> None:
    """A head that is whole is refused where it has a control character, or a CR without its LF; nothing else is."""
    received = bytearray(head + b"\r\n\r\n" + rest)
    end = min(at + len(mark) for mark in (b"\n\n", b"\n\r\n") if (at := received.find(mark)) >= 0)
    whole = bytes(received[:end]).replace(b"\r\n", b"")
    bad = any((byte < 0x20 and byte not in b"\t\n") or byte == 0x7F for byte in whole)
    assert (refuse_head(received) is not None) == bad


@pytest.mark.parametrize("first", [1 << 10, 64 << 10, 200_000])
async def test_a_connect_of_any_reads(first: int) -> None:
    """The limit holds however much one read brings: its end may come with what is too much."""
    head = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"
    reader = asyncio.StreamReader(limit=1 << 20)
    reader.feed_data(head[first:])
    reader.feed_eof()
    with pytest.raises(ClientError) as caught:
        await read_connect(reader, head[:first])
    assert caught.value.status == 431
