"""What breaks off upstream is carried on there, and the client sees one uninterrupted answer."""

import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.demo.image import KIB, MIB
from mitm_cache.demo.message import Answer, Incoming, Proceed
from mitm_cache.upstream import curl, fetching
from mitm_cache.upstream.fetching import PATIENCE, PAUSES, PROGRESS, TRIES, Persistence, seconds_of
from tests.clock import Clock
from tests.fakes import faults
from tests.fakes.big import Pattern, big_image
from tests.fakes.faults import Fault
from tests.fakes.registry import LyingUpstream
from tests.serving import Reply, Threaded

NAME = "team/app"
SIZE = 1 * MIB + 12345
STEP = 150 * KIB
LAYER = Pattern(SIZE, "big 0")
DATA = b"".join(LAYER.chunks(0, SIZE))
BLOB = f"/v2/{NAME}/blobs/{LAYER.digest}"


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES", (0.01,))


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put(NAME, big_image(SIZE), "1")
        yield upstream


def get(cache: Threaded) -> Reply:
    with cache.client() as client:
        return client.get(BLOB)


def ranges(upstream: LyingUpstream) -> list[str]:
    return [each.range for each in upstream.requests.select(kind="object", method="GET")]


def sent(upstream: LyingUpstream) -> int:
    """Bytes that the storage host has sent, once it knows so itself: a client may have them before."""
    asked = upstream.requests.count(kind="object", method="GET")
    return sum(each.sent for each in upstream.requests.wait(asked, kind="object", method="GET", done=True))


@pytest.mark.parametrize("how", ["goodbye", "close", "reset"])
def test_cut_five_times(cache: Threaded, upstream: LyingUpstream, how: str) -> None:
    """One uninterrupted 200; six requests, each for what was missing, and no byte is fetched twice."""
    upstream.lie("object", faults.cut_after(STEP, how), times=5)  # type: ignore[arg-type]
    reply = get(cache)
    assert (reply.status, reply.body == DATA, reply.outcome) == (200, True, "MISS")
    asked = ranges(upstream)
    assert (len(asked), asked[0]) == (6, "")
    starts = [int(each.removeprefix("bytes=").removesuffix("-")) for each in asked[1:]]
    assert starts == sorted(starts)
    if how != "reset":  # a reset may take with it what was on its way
        assert starts == [STEP * number for number in range(1, 6)]
        assert sent(upstream) == SIZE
    # The registry was asked for an address each time: one that has expired is not used again.
    assert upstream.requests.count(kind="blob", method="GET") == 6
    assert get(cache).outcome == "HIT"
    assert cache.spool() == set()


def test_joiners_see_nothing_of_it(cache: Threaded, upstream: LyingUpstream) -> None:
    """Eight clients of one download that is cut twice: all get all of it, and upstream sends it once."""
    upstream.lie("object", faults.cut_after(STEP, "close"), times=2)
    with ThreadPoolExecutor(8) as crowd:
        replies = list(crowd.map(lambda _: get(cache), range(8)))
    assert all(reply.body == DATA for reply in replies)
    assert sent(upstream) == SIZE


