"""A supervisor, with programs in its workers' place that do what a test needs."""

import asyncio
import os
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from mitm_cache.config import LISTENERS, Config, load
from mitm_cache.errors import MitmCacheError
from mitm_cache.workers.start import prepare
from mitm_cache.workers.supervisor import MOST_LEAVING, Supervisor

WORKER = """#!{python} -S
import itertools, json, os, socket, sys, time
line = socket.socket(fileno=int(sys.argv[4]))
length, sockets = int.from_bytes(line.recv(4), "big"), line.recv(4)
while length:
    length -= len(line.recv(length))
for number in itertools.count(1):
    try: open(f"{folder}/{{number}}", "x").close()
    except FileExistsError: continue
    break
def say(**words):
    line.sendall(json.dumps(words).encode() + b"\\n")
def report(number, requests):
    numbers = dict(requests={{"quay.io HIT 2xx": requests}})
    say(number=number, report=dict(accepting=True, in_flight=0, numbers=numbers, away=dict(), usage=dict()))
{then}
"""
UNTIL_IT_NEED_NOT_LINGER = """
say(ready=True)
for order in line.makefile():
    if json.loads(order).get("linger") is False: break
"""
THE_SECOND_CANNOT = """
if number == 3:
    while not os.path.exists("{folder}/fail"): time.sleep(0.01)
    say(failed="no luck")
    sys.exit(1)
say(ready=True)
for order in map(json.loads, line.makefile()):
    if order["do"] == "report": report(order["number"], number)
    elif number == 1: break
    if number == 2 and os.path.exists("{folder}/end"): break
"""


type Start = Callable[..., AbstractAsyncContextManager[Supervisor]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A supervisor of workers that do `then`, with `load` for reloads."""
    monkeypatch.setattr(os, "isatty", lambda _: False)

    @asynccontextmanager
    async def started(then: str, read: Callable[[], Config]) -> AsyncIterator[Supervisor]:
        path = tmp_path / "worker"
        path.write_text(WORKER.format(python=sys.executable, folder=tmp_path, then=then.format(folder=tmp_path)))
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))
        config = configured(tmp_path)
        supervisor = Supervisor(config, *prepare(config), load=read)
        ready = asyncio.Event()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(supervisor.run(ready.set))
            await ready.wait()
            yield supervisor
            os.kill(os.getpid(), signal.SIGTERM)

    return started


def configured(folder: Path, workers: int = 1) -> Config:
    listen = "".join(f"{name} = []\n" for name in LISTENERS if name != "admin")
    path = folder / "config.toml"
    path.write_text(
        f'data_dir = "{folder / "data"}"\n[listen]\n{listen}admin = ["127.0.0.1:0"]\n[serve]\nworkers = {workers}\n'
    )
    return load(file=path, environ={})


async def until(check: Callable[[], bool]) -> None:
    while not check():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)


async def test_hang_ups_in_a_row(tmp_path: Path, start: Start) -> None:
    """However many signals wait, the configuration is read once more: it is then what the last of them was for."""
    read: list[Config] = []

    def load() -> Config:
        read.append(configured(tmp_path))
        return read[-1]

    async with start(UNTIL_IT_NEED_NOT_LINGER, load) as supervisor:
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: len(read) == 1)
        assert "reloaded" in await supervisor.reload()
        assert len(read) == 2


async def test_reloads_that_wait_are_one(tmp_path: Path, start: Start) -> None:
    """Whoever asks again, as after a time-out, gets the answer of the one that has yet to begin."""
    read: list[Config] = []

    def load() -> Config:
        read.append(configured(tmp_path))
        return read[-1]

    async with start(UNTIL_IT_NEED_NOT_LINGER, load) as supervisor:
        said = await asyncio.gather(*(supervisor.reload() for _ in range(MOST_LEAVING)))
        assert ["reloaded" in each for each in said] == [True] * MOST_LEAVING
        assert len(read) == 1


async def test_crews_that_stay_are_bounded(tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Each reload leaves workers behind for as long as old connections last: another one waits for some to end."""
    async with start(UNTIL_IT_NEED_NOT_LINGER, lambda: configured(tmp_path)) as supervisor:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        first = children.read_text().split()[-1]
        for _ in range(MOST_LEAVING):
            await supervisor.reload()

        async def release() -> int:
            await until(lambda: "a reload waits" in caplog.text)
            os.kill(int(first), signal.SIGKILL)
            return caplog.text.count("reloaded")

        said, before = await asyncio.gather(supervisor.reload(), release())
        assert "reloaded" in said
        assert before == MOST_LEAVING


async def test_figures_of_a_crew_that_fails(tmp_path: Path, start: Start) -> None:
    """What those of it have served who could is counted from the first to the last."""
    async with start(THE_SECOND_CANNOT, lambda: configured(tmp_path, 2)) as supervisor:
        host, port = supervisor.bound.address("admin")

        def counted() -> int:
            with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
                found = re.search(r"^mitm_cache_requests_total\{.*\} (\d+)", answer.read().decode(), re.MULTILINE)
            return int(found[1]) if found else 0

        async def reload() -> None:
            with pytest.raises(MitmCacheError, match="no luck"):
                await supervisor.reload()

        async def see_it_fail() -> None:
            await until((tmp_path / "3").exists)
            while await asyncio.to_thread(counted) < 3:  # of 1 and 2
                pass
            (tmp_path / "fail").touch()

        await asyncio.gather(reload(), see_it_fail())
        assert await asyncio.to_thread(counted) == 3
        (tmp_path / "end").touch()
        while supervisor._leaving:
            await asyncio.to_thread(counted)
        assert await asyncio.to_thread(counted) == 3
