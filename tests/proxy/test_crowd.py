"""How many connections there may be, and that those that are open cost the others little."""

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.demo.image import KIB, generate
from mitm_cache.journal import Journal
from mitm_cache.proxy.crowd import MAX_TOLD, PER_CONNECTION, RESERVED, Crowd, room
from mitm_cache.proxy.mode import Listeners
from tests.fakes.registry import LyingUpstream
from tests.proxy.doors import Doors
from tests.proxy.raw import Raw, request
from tests.serving import process

HUB = "registry-1.docker.io"
TAG = "/v2/team/app/manifests/1"


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_counting(steps: list[tuple[bool, str]]) -> None:
    """Never more than the limits, and exactly as many as have come and not gone."""
    crowd, inside = Crowd(5, 3), list[str]()
    for comes, address in steps:
        if comes:
            reason = crowd.enter(address)
            assert bool(reason) == (inside.count(address) >= 3 or len(inside) >= 5)
            inside += [] if reason else [address]
        elif address in inside:
            crowd.leave(address)
            inside.remove(address)
        assert crowd.total == len(inside)


def test_told_once() -> None:
    """A flood of refusals is one line, until a connection of that address has ended."""
    crowd = Crowd(10, 1)
    assert crowd.enter("a") == ""
    assert "more than 1 connections of one address" in crowd.enter("a")
    assert [crowd.tells("a"), crowd.tells("a"), crowd.tells("b")] == [True, False, True]
    crowd.leave("a")
    assert crowd.tells("a")


def test_who_has_many_addresses() -> None:
    """All of an IPv6 /64 have half of the room, and one line of the log; the other half is for everybody else."""
    crowd, host = Crowd(10, 3), [f"fd00::1:{number:x}" for number in range(9)]
    assert [crowd.enter(each) for each in host[:5]] == [""] * 5
    assert all("more than 5 connections of fd00::/64" in crowd.enter(each) for each in host)
    assert [crowd.tells(each) for each in host[:3]] == [True, False, False]
    assert [crowd.enter("fd00:0:0:1::1"), crowd.enter("10.0.0.1"), crowd.enter("fe80::1%eth0")] == [""] * 3
    crowd.leave(host[0])
    assert [crowd.enter(host[7]), crowd.tells(host[8])] == ["", True]
    for each in (*host[1:5], host[7], "fd00:0:0:1::1", "10.0.0.1", "fe80::1%eth0"):
        crowd.leave(each)
    assert (crowd.total, crowd._open) == (0, {})


def test_the_told_are_not_remembered_for_ever() -> None:
    """A flood from addresses that never have a connection takes no more memory after a while."""
    crowd = Crowd(0, 1)
    assert all(crowd.tells(f"fd00:{number:x}::1") for number in range(3 * MAX_TOLD))
    assert len(crowd._told) <= MAX_TOLD
    assert not crowd.tells(f"fd00:{3 * MAX_TOLD - 1:x}::1")


def test_room() -> None:
    """The limit of this process is raised to what it may have, and some of it is kept."""
    allowed = room()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    assert allowed <= (soft - RESERVED) // PER_CONNECTION or allowed == 16


class _Few(Listeners):
    def __init__(self, *, journal: Journal, **rest: object) -> None:
        super().__init__(journal=journal, crowd=Crowd(5, 3), **rest)  # type: ignore[arg-type]  # as Doors calls it


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    made = Doors(tmp_path / "data", listeners=_Few)
    with made.opened():
        yield made


def test_too_many_of_one(doors: Doors) -> None:
    """The fourth connection of an address is closed at once, and another one is let in when one has gone."""
    with ExitStack() as stack:
        own = [stack.enter_context(Raw(doors.address("mirror"))) for _ in range(3)]
        for wire in own:
            wire.send(request("/v2/", host="localhost"))
            assert wire.answer().status == 200
        for _ in range(3):
            with Raw(doors.address("mirror")) as late:
                assert late.rest() == b""
        with Raw(doors.address("mirror"), source="127.0.0.2") as other:
            other.send(request("/v2/", host="localhost"))
            assert other.answer().status == 200
        assert doors.log.count(outcome="REFUSED", client="127.0.0.1") == 1
        own[0].close()
        until = time.monotonic() + 10
        while True:  # the cache sees the end a moment later
            with Raw(doors.address("mirror")) as again:
                again.send(request("/v2/", host="localhost"))
                try:
                    assert again.answer().status == 200
                    break
                except (EOFError, OSError):
                    assert time.monotonic() < until


@pytest.mark.slow
def test_thousands(tmp_path: Path) -> None:
    """8,000 idle connections of twenty addresses: others are answered as before, and each costs little memory."""
    number, addresses = 8000, 20
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < number + 1000:
        pytest.skip(f"needs ulimit -n of {number + 1000}, has {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with (
        LyingUpstream(tmp_path, name=HUB) as upstream,
        process(tmp_path / "data", upstream) as cache,
        ExitStack() as idle,
    ):
        upstream.registry.put("team/app", generate(sizes=[KIB]), "1")
        quiet = _median(cache.address("mirror"))
        before = _memory(cache.pid)
        for index in range(number):
            plain = idle.enter_context(socket.socket())
            plain.bind((f"127.0.0.{index % addresses + 2}", 0))
            plain.connect(cache.address("mirror"))
            if index % 2:
                plain.sendall(request("/v2/", host="localhost"))
                assert plain.recv(4096).startswith(b"HTTP/1.1 200 ")
        crowded = _median(cache.address("mirror"))
        cost = (_memory(cache.pid) - before) / number
    print(f"{number} idle connections: {cost / KIB:.0f} KiB each, median {quiet:.1f} ms, then {crowded:.1f} ms")  # noqa: T201
    assert cost < 128 * KIB
    assert crowded < 3 * quiet + 10


def _median(address: tuple[str, int]) -> float:
    times = []
    with Raw(address) as wire:
        for _ in range(50):
            started = time.monotonic()
            wire.send(request(TAG, "Accept: */*", host="localhost"))
            assert wire.answer().status == 200
            times.append((time.monotonic() - started) * 1000)
    return sorted(times)[len(times) // 2]


def _memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * KIB
