"""A crew keeps every post manned, whatever its workers and the system do."""

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mitm_cache.config import LISTENERS, Config, load
from mitm_cache.errors import MitmCacheError
from mitm_cache.workers import crew as crews
from mitm_cache.workers import hand as hands
from mitm_cache.workers.crew import LAST_PAUSE, Crew, pause_after
from mitm_cache.workers.hand import Hand

WORKER = """#!{python} -S
import socket, sys
line = socket.socket(fileno=int(sys.argv[4]))
length = int.from_bytes(line.recv(8)[:4], "big")
while length:
    length -= len(line.recv(length))
line.sendall(b'{{"ready":true}}\\n')
{then}
"""
"""A program in a worker's place, which says that it serves."""
HALF_A_LINE = """line.sendall(b'{"report":{"acc')"""
NO_END = "line.sendall(b'x' * (3 << 20)); line.recv(1)"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    listen = "".join(f"{name} = []\n" for name in LISTENERS)
    path = tmp_path / "config.toml"
    path.write_text(f'data_dir = "{tmp_path / "data"}"\n[listen]\n{listen}')
    return load(file=path, environ={})


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has workers be a program that does `then`."""
    python = sys.executable

    def put(then: str) -> None:
        path = tmp_path / "worker"
        path.write_text(WORKER.format(python=python, then=then))
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


async def end(crew: Crew) -> None:
    crew.dismiss(linger=False)
    crew.kill()
    await asyncio.gather(*crew.posts)


@pytest.mark.parametrize("then", [HALF_A_LINE, NO_END], ids=["half a line", "a line without an end"])
async def test_what_a_worker_says_last(config: Config, program: Callable[[str], None], then: str) -> None:
    """One that is killed while it says something, or talks nonsense, gets a replacement like any other."""
    program(then)
    again = asyncio.Event()
    hired: list[Hand] = []

    def hire() -> Hand:
        hired.append(Hand())
        if len(hired) > 1:
            again.set()
        return hired[-1]

    crew = Crew(config, {}, 1, hire=hire, retire=lambda _hand: None)
    crew.start()
    async with asyncio.timeout(20):
        await crew.complete()
        await again.wait()
    assert not hired[0].alive()
    await end(crew)


async def test_words_of_another_version(
    config: Config, program: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A program that was replaced meanwhile may say more: that is told, once, and its worker serves on."""
    program(r"""
line.sendall(b'{"novel":1}\n[]\n')
for order in line.makefile("rb"):
    if b"drain" in order: break
    line.sendall(order.replace(b'"do":"report"', b'"report":{"numbers":{"novel":1},"usage":{}}'))
""")
    crew = Crew(config, {}, 1, hire=Hand, retire=lambda _hand: None)
    crew.start()
    async with asyncio.timeout(20):
        await crew.complete()
        [hand] = crew.serving
        await hand.ask()
    assert (hand.answers, hand.report, crew.serving) == (True, None, [hand])
    assert caplog.text.count("says what this version does not know; restart the service") == 1
    await end(crew)


async def test_a_process_that_does_not_end(
    config: Config, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that has let go of its line and stays is killed, and its post is manned again."""
    monkeypatch.setattr(hands, "END_SECONDS", 0.1)
    program("line.close(); import signal; signal.pause()")
    again = asyncio.Event()
    hired: list[Hand] = []

    def hire() -> Hand:
        hired.append(Hand())
        if len(hired) > 1:
            again.set()
        return hired[-1]

    crew = Crew(config, {}, 1, hire=hire, retire=lambda _hand: None)
    crew.start()
    async with asyncio.timeout(20):
        await again.wait()
    assert not hired[0].alive()
    assert f"worker {hired[0].pid} has ended: it did not end by itself and was killed" in caplog.text
    await end(crew)


async def test_who_lingers_is_told_not_to(config: Config, program: Callable[[str], None]) -> None:
    """A stop soon after a reload does not wait for connections on which nothing is under way."""
    program("for order in line.makefile():\n    if '\"linger\":false' in order: break")
    crew = Crew(config, {}, 1, hire=Hand, retire=lambda _hand: None)
    crew.start()
    async with asyncio.timeout(20):
        await crew.complete()
        crew.dismiss(linger=True)
        crew.dismiss(linger=False)
        await asyncio.gather(*crew.posts)


async def test_no_process_is_to_be_had(
    config: Config, program: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Where the system starts no process for a while, as without memory, the post is manned once it does."""
    program("")
    working = sys.executable
    tried: list[bool] = []
    manned = asyncio.Event()

    def hire() -> Hand:
        sys.executable = str(Path(working).with_name("missing")) if len(tried) in (1, 2) else working
        tried.append(sys.executable == working)
        hand = Hand()
        if len(tried) > 3:
            manned.set()
        return hand

    crew = Crew(config, {}, 1, hire=hire, retire=lambda _hand: None)
    crew.start()
    async with asyncio.timeout(20):
        await manned.wait()
    await end(crew)
    sys.executable = working
    assert tried[:4] == [True, False, False, True]
    assert f"no worker can be started: {os.strerror(errno.ENOENT)}; it is tried again" in caplog.text


async def test_no_process_at_the_start(config: Config) -> None:
    """Who waits for a crew is told that it never will be complete."""

    def hire() -> Hand:
        raise MitmCacheError("no worker can be started: Cannot allocate memory")

    crew = Crew(config, {}, 2, hire=hire, retire=lambda _hand: None)
    crew.start()
    with pytest.raises(MitmCacheError, match="no worker can be started: Cannot allocate memory"):
        async with asyncio.timeout(20):
            await crew.complete()
    await end(crew)


def test_pauses_grow_and_stay_bounded() -> None:
    """A worker that dies at once each time, for days, is tried again every ten seconds."""
    pauses = [pause_after(deaths) for deaths in range(3000)]
    assert pauses[:3] == [0, 0, crews.FIRST_PAUSE]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE
