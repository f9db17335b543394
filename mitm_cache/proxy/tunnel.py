"""Tunnels: bytes passed on in both directions, undecrypted and uncounted for by anybody but the journal."""

import asyncio
import socket
import time

CHUNK = 64 << 10
IDLE_SECONDS = 900.0
"""A tunnel without a byte in either direction for this long is closed."""


class Tunnel:
    """One client's connection and one server's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._active = time.monotonic()
        self.sent = 0
        self.received = 0

    async def run(self, server: socket.socket, beginning: bytes) -> None:
        """Pass on until both sides have ended, one has broken, or nothing has come for long; closes the server's."""
        server.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=server)
        try:
            writer.write(beginning)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(self._reader, writer, to_client=False))
                group.create_task(self._pass(reader, self._writer, to_client=True))
        except* (OSError, TimeoutError):
            pass  # one side has gone: so does the other
        finally:
            writer.transport.abort()
            self._writer.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, to_client: bool) -> None:
        while data := await self._read(source):
            sink.write(data)
            async with asyncio.timeout(IDLE_SECONDS):  # nothing may be read from the other side any more
                await sink.drain()
            if to_client:
                self.received += len(data)
            else:
                self.sent += len(data)
        if sink.can_write_eof():
            sink.write_eof()

    async def _read(self, source: asyncio.StreamReader) -> bytes:
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    data = await source.read(CHUNK)
            except TimeoutError:
                if time.monotonic() - self._active >= IDLE_SECONDS:
                    raise
                continue  # the other direction is at work
            self._active = time.monotonic()
            return data
