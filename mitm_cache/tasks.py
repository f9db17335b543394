"""Tasks beside something, which end with it, and what threads do for them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Self

from mitm_cache.errors import StoreError

logger = logging.getLogger(__name__)


def in_pool[T](pool: Executor, work: Callable[[], T]) -> asyncio.Future[T]:
    """Have a thread do something that blocks. Raises StoreError where the system has no thread left for it."""
    waiting = [work]

    def do() -> T:
        return waiting.pop()()

    try:
        return asyncio.get_running_loop().run_in_executor(pool, do)
    except RuntimeError as error:  # that is what a pool says then, and when it has been closed
        waiting.clear()  # what it has refused may be in its queue all the same
        raise StoreError(f"nothing can be done beside the requests: {error}") from error


def leave_to(pool: Executor, work: Callable[[], object]) -> None:
    """Have a thread do something that nobody waits for; it is done at once where there is none. For any thread."""
    waiting = [work]

    def do() -> None:
        try:
            one = waiting.pop()
        except IndexError:
            return  # it has been done: what a pool has refused may be in its queue all the same
        one()

    try:
        pool.submit(do)
    except RuntimeError:
        do()


def stop_accepting(server: asyncio.Server) -> None:
    """Close a server; who is connected stays. asyncio alone would lose connections that it has accepted a moment ago:
    nobody would be told of them, and their clients wait."""
    loop = asyncio.get_running_loop()
    for bound in server.sockets:
        loop.remove_reader(bound.fileno())
    loop.call_soon(server.close)  # what is under way has come before


class Attempts:
    """Tasks for some of what is under way: a mistake in one is logged, and is nobody else's end."""

    def __init__(self) -> None:
        self._started: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Begin a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._started.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._started.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task failed for no known reason", exc_info=error)

    def cancel(self) -> None:
        """Have all of them end."""
        for task in self._started:
            task.cancel()

    async def ended(self) -> None:
        """Wait until all of them have."""
        if self._started:
            await asyncio.wait(self._started)


class Tasks:
    """A task group whose tasks are cancelled at its end. What only some of them need is an `attempt`."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._started: set[asyncio.Task[None]] = set()
        self._attempts = Attempts()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Begin a task; what it raises ends the group."""
        task = self._group.create_task(work)
        self._started.add(task)
        task.add_done_callback(self._started.discard)

    def attempt(self, work: Coroutine[None, None, None]) -> None:
        """Begin a task; what it raises is logged, and ends nothing else."""
        self._attempts.start(work)

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._attempts.cancel()
        for task in list(self._started):
            task.cancel()
        await self._attempts.ended()
        await self._group.__aexit__(None, None, None)
