"""A registry that is away is not asked again and again."""

import threading

import pytest

from mitm_cache.errors import UnreachableError
from mitm_cache.registries import DOCKER_HUB, Registry
from mitm_cache.upstream.breaker import LAST_SECONDS, Absence, Breaker, Place
from mitm_cache.wire.redirect import Origin
from tests.clock import Clock

HUB = Place(DOCKER_HUB, Origin("https", "registry-1.docker.io", 443), "https://registry-1.docker.io/v2/")
TOKENS = Place(DOCKER_HUB, Origin("https", "auth.docker.io", 443), "https://auth.docker.io/", home=False)
QUAY = Place(Registry("quay.io", "quay.io"), Origin("https", "quay.io", 443), "https://quay.io/v2/")
GONE = UnreachableError("https://registry-1.docker.io refused the connection or is not reachable")


@pytest.fixture
def opened() -> list[Place]:
    return []


@pytest.fixture
def breaker(clock: Clock, opened: list[Place]) -> Breaker:
    breaker = Breaker(clock)
    breaker.opened = opened.append
    return breaker


def away(breaker: Breaker, place: Place, *, patient: bool = True) -> UnreachableError | None:
    try:
        breaker.check(place, patient=patient)
    except UnreachableError as error:
        return error
    return None


def test_the_first_failure(breaker: Breaker, clock: Clock, opened: list[Place]) -> None:
    """Everybody is told at once from then on, and somebody looks for it; nobody else is concerned."""
    assert away(breaker, HUB) is None
    breaker.fail(HUB, GONE)
    breaker.fail(HUB, GONE)
    assert opened == [HUB]
    clock.now += 12
    error = away(breaker, HUB)
    assert error is not None
    assert error.message == f"docker.io has been away for 12 s: {GONE.message}"
    assert (error.status, error.retry_after) == (503, "2")
    assert away(breaker, QUAY) is away(breaker, TOKENS) is None
    assert breaker.away() == {"docker.io": Absence(clock.now - 12, GONE.message)}
    assert breaker.is_away(HUB)
    breaker.answer(HUB)
    assert away(breaker, HUB) is None
    assert breaker.away() == {}


def test_a_token_host(breaker: Breaker) -> None:
    """It is away by itself, and its name is told."""
    breaker.fail(TOKENS, GONE)
    error = away(breaker, TOKENS)
    assert error is not None
    assert error.message.startswith("auth.docker.io, which issues tokens for docker.io, has been away for 0 s")
    assert list(breaker.away()) == ["auth.docker.io"]
    assert away(breaker, HUB) is None


def test_pauses(breaker: Breaker) -> None:
    """Half a second, doubled each time, up to a quarter of a minute; from the start the next time."""
    breaker.fail(HUB, GONE)
    pauses = []
    for _ in range(8):
        pauses.append(breaker.pause(HUB))
        breaker.postpone(HUB, GONE)
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 15]
    assert LAST_SECONDS == 15
    breaker.answer(HUB, looked=True)
    assert breaker.pause(HUB) is None
    breaker.postpone(HUB, GONE)
    assert breaker.pause(HUB) is None
    breaker.fail(HUB, GONE)
    assert breaker.pause(HUB) == 0.5


def test_doubt(breaker: Breaker, clock: Clock, opened: list[Place]) -> None:
    """Who has something else to serve does not wait; all others ask on, until it is looked who is right."""
    breaker.doubt(HUB, 3)
    breaker.doubt(HUB, 3)
    assert (opened, breaker.pause(HUB), breaker.away()) == ([HUB], 0.0, {})
    assert away(breaker, HUB) is None
    error = away(breaker, HUB, patient=False)
    assert error is not None
    assert error.message == "docker.io has not answered for 3 s: it lets requests wait"
    assert not breaker.is_away(HUB)
    breaker.answer(HUB)
    assert away(breaker, HUB, patient=False) is not None, "another answer says nothing about the one that is waited for"
    breaker.answer(HUB, looked=True)
    assert away(breaker, HUB, patient=False) is None
    breaker.doubt(HUB, 3)
    breaker.postpone(HUB, GONE)
    assert (breaker.is_away(HUB), breaker.pause(HUB), away(breaker, HUB) is None) == (True, 0.5, False)
    breaker.answer(HUB)
    assert opened == [HUB, HUB]


def test_doubt_comes_true(breaker: Breaker, opened: list[Place]) -> None:
    """A failure beside the looking counts at once; who is away is not doubted."""
    breaker.doubt(HUB, 3)
    breaker.fail(HUB, GONE)
    assert breaker.is_away(HUB)
    breaker.doubt(HUB, 3)
    assert breaker.is_away(HUB)
    assert opened == [HUB]


def test_from_many_threads(breaker: Breaker, opened: list[Place]) -> None:
    """However many fail at once, one of them has it looked for."""
    together = threading.Barrier(16)

    def fail() -> None:
        together.wait()
        breaker.fail(HUB, GONE)

    threads = [threading.Thread(target=fail) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [HUB]
