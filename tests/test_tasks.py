"""Tasks beside something."""

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mitm_cache.errors import StoreError
from mitm_cache.tasks import Tasks, in_pool, leave_to, stop_accepting


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


async def test_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pool has refused for that is done by no thread that has time for it later; what must be is done once."""
    may_end, begun, done = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        begun.set()
        assert may_end.wait(20)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with ThreadPoolExecutor(2) as pool:
        busy = in_pool(pool, work)
        assert await asyncio.to_thread(begun.wait, 20)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(StoreError, match="nothing can be done beside the requests"):
                in_pool(pool, lambda: done.append("refused"))
            leave_to(pool, lambda: done.append("now"))
            assert done == ["now"]
        may_end.set()
        await busy
    assert done == ["now"]


async def _set(event: asyncio.Event) -> None:
    event.set()


async def _wait(ended: asyncio.Event, begun: asyncio.Event) -> None:
    begun.set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


@pytest.mark.parametrize("turns", range(6))
async def test_who_was_accepted_stays(turns: int) -> None:
    """Whatever the loop has done of it when a server stops accepting: this one answers, or who has the same socket."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        writer.close()
        await writer.wait_closed()

    with socket.create_server(("127.0.0.1", 0)) as bound, socket.socket() as client:
        client.setblocking(False)
        first = await asyncio.start_server(answer, sock=bound.dup())
        try:
            client.connect(bound.getsockname())
        except BlockingIOError:
            pass
        for _ in range(turns):
            await asyncio.sleep(0)
        stop_accepting(first)
        async with await asyncio.start_server(answer, sock=bound.dup()), asyncio.timeout(20):
            assert await asyncio.get_running_loop().sock_recv(client, 10) == b"here"
