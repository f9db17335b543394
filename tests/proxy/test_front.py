"""Token hosts at the tls listener, and the ways a tunnel ends."""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mitm_cache.errors import UpstreamError
from mitm_cache.journal import Event, Journal
from mitm_cache.proxy import tunnel
from mitm_cache.proxy.front import Front, Intercepted
from mitm_cache.registries import Known, Registry
from tests.fakes.registry import Witness
from tests.fakes.trust import Trust

KNOWN = Known([Registry("registry.demo", "registry.demo", auth_hosts=("tokens.demo", "registry.demo"))])


class Gate:
    """A listener that asks a real Front, with a dial that leads to one address and remembers who was asked for."""

    def __init__(self, to: tuple[str, int] | OSError | None) -> None:
        self._to = to
        self.dialled: list[tuple[str, int, bool]] = []
        self.events: list[Event] = []
        self.ways: list[Intercepted | None] = []
        journal = Journal()
        journal.add(self.events.append)
        self._front = Front(known=KNOWN, connect_ports=(443,), dial=self._dial, journal=journal)

    async def _dial(self, host: str, port: int, *, trusted: bool) -> socket.socket:
        self.dialled.append((host, port, trusted))
        if isinstance(self._to, OSError):
            raise self._to
        if self._to is None:
            raise UpstreamError(f"{host} is away")
        return await asyncio.to_thread(socket.create_connection, self._to)

    @asynccontextmanager
    async def open(self, listener: str) -> AsyncIterator[tuple[str, int]]:
        done = asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.ways.append(await self._front.receive(listener, "127.0.0.1", reader, writer))
            writer.close()
            done.set()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()
            await asyncio.wait_for(done.wait(), 30)


async def ask(address: tuple[str, int], name: str, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname=name)
    writer.write(f"GET /token HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read(-1)
    writer.close()
    return answer


async def test_token_hosts_are_tunnelled(tmp_path: Path) -> None:
    """A token host's name at the tls listener: its own certificate, on port 443, trusted as configured."""
    trust = Trust(tmp_path)
    with Witness("tokens.demo", tls=trust.certify("tokens.demo")) as witness:
        gate = Gate(witness.address)
        async with gate.open("tls") as address:
            answer = await ask(address, "tokens.demo", trust.context())
    assert answer.endswith(b"elsewhere")
    assert gate.dialled == [("tokens.demo", 443, True)]
    assert gate.ways == [None]
    [event] = gate.events
    assert (event.outcome, event.reason) == ("TUNNEL", "tokens.demo:443, undecrypted")
    assert event.bytes_out > len(answer)


@pytest.mark.parametrize("name", ["registry.demo", "other.demo", ""])
async def test_other_names_are_not(tmp_path: Path, name: str) -> None:
    """A registry that issues its own tokens is intercepted as any; a name of nobody is left to be refused."""
    hello = _client_hello(name)
    gate = Gate(None)
    async with gate.open("tls") as address:
        _, writer = await asyncio.open_connection(*address)
        writer.write(hello[:10])
        await writer.drain()
        writer.write(hello[10:])
        writer.write_eof()
    writer.close()
    [way] = gate.ways
    assert isinstance(way, Intercepted)
    assert await way.reader.read(5) + await way.reader.read() == hello
    assert gate.dialled == []


async def test_a_token_host_that_is_away(tmp_path: Path) -> None:
    """The connection is closed without a word the client could take for TLS, and the line says why."""
    gate = Gate(None)
    async with gate.open("tls") as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(_client_hello("tokens.demo"))
        assert await reader.read(-1) == b""
    writer.close()
    assert [(event.outcome, event.reason) for event in gate.events] == [("ERROR", "tokens.demo is away")]


async def test_names_of_other_scripts() -> None:
    """They are dialled as the client has written them: another form is no host name to anybody."""
    gate = Gate(None)
    async with gate.open("connect") as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"CONNECT xn--bcher-kva.demo:443 HTTP/1.1\r\n\r\n")
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 502 ")
    writer.close()
    assert gate.dialled == [("xn--bcher-kva.demo", 443, False)]


async def test_no_descriptor_is_left() -> None:
    """The client is told that there is no tunnel, and why."""
    gate = Gate(OSError(errno.EMFILE, "Too many open files"))
    async with gate.open("connect") as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"CONNECT files.demo:443 HTTP/1.1\r\n\r\n")
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 502 ")
    writer.close()
    assert [event.reason for event in gate.events] == ["files.demo cannot be dialled: Too many open files"]


async def test_a_tunnel_of_which_nobody_takes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has said all, and takes nothing, holds neither connection for longer than an idle one."""
    monkeypatch.setattr(tunnel, "IDLE_SECONDS", 0.3)
    cut = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(1 << 20))
                await writer.drain()
        except OSError:
            cut.set()
        finally:
            writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    async with server:
        gate = Gate(server.sockets[0].getsockname())
        async with gate.open("connect") as address:
            with socket.create_connection(address) as client:
                client.sendall(b"CONNECT files.demo:443 HTTP/1.1\r\n\r\n")
                client.shutdown(socket.SHUT_WR)
                await asyncio.wait_for(cut.wait(), 10)
    assert [event.outcome for event in gate.events] == ["TUNNEL"]


async def test_a_client_that_says_nothing() -> None:
    """A connection that ends before it has begun is nobody's."""
    gate = Gate(None)
    async with gate.open("connect") as address:
        _, writer = await asyncio.open_connection(*address)
        writer.close()
    assert gate.dialled == []
    assert gate.events == []


def _client_hello(name: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name or None)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
