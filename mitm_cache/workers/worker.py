"""A process that serves: `python -m mitm_cache.workers.worker DESCRIPTOR PARENT`, started by the supervisor.

It loads the program first (most of a second) and waits for its work then: one that is kept waiting takes over at once.
"""

import asyncio
import logging
import signal
import socket
import sys

from mitm_cache.app import App
from mitm_cache.errors import MitmCacheError
from mitm_cache.workers import channel
from mitm_cache.workers.kernel import end_with, release_memory
from mitm_cache.workers.logs import configure_logging

REPORT_SECONDS = 1.0
"""What has been counted since is lost when the process is killed."""
RELEASE_SECONDS = 20.0
"""Between two times that free memory is given back, which takes some milliseconds."""


def main(descriptor: int, parent: int) -> int:
    """Serve until told to end; the exit status."""
    try:
        end_with(parent)
    except ProcessLookupError:
        return 0
    # These are for the supervisor, which says what follows from them.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    configure_logging()
    # The supervisor tells of the CA, once for everybody.
    logging.getLogger("mitm_cache.ca").setLevel(logging.CRITICAL)
    with socket.socket(fileno=descriptor) as line:
        try:
            work = channel.receive_work(line)
            if work is None:
                return 0
            app = App(work.config, bound=work.bound)
            asyncio.run(_Worker(app, line, work.config.drain).run())
        except MitmCacheError as error:
            line.setblocking(True)
            line.sendall(channel.line(failed=error.message))
            return 1
    return 0


class _Worker:
    def __init__(self, app: App, line: socket.socket, drain: float) -> None:
        self._app = app
        self._line = line
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self._line.dup(), limit=channel.MAX_LINE)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._begin_to_end, self._drain, False)
        works = (self._obey(reader, writer), self._report_regularly(writer), _release_regularly())
        tasks = [loop.create_task(work) for work in works]
        try:
            await self._app.run(lambda: writer.write(channel.line(ready=True)))
            self._report(writer)
            await writer.drain()
        except ConnectionError:
            pass  # the supervisor is gone
        finally:
            for task in (*tasks, *([self._draining] if self._draining else [])):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while order := await reader.readline():
                match channel.parse(order):
                    case {"do": "report", "number": number}:
                        self._report(writer, number)
                    case {"do": "drain", "seconds": seconds, "linger": linger}:
                        self._begin_to_end(seconds, linger)
                    case _:
                        raise AssertionError(f"the supervisor said {order!r}")
        except ConnectionError:
            pass
        self._app.stop()

    def _begin_to_end(self, seconds: float, linger: bool) -> None:
        if self._draining is not None:
            self._draining.cancel()
        work = self._app.drain(seconds, linger=linger)
        self._draining = asyncio.get_running_loop().create_task(work)

    async def _report_regularly(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._report(writer)

    def _report(self, writer: asyncio.StreamWriter, number: int = 0) -> None:
        writer.write(channel.line(report=self._app.report().to_json(), number=number))


async def _release_regularly() -> None:
    while True:
        await asyncio.sleep(RELEASE_SECONDS)
        await asyncio.to_thread(release_memory)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
