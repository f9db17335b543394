"""`data_dir/run/control.sock`: how the operator's commands reach a service that runs. Only its user may connect."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from mitm_cache.errors import MitmCacheError
from mitm_cache.workers import channel

NAME = "control.sock"
PATIENCE = 10.0
"""Seconds that a question may take to be asked."""

logger = logging.getLogger(__name__)

type Verb = Callable[[], Awaitable[str]]
"""Does what is asked, and says so. Raises MitmCacheError."""


class Control:
    """Answers at the socket while its context lasts."""

    def __init__(self, folder: Path, verbs: Mapping[str, Verb]) -> None:
        self._folder = folder
        self._verbs = verbs
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            await self._open_socket()
        except OSError as error:
            why = "another service has it" if isinstance(error, FileExistsError) else error.strerror
            path = self._folder / NAME
            logger.warning("%s: %s; 'mitm-cache reload' does not reach this service, SIGHUP does", path, why)
        return self

    async def _open_socket(self) -> None:
        with _connectable(self._folder) as path:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(path)
            except OSError:
                (self._folder / NAME).unlink(missing_ok=True)  # of a service that was killed
            else:
                raise FileExistsError(NAME)
            bound = socket.socket(socket.AF_UNIX)
            before = os.umask(0o177)
            try:
                bound.bind(path)
            finally:
                os.umask(before)
        self._inode = (self._folder / NAME).stat().st_ino
        self._server = await asyncio.start_server(self._answer, sock=bound)

    async def __aexit__(self, *error: object) -> None:
        if self._server is None:
            return
        self._server.close()
        try:
            if (self._folder / NAME).stat().st_ino == self._inode:
                (self._folder / NAME).unlink()
        except FileNotFoundError:
            pass
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            async with asyncio.timeout(PATIENCE):
                asked = channel.parse(await reader.readline()).get("verb")
            try:
                verb = self._verbs.get(asked) if isinstance(asked, str) else None
                if verb is None:
                    raise MitmCacheError(f"there is {', '.join(self._verbs)}")
                answer = {"ok": True, "message": await verb()}
            except MitmCacheError as error:
                answer = {"ok": False, "message": error.message}
            writer.write(channel.line(**answer))
            await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # who has asked is gone, or has asked nothing
        finally:
            self._open.discard(task)
            writer.close()


def ask(folder: Path, verb: str, *, seconds: float) -> dict[str, Any]:
    """Have the service that runs over a data directory do something, given its folder `run`. Raises OSError where
    none answers to the end, ValueError where what answers makes no sense."""
    with _connectable(folder) as path, socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(seconds)
        asking.connect(path)
        asking.sendall(channel.line(verb=verb))
        with asking.makefile("rb") as answers:
            answer = answers.readline(channel.MAX_LINE)
    if not answer:
        raise ConnectionError("the service has ended before it answered; its log may say more")
    return channel.parse(answer)


@contextmanager
def _connectable(folder: Path) -> Iterator[str]:
    """The socket's path, short enough however long the folder's is: an address has 108 bytes (unix(7))."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)