def test_a_body_that_stalls(cache: Threaded, upstream: LyingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte for the time of patience: the connection is given up, and the rest asked for by another."""
    monkeypatch.setattr(curl, "STALL_SECONDS", 1)
    upstream.lie("object", upstream.gate().hold_after(STEP), times=1)
    assert get(cache).body == DATA
    assert ranges(upstream) == ["", f"bytes={STEP}-"]


def test_an_address_that_has_expired(cache: Threaded, upstream: LyingUpstream) -> None:
    """The storage host takes the signed URL no more when it is asked to carry on: a fresh one is got."""
    upstream.lie("object", expired_when_ranged(times=2))
    upstream.lie("object", faults.cut_after(STEP, "close"), times=1)
    assert get(cache).body == DATA
    assert ranges(upstream) == ["", *[f"bytes={STEP}-"] * 3]
    assert upstream.requests.count(kind="blob", method="GET") == 4


def expired_when_ranged(times: int) -> Fault:
    refuse, left = faults.refuse(403, "AccessDenied"), [times]

    def fault(incoming: Incoming, proceed: Proceed) -> Answer:
        if "range" in incoming.headers and left[0]:
            left[0] -= 1
            return refuse(incoming, proceed)
        return proceed(incoming)

    return fault


@pytest.mark.parametrize("status", [429, 500, 503])
def test_who_asks_for_patience_gets_it(cache: Threaded, upstream: LyingUpstream, status: int) -> None:
    """Busy in the middle, with a Retry-After: it is waited for so long, and carried on."""
    upstream.lie("object", faults.cut_after(STEP, "close"), times=1)
    waited: list[float] = []
    upstream.lie("blob", busy_the_second_time(status, waited), method="GET")
    assert get(cache).body == DATA
    assert waited[0] >= 1
    assert ranges(upstream) == ["", f"bytes={STEP}-"]


def busy_the_second_time(status: int, waited: list[float]) -> Fault:
    count, at = [0], [0.0]
    refuse = faults.refuse(status, "UNKNOWN", {"Retry-After": "1"})

    def fault(incoming: Incoming, proceed: Proceed) -> Answer:
        count[0] += 1
        if count[0] == 2:
            at[0] = time.monotonic()
            return refuse(incoming, proceed)
        if count[0] == 3:
            waited.append(time.monotonic() - at[0])
        return proceed(incoming)

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        faults.ignore_range(),
        faults.header("Content-Range", f"bytes 1-{SIZE - 1}/{SIZE}", status=206),
        faults.header("Content-Range", f"bytes {STEP}-{SIZE}/{SIZE + 1}", status=206),
        faults.header("Content-Range", "nonsense", status=206),
    ],
    ids=["200 instead of 206", "another start", "another size", "nonsense"],
)
def test_a_wrong_continuation_cuts(cache: Threaded, upstream: LyingUpstream, fault: Fault) -> None:
    """Who does not carry on where it was asked to cannot be trusted: cut, never a short 200, and nothing is kept."""
    upstream.lie("object", fault)
    upstream.lie("object", faults.cut_after(STEP, "close"), times=1)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(cache)
    assert ranges(upstream) == ["", f"bytes={STEP}-"]
    upstream.truth()
    assert get(cache).body == DATA


def test_wrong_bytes_after_a_cut(cache: Threaded, upstream: LyingUpstream) -> None:
    """The whole digest is proven, whoever sent the parts: the end is not sent, and nothing kept."""
    upstream.lie("object", faults.cut_after(STEP, "close"), times=1)
    upstream.lie("object", wrong_when_ranged())
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(cache)
    assert cache.blobs() == set()
    assert cache.log.wait(1)[0]["outcome"] == "ERROR"


def wrong_when_ranged() -> Fault:
    wrong = faults.wrong_bytes()
    return lambda incoming, proceed: wrong(incoming, proceed) if "range" in incoming.headers else proceed(incoming)


def test_it_is_given_up_in_the_end(cache: Threaded, upstream: LyingUpstream) -> None:
    """Nothing comes any more: so many tries, then a cut, and the reason in the log."""
    upstream.lie("object", only_the_beginning())
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(cache)
    assert len(ranges(upstream)) == 1 + TRIES
    assert "closed the connection" in cache.log.wait(1)[0]["reason"]


def test_what_came_before_an_outage_is_kept(cache: Threaded, upstream: LyingUpstream) -> None:
    """Upstream has gone away for longer than a client is kept waiting: who asks later carries on from there."""
    upstream.lie("object", only_the_beginning())
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(cache)
    upstream.truth()
    upstream.requests.clear()
    assert get(cache).body == DATA
    assert ranges(upstream) == [f"bytes={STEP + TRIES}-"]  # each try brought a byte
    assert cache.spool() == set()


def test_what_cannot_be_carried_on_is_not_kept_for_ever(cache: Threaded, upstream: LyingUpstream) -> None:
    """Ranges do not work there: one more client finds that out, and the next one begins anew."""
    upstream.lie("object", only_the_beginning())
    for _ in range(2):
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            get(cache)
    assert not [name for name in cache.spool() if name.endswith(".part")]
    upstream.truth()
    upstream.requests.clear()
    assert get(cache).body == DATA
    assert ranges(upstream) == [""]


def only_the_beginning() -> Fault:
    beginning, nothing = faults.cut_after(STEP, "goodbye"), faults.cut_after(1, "goodbye")
    return lambda incoming, proceed: (nothing if "range" in incoming.headers else beginning)(incoming, proceed)


def test_before_the_first_byte_an_error_is_an_answer(cache: Threaded, upstream: LyingUpstream) -> None:
    """Nothing has been promised: the client is told at once, and knows best whether to try again."""
    upstream.lie("object", faults.refuse(503))
    assert get(cache).status == 502
    assert len(ranges(upstream)) == 1


def test_progress_counts_anew() -> None:
    """Six failures in a row end it; 64 KiB in between give six more."""
    persistence = Persistence(Clock(0.0))
    pauses = [persistence.pause(0) for _ in range(TRIES)]
    assert None not in pauses
    assert persistence.pause(PROGRESS - 1) is None
    persistence = Persistence(Clock(0.0))
    for round_ in range(1, 4):
        assert None not in [persistence.pause(round_ * PROGRESS) for _ in range(TRIES)]


def test_patience_ends() -> None:
    """Two minutes without progress, pauses included, are enough, and a longer Retry-After is not begun."""
    clock = Clock(0.0)
    persistence = Persistence(clock)
    assert persistence.pause(0, "7") == 7
    assert persistence.pause(0, f"{PATIENCE + 1:.0f}") is None
    clock.now = PATIENCE + 1
    assert Persistence(clock).pause(0) is not None
    assert persistence.pause(0) is None
    assert persistence.pause(PROGRESS) is not None


def test_retry_after() -> None:
    """Seconds or a date; a date that has passed asks for nothing."""
    assert seconds_of("120") == 120
    assert seconds_of(None) == seconds_of("") == seconds_of("soon") == seconds_of("-3") == 0
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < seconds_of(format_datetime(later, usegmt=True)) <= 100
    assert seconds_of("Mon, 01 Jan 2024 00:00:00 GMT") == 0
    for far in ("Mon, 01 Jan 9999999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2030 00:00:00 +9999999999999999999999"):
        assert seconds_of(far) == 0


@given(st.text())
def test_retry_after_of_anything(text: str) -> None:
    """Upstream may write what it wants."""
    assert seconds_of(text) >= 0


@given(st.lists(st.tuples(st.integers(0, 10 * PROGRESS), st.floats(0, 200)), max_size=40))
def test_persistence_is_bounded(failures: list[tuple[int, float]]) -> None:
    """Whatever comes: never more than six pauses without progress, and none that is longer than asked for."""
    clock = Clock(0.0)
    persistence = Persistence(clock)
    size = mark = fruitless = 0
    for came, seconds in failures:
        clock.now += seconds
        size += came
        if size - mark >= PROGRESS:
            mark, fruitless = size, 0
        pause = persistence.pause(size)
        fruitless += 1
        if pause is None:
            break
        assert fruitless <= TRIES
        assert pause <= max(PAUSES)
