"""One worker, as the supervisor has it: a process of its own program (exec, never a bare fork), and a line to it."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from mitm_cache.errors import MitmCacheError
from mitm_cache.workers import channel
from mitm_cache.workers.channel import Work

if TYPE_CHECKING:
    from mitm_cache.admin.report import Report

PATIENCE = 2.0
"""Seconds that a worker has to answer: less than what probes wait."""
END_SECONDS = 10.0
"""What a process has to end once it says no more: its last words were that all is done."""
LOOK_SECONDS = 0.1
"""How often it is looked whether a process has ended, where the kernel cannot tell."""
_OTHERS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "NOTIFY_SOCKET", "WATCHDOG_PID")
"""What a service manager has told the supervisor, and nobody else."""
_MEMORY = {"MALLOC_ARENA_MAX": "2"}
"""glibc has eight arenas for each processor; what comes and goes in dozens of threads leaves holes in all of them."""

logger = logging.getLogger(__name__)


class Hand:
    """A process that loads the program, then waits for work. `ready` is set once it serves, or cannot."""

    def __init__(self) -> None:
        """Start one. Raises MitmCacheError where the system has no process, memory or descriptor left for it."""
        try:
            self._line, self._process = _start()
        except OSError as error:
            raise MitmCacheError(f"no worker can be started: {error.strerror}") from error
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[None]] = {}
        self.ready = asyncio.Event()
        self.serves = False
        self._since = 0.0
        self.answers = True
        """Whether it answered when it was asked last."""
        self.failure = ""
        """Why it cannot serve, in words for the operator."""
        self.report: Report | None = None
        self._understood = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def age(self) -> float:
        """Seconds since it began to serve; none where it never did."""
        return time.monotonic() - self._since if self._since else 0.0

    async def work(self, work: Work, told: Callable[[], None]) -> str:
        """Have it serve until it ends; how that was. `told` is called after each thing that it says."""
        try:
            channel.send_work(self._line, work)
            reader, self._writer = await asyncio.open_connection(sock=self._line, limit=channel.MAX_LINE)
            # Who is killed may leave half a line.
            while (line := await reader.readline()).endswith(b"\n"):
                self._take(channel.parse(line))
                told()
        except OSError:
            pass  # it is gone
        except ValueError:
            self.failure = "what it says makes no sense"
            self.kill()
        finally:
            self.serves = False
            for asked in self._asked.values():
                asked.cancel()
        await self.end()
        self.ready.set()
        told()
        return self._how()

    def _take(self, said: dict[str, Any]) -> None:
        from mitm_cache.admin.report import Report  # noqa: PLC0415 - it is loaded while the first workers load

        match said:
            case {"ready": True}:
                self.serves = True
                self._since = time.monotonic()
                self.ready.set()
            case {"failed": str(failure)}:
                self.failure = failure
            case {"report": dict(report), "number": int(number)}:
                if number in self._asked and not self._asked[number].done():
                    self._asked[number].set_result(None)
                try:
                    self.report = Report.from_json(report)
                except ValueError:
                    self._wonder()
            case _:
                self._wonder()

    def _wonder(self) -> None:
        # The program may have been replaced while this process runs: that must not be the end of a worker.
        if self._understood:
            logger.warning("worker %d says what this version does not know; restart the service", self.pid)
        self._understood = False

    async def ask(self) -> None:
        """Bring `report` up to date; `answers` says whether that could be done."""
        number = next(self._numbers)
        self._asked[number] = answered = asyncio.get_running_loop().create_future()
        self._tell(do="report", number=number)
        try:
            async with asyncio.timeout(PATIENCE):
                await answered
            self._note(answers=True)
        except TimeoutError:
            self._note(answers=False)
        finally:
            del self._asked[number]

    def _note(self, *, answers: bool) -> None:
        if answers != self.answers:
            words = "answers again" if answers else f"has not answered for {PATIENCE:g} s"
            logger.warning("worker %d %s", self.pid, words)
        self.answers = answers

    def drain(self, seconds: float, *, linger: bool) -> None:
        """Have it accept no more, and end when what is under way has ended."""
        self._tell(do="drain", seconds=seconds, linger=linger)

    def _tell(self, **order: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(channel.line(**order))

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    async def end(self) -> None:
        """Let go of the line, and wait until the process has ended: it is killed where that takes too long."""
        if self._writer is not None:
            self._writer.close()
        self._line.close()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._ended()
        except TimeoutError:
            self.failure = self.failure or "it did not end by itself and was killed"
            self.kill()
            await self._ended()

    async def _ended(self) -> None:
        while self.alive():
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError:  # no descriptor is left
                await asyncio.sleep(LOOK_SECONDS)
                continue
            gone = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(descriptor, gone.set)
            try:
                await gone.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            self._process.wait()

    def _how(self) -> str:
        status = self._process.returncode
        if self.failure:
            return self.failure
        if status < 0:
            return f"it was killed by {signal.Signals(-status).name}"
        return f"it ended with status {status}"

    def check(self) -> None:
        """Raise MitmCacheError with what has kept it from serving."""
        if not self.serves:
            raise MitmCacheError(self.failure or f"a worker could not start: {self._how()}")


def _start() -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """A process, and our end of the line to it. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            # -P: nothing is imported from whatever folder the service was started in.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mitm_cache.workers.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_MEMORY | {name: value for name, value in os.environ.items() if name not in _OTHERS},
                process_group=0,  # Ctrl-C is for the supervisor
            )
    except OSError:
        ours.close()
        raise
    return ours, process
