"""How a body is taken out of what a client sends, without a proxy around it."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from h11._readers import ChunkedReader, ContentLengthReader
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.connection import Client
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._http1 import Http1Server
from OpenSSL import SSL

from mitm_cache.ca import CertificateAuthority
from mitm_cache.errors import ClientError
from mitm_cache.proxy.http1 import Framing
from mitm_cache.proxy.intercept import _make_context
from mitm_cache.proxy.reception import Buffers, GoneError, Inlet, Keeper

NEXT = b"GET / HTTP/1.1\r\n\r\n"


def make_server(reader: ContentLengthReader | ChunkedReader) -> Http1Server:
    server = Http1Server(Context(Client(peername=("", 0), sockname=("", 0)), Options()))
    server.body_reader = reader
    return server


def take(server: Http1Server, pieces: list[bytes]) -> tuple[bytes, bool]:
    framing, body = Framing(server), b""
    for piece in pieces:
        data = memoryview(bytearray(piece))
        if framing.ended:
            server.buf += piece
        else:
            body += data[: framing.take(data)]
    return body, framing.ended


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[start:stop] for start, stop in zip([0, *at], [*at, len(data)], strict=True)]


@given(st.binary(max_size=400), st.lists(st.integers(min_value=0), max_size=9))
def test_length_in_any_pieces(body: bytes, places: list[int]) -> None:
    """The body is what its length says, and what follows it is kept for the next request."""
    server = make_server(ContentLengthReader(len(body)))
    taken, ended = take(server, cut(body + NEXT, places))
    assert (taken, ended, bytes(server.buf)) == (body, True, NEXT)
    assert (server.request_done, server.state) == (True, server.wait)


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    st.lists(st.integers(min_value=0), max_size=9),
    st.sampled_from([b"", b";a=b", b";c"]),
    st.sampled_from([b"", b"X: y\r\nZ: 1\r\n"]),
)
def test_chunks_in_any_pieces(chunks: list[bytes], places: list[int], extension: bytes, trailers: bytes) -> None:
    """Chunks, their extensions and the trailers, cut anywhere."""
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in chunks)
    server = make_server(ChunkedReader())
    taken, ended = take(server, cut(framed + b"0\r\n" + trailers + b"\r\n" + NEXT, places))
    assert (taken, ended, bytes(server.buf)) == (b"".join(chunks), True, NEXT)


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0), max_size=9))
def test_anything_else(data: bytes, places: list[int]) -> None:
    """Whatever is sent is a body or a ClientError."""
    with suppress(ClientError):
        taken, _ = take(make_server(ChunkedReader()), cut(data, places))
        assert len(taken) <= len(data)


class Ends:
    """Both ends of a connection of so many TLS layers, outermost first; ours takes, the other one sends."""

    def __init__(self, folder: Path, layers: int) -> None:
        now = datetime.now(UTC)
        leaf = CertificateAuthority.ensure(folder, permitted=["a.demo"], now=now).mint("a.demo", now=now)
        self.context = _make_context(leaf.certificate_chain_pem, leaf.private_key_pem)
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.servers, self.clients = [], []
        for _ in range(layers):
            server, client = SSL.Connection(self.context), SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
            server.set_accept_state()
            client.set_connect_state()
            self._shake(server, client)
            self.servers.append(server)
            self.clients.append(client)

    def _shake(self, server: SSL.Connection, client: SSL.Connection) -> None:
        for _ in range(4):
            for one, other in ((client, server), (server, client)):
                with suppress(SSL.WantReadError):
                    one.do_handshake()
                with suppress(SSL.WantReadError):
                    while True:
                        other.bio_write(one.bio_read(1 << 16))

    def wrap(self, data: bytes) -> bytes:
        """As it goes on the wire."""
        for client in reversed(self.clients):
            client.sendall(data)
            data = flush(client)
        return data


def flush(tls: SSL.Connection) -> bytes:
    data = b""
    with suppress(SSL.WantReadError):
        while True:
            data += tls.bio_read(1 << 16)
    return data


@contextmanager
def inlet(ends: Ends, size: int) -> Iterator[tuple[Inlet, Keeper, bytearray]]:
    kept = bytearray()
    framing = Framing(make_server(ContentLengthReader(size)))
    with ThreadPoolExecutor(1) as pool, ends.ours, ends.theirs:
        taken = Inlet(ends.ours, tls=ends.servers, framing=framing, closing=lambda: False)
        yield taken, Keeper(kept.extend, pool), kept


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_layers_of_tls(tmp_path: Path, layers: int) -> None:
    """TLS within TLS is taken off layer by layer, whatever the pieces."""
    ends = Ends(tmp_path, layers)
    body = bytes(range(256)) * 20_000
    with inlet(ends, len(body)) as (taken, keeper, kept):
        sending = threading.Thread(target=ends.theirs.sendall, args=[ends.wrap(body)])
        sending.start()
        while taken.run(keeper, Buffers(), lambda: True) or len(kept) < len(body):
            pass
        sending.join()
        assert kept == body


@pytest.mark.parametrize("layers", [1, 2])
def test_the_end_of_tls(tmp_path: Path, layers: int) -> None:
    """A close_notify in the middle of a body ends it, and so does what is no TLS."""
    for ending in ("close_notify", "nonsense"):
        ends = Ends(tmp_path, layers)
        with inlet(ends, 100) as (taken, keeper, kept):
            ends.theirs.sendall(ends.wrap(b"begun"))
            assert taken.run(keeper, Buffers(), lambda: True) is False
            if ending == "nonsense":
                ends.theirs.sendall(bytes(100))
            else:
                ends.clients[-1].shutdown()
                inner, ends.clients = flush(ends.clients[-1]), ends.clients[:-1]
                ends.theirs.sendall(ends.wrap(inner))
            with pytest.raises(GoneError):
                taken.run(keeper, Buffers(), lambda: True)
            assert kept == b"begun"
