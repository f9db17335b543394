"""Checks side by side: in order, each on its own, none for longer than it may take."""

import threading
import time
from collections.abc import Iterator

from mitm_cache.doctor.examination import REPORT, Check, examine, within
from mitm_cache.doctor.finding import Finding, Status, fail, merge, ok
from mitm_cache.errors import ConfigError


def test_in_order() -> None:
    """Findings come in the order of the checks, whichever ends first; the checks run at the same time."""
    second = threading.Event()

    def slow() -> Iterator[Finding]:
        assert second.wait(10)
        yield ok("one", "a", "well")

    def quick() -> Iterator[Finding]:
        second.set()
        yield ok("two", "b", "well")

    found = examine([Check("one", "a", slow), Check("two", "b", quick)], seconds=20)
    assert [each.check for each in found] == ["one", "two"]


def test_a_check_that_breaks() -> None:
    """The unexpected is a FAIL of that check, and the others go on; a message of this program is shown as is."""

    def breaks() -> Iterator[Finding]:
        yield ok("one", "a", "well")
        raise ZeroDivisionError("by nothing")

    def refuses() -> Iterator[Finding]:
        raise ConfigError("ca_file /x cannot be read")

    checks = [
        Check("one", "a", breaks),
        Check("two", "b", refuses),
        Check("three", "c", list),
        Check("four", "d", lambda: [ok("four", "d", "well")]),
    ]
    one, two, three, four = examine(checks, seconds=20)
    assert (one.status, one.words, one.cure) == (Status.FAIL, "the check broke: ZeroDivisionError: by nothing", REPORT)
    assert (two.status, two.words) == (Status.FAIL, "ca_file /x cannot be read")
    assert three.status is Status.FAIL
    assert four.status is Status.OK


def test_a_check_that_hangs() -> None:
    """It is told with its cure when its time is over, and nobody waits for it: a FAIL, or a WARN if not strict."""
    never = threading.Event()

    def hangs() -> Iterator[Finding]:
        never.wait(60)
        yield ok("one", "a", "well")

    started = time.monotonic()
    try:
        hard, soft, good = examine(
            [
                Check("one", "a", hangs, "mount it"),
                Check("two", "a", hangs, "mount it", strict=False),
                Check("three", "c", lambda: [ok("three", "c", "well")]),
            ],
            seconds=1.0,  # the last one has to begin in them
        )
    finally:
        never.set()
    assert time.monotonic() - started < 10
    assert (hard.status, hard.words, hard.cure) == (Status.FAIL, "no end within 1 s", "mount it")
    assert soft.status is Status.WARN
    assert good.status is Status.OK


def test_a_call_that_hangs() -> None:
    """What does not come in time is taken to be as it was told."""
    never = threading.Event()
    try:
        assert within(lambda: never.wait(60), default=True, seconds=0.1)
        assert within(lambda: "here", default="gone") == "here"
    finally:
        never.set()


def test_merge() -> None:
    """What is the same of several subjects is one line; what differs in its cure is not."""
    found = [ok("n", "a", "well"), fail("n", "b", "bad", "x"), ok("n", "c", "well"), fail("n", "d", "bad", "y")]
    assert [(each.status, each.subject) for each in merge(found)] == [
        (Status.OK, "a, c"),
        (Status.FAIL, "b"),
        (Status.FAIL, "d"),
    ]
