"""Work in threads that whoever waits for it is cancelled of."""

import asyncio
import threading

import pytest

from mitm_cache.errors import StoreError
from mitm_cache.local.threads import CHORES, Threads


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_goes_on_after_the_work(fails: bool) -> None:
    """What the work uses, such as the lock of an upload, is let go of when it has ended, not before."""
    threads, begun, may_end, ended = Threads(), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        assert may_end.wait(20)
        ended.append(True)
        if fails:
            raise StoreError("the disk is full")

    async def wait() -> None:
        try:
            await threads.run(work)
        finally:
            assert ended

    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait())
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, may_end.set)
    assert task.cancelled()
    threads.close()


async def test_a_failure_is_raised() -> None:
    """As it is, to who waits."""
    threads = Threads()

    def fail() -> None:
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="full"):
        await threads.prove(fail)
    threads.close()


async def test_who_looks_waits_for_nobody() -> None:
    """Pushes that wait for room, however many, do not keep anybody from reading a list."""
    threads, may_end = Threads(), threading.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(2 * CHORES):
            group.create_task(threads.run(lambda: may_end.wait(20)))
        async with asyncio.timeout(10):
            assert await threads.look(lambda: "a list") == "a list"
        may_end.set()
    threads.close()


@pytest.mark.parametrize("kind", ["look", "run", "prove", "open"])
async def test_after_the_end(kind: str) -> None:
    """And where the system has no thread left, the answer says so."""
    threads = Threads()
    threads.close()
    with pytest.raises(StoreError, match="nothing can be done beside the requests"):
        await getattr(threads, kind)(lambda: None)
