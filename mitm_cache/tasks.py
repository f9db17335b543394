"""Tasks beside something, which end with it."""

import asyncio
from collections.abc import Coroutine
from typing import Self


class Tasks:
    """A task group whose tasks are cancelled at its end."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._started: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Begin a task; what it raises ends the group."""
        task = self._group.create_task(work)
        self._started.add(task)
        task.add_done_callback(self._started.discard)

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in list(self._started):
            task.cancel()
        await self._group.__aexit__(None, None, None)
