"""What the product needs of asyncio and leaves to it: where a version does otherwise, these fail first."""

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mitm_cache.listening import bind
from mitm_cache.parsing import Endpoint
from mitm_cache.proxy.peek import holds
from tests.proxy.doors import Doors
from tests.proxy.raw import LISTENERS, dial, request


@pytest.mark.parametrize("listener", LISTENERS)
def test_accepted_sockets_do_not_wait(tmp_path: Path, listener: str) -> None:
    """TCP_NODELAY is on for what our listeners accept: without it each small answer takes 40 ms."""
    doors = Doors(tmp_path / "data")
    with doors.opened(), dial(doors, listener) as wire:
        wire.send(request("/v2/X/tags/list", host="docker.io"))
        assert wire.answer().status == 400
        [writer] = doors.listeners._writers
        accepted = writer.get_extra_info("socket")
        assert accepted.getpeername()[1] == wire.local_port
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0, (
            "asyncio no longer sets TCP_NODELAY on what a socket with proto=IPPROTO_TCP accepts"
        )


async def test_a_socket_without_a_protocol_is_left_alone() -> None:
    """Why `bind` says IPPROTO_TCP: asyncio leaves TCP_NODELAY off where the socket does not. If this fails, it may be
    simpler."""
    assert bind_and_accept_option(await _nodelay(lambda: socket.create_server(("127.0.0.1", 0)))) is False
    assert bind_and_accept_option(await _nodelay(lambda: bind("clear", Endpoint("127.0.0.1", 0)))) is True


def bind_and_accept_option(value: int) -> bool:
    return value != 0


async def _nodelay(make: Callable[[], socket.socket]) -> int:
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listening = make()
    async with await asyncio.start_server(accept, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        value = await accepted
        writer.close()
        await writer.wait_closed()
    return value


async def test_drain_means_that_the_buffer_is_free() -> None:
    """With write buffer limits of 0, `drain` returns only when every byte was handed to the kernel: the pump may then
    use its buffer again."""
    left: asyncio.Future[tuple[bool, int]] = asyncio.get_running_loop().create_future()
    go_on = threading.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)
        writer.write(bytes(32 << 20))
        waited = writer.transport.get_write_buffer_size() > 0
        go_on.set()
        await writer.drain()
        left.set_result((waited, writer.transport.get_write_buffer_size()))
        writer.close()

    def take(address: tuple[str, int]) -> int:
        with socket.create_connection(address) as wire:
            assert go_on.wait(10)
            return sum(iter(lambda: len(wire.recv(1 << 20)), 0))

    async with await asyncio.start_server(accept, sock=bind("clear", Endpoint("127.0.0.1", 0))) as server:
        taken = asyncio.to_thread(take, server.sockets[0].getsockname())
        assert await taken == 32 << 20
    assert await left == (True, 0), "StreamWriter.drain returns while bytes are left"


async def test_abort_drops_what_is_buffered() -> None:
    """`transport.abort` ends a connection at once, though its client takes nothing; `close` would wait for it."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(64 << 20))
        writer.transport.abort()
        with pytest.raises(ConnectionError):
            await writer.drain()
        ended.set_result(None)

    async with await asyncio.start_server(accept, sock=bind("clear", Endpoint("127.0.0.1", 0))) as server:
        with socket.create_connection(server.sockets[0].getsockname()):
            async with asyncio.timeout(5):
                await ended


async def test_what_a_reader_holds_can_be_told() -> None:
    """`StreamReader._buffer` is what has come and has not been read. As long as there is some, reading may resume a
    transport that we have paused; without any it does not."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport: Any = writer.transport
        await reader.readexactly(1)
        buffer: bytearray = reader._buffer  # type: ignore[attr-defined]  # it is what this test is about
        while len(buffer) <= 2 * 65536:  # noqa: ASYNC110 - nobody tells; from there on it pauses by itself
            await asyncio.sleep(0)
        transport.pause_reading()
        while holds(reader):
            await reader.read(65535)
            transport.pause_reading()
        waiting = asyncio.get_running_loop().create_task(reader.read(1))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not transport.is_reading()
        assert not waiting.done()
        # Others may wait for the same socket by another descriptor.
        mine = writer.get_extra_info("socket").dup()
        assert mine.gettimeout() == 0
        came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(mine, came.set_result, None)
        await came
        asyncio.get_running_loop().remove_reader(mine)
        assert mine.recv(1 << 20)
        mine.close()
        transport.resume_reading()
        await waiting
        transport.abort()
        ended.set_result(None)

    def send(address: tuple[str, int]) -> None:
        with socket.create_connection(address) as wire:
            try:
                while True:
                    wire.sendall(bytes(1 << 20))
            except OSError:
                pass

    async with await asyncio.start_server(accept, sock=bind("clear", Endpoint("127.0.0.1", 0))) as server:
        sending = asyncio.to_thread(send, server.sockets[0].getsockname())
        async with asyncio.timeout(20):
            await sending
            await ended
