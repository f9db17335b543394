"""Tasks beside something."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mitm_cache.errors import StoreError
from mitm_cache.tasks import Tasks, in_pool


async def fail(ready: asyncio.Event) -> None:
    ready.set()
    raise ZeroDivisionError("a mistake")


def test_a_mistake_of_one_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It ends neither the others nor what they are beside."""

    async def run() -> None:
        async with Tasks() as tasks:
            failed, going_on = asyncio.Event(), asyncio.Event()
            tasks.attempt(fail(failed))
            await failed.wait()
            tasks.attempt(_set(going_on))
            await going_on.wait()

    asyncio.run(run())
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_a_mistake_of_what_all_need_is_the_end() -> None:
    """What regularly does something for all ends the group, which is begun anew then."""

    async def run() -> None:
        async with Tasks() as tasks:
            tasks.start(fail(asyncio.Event()))
            await asyncio.Event().wait()

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(run())
    assert caught.group_contains(ZeroDivisionError)


@pytest.mark.parametrize("how", [Tasks.start, Tasks.attempt])
def test_all_end_with_it(how: Callable[[Tasks, object], None]) -> None:
    """Whatever has not ended by itself is cancelled."""

    async def run() -> None:
        async with Tasks() as tasks:
            how(tasks, _wait(ended := asyncio.Event(), begun := asyncio.Event()))
            await begun.wait()
        assert ended.is_set()

    asyncio.run(run())


def test_a_pool_that_is_closed() -> None:
    """An error of ours, which ends one request."""

    async def run() -> None:
        pool = ThreadPoolExecutor(1)
        pool.shutdown()
        with pytest.raises(StoreError, match="nothing can be done beside the requests"):
            await in_pool(pool, lambda: None)

    asyncio.run(run())


async def _set(event: asyncio.Event) -> None:
    event.set()


async def _wait(ended: asyncio.Event, begun: asyncio.Event) -> None:
    begun.set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()
