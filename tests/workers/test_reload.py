"""What others see of a service while it takes up another configuration."""

import asyncio
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mitm_cache.app import FLUSH_SECONDS, App
from mitm_cache.cli.reload import TIMEOUT
from mitm_cache.config import LISTENERS, load
from mitm_cache.workers import control
from tests.fakes.registry import LyingUpstream
from tests.serving import Process, process


def statuses(url: str, ended: Callable[[], bool]) -> set[int]:
    """What is answered there until it has `ended`. Raises OSError where nothing is."""
    found: set[int] = set()
    while not ended():
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                found.add(answer.status)
        except urllib.error.HTTPError as error:
            found.add(error.code)
            error.close()
    return found


def admin(served: Process) -> str:
    found = re.search(r"^admin\s+(\S+)", "".join(served.said), re.MULTILINE)
    assert found is not None
    return found[1]


def test_it_stays_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old workers serve until the new ones do: a probe that finds nobody would have clients led elsewhere."""
    monkeypatch.setenv("MITM_CACHE_LISTEN_ADMIN", "127.0.0.1:0")
    ended = threading.Event()
    with (
        LyingUpstream(tmp_path) as upstream,
        process(tmp_path / "data", upstream) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        looking = pool.submit(statuses, f"http://{admin(served)}/readyz", ended.is_set)
        try:
            for _ in range(2):
                assert control.ask(served.data / "run", "reload", seconds=TIMEOUT)["ok"] is True
        finally:
            ended.set()
        assert looking.result() == {200}


async def test_who_was_accepted_a_moment_ago_is_waited_for(tmp_path: Path) -> None:
    """A worker that leaves has one more answer for a connection of which the loop has only just heard."""
    flags = {"data_dir": str(tmp_path / "data"), **{f"listen.{name}": [] for name in LISTENERS}}
    app = App(load(environ={}, flags=flags | {"listen.mirror": ["127.0.0.1:0"]}))
    ready = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(app.run(ready.set))
        await ready.wait()
        with socket.create_connection(app.bound.address("mirror")) as client:
            client.setblocking(False)
            for _ in range(2):
                await asyncio.sleep(0)  # it is accepted, and no more
            leaving = group.create_task(app.drain(50, linger=True))
            assert await asyncio.wait([leaving], timeout=10 * FLUSH_SECONDS) == (set(), {leaving})
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, b"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await loop.sock_recv(client, 1 << 16)).startswith(b"HTTP/1.1 200 ")
        await leaving
