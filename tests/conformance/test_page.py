"""What is read of the suite's words, what counts as good, and the page that is made of it."""

from dataclasses import replace

import pytest

from tests.conformance.page import PAGE, render, summarize
from tests.conformance.suite import Outcome, Verdict, read
from tests.conformance.trial import ABSENT, Comparison, Trial

SAID = """\
Test results
OCI Conformance Test: FAIL
  OCI Conformance Test/ping: Pass
  OCI Conformance Test/blobs: FAIL
    OCI Conformance Test/blobs/get: FAIL
     - wanted one of [200], got 404
and a line that belongs to it
      OCI Conformance Test/blobs/mount/delete: Pass
      OCI Conformance Test/blobs/mount/delete: Skip
       - not told

Configuration:
  registry: r.example
  version: "1.1"
  commit: abc123
  
OCI Conformance Result: FAIL
  Pass..........................:          2
  FAIL..........................:          1

API conformance:
  Blob get......................:       FAIL
  Ping..........................:       Pass

Data conformance:
  Image.........................:       Pass

"""  # noqa: W293 - as the suite writes it
GOOD = Outcome(
    (Verdict("ping", "Pass"), Verdict("a/b", "Skip", "why")), {"Ping": "Pass"}, {"Image": "Pass"}, "1.1", "c"
)


def change(outcome: Outcome, *verdicts: Verdict) -> Outcome:
    return replace(outcome, verdicts=verdicts)


def test_what_the_suite_says() -> None:
    """Each test once, in its order: what has tests below it is none itself."""
    outcome = read(SAID)
    assert outcome.verdicts == (
        Verdict("ping", "Pass"),
        Verdict("blobs/get", "FAIL", "wanted one of [200], got 404"),
        Verdict("blobs/mount/delete", "Pass"),
        Verdict("blobs/mount/delete", "Skip", "not told"),
    )
    assert outcome.apis == {"Blob get": "FAIL", "Ping": "Pass"}
    assert outcome.data == {"Image": "Pass"}
    assert (outcome.version, outcome.commit) == ("1.1", "abc123")
    assert [each.name for each in outcome.failed] == ["blobs/get"]


@pytest.mark.parametrize(
    ("through", "differences", "worse"),
    [
        (GOOD, 0, 0),
        (change(GOOD, Verdict("ping", "FAIL"), Verdict("a/b", "Skip")), 1, 1),
        (change(GOOD, Verdict("ping", "Pass"), Verdict("a/b", "Pass")), 1, 1),
        (change(GOOD, Verdict("ping", "Pass")), 1, 1),
        (change(GOOD, *GOOD.verdicts, Verdict("ping", "Pass")), 1, 1),
    ],
)
def test_what_differs(through: Outcome, differences: int, worse: int) -> None:
    """Every other verdict, and every test that is made at one of the two only; each is for the worse."""
    compared = Comparison("r", "mirror", GOOD, through)
    assert (len(compared.differences), len(compared.worse)) == (differences, worse)
    assert Trial({"clear": GOOD}, (compared,)).good is (worse == 0)


def test_what_is_better() -> None:
    """What fails at the registry and passes through the cache differs, and is told, but is no fault."""
    compared = Comparison("r", "mirror", change(GOOD, Verdict("ping", "FAIL", "500")), GOOD)
    assert [(one.status, other.status) for one, other in compared.differences] == [
        ("FAIL", "Pass"),
        (ABSENT, "Skip"),
    ]
    assert [one.name for one, _ in compared.worse] == ["a/b"]


def test_a_failure_is_no_success() -> None:
    assert not Trial({"clear": change(GOOD, Verdict("ping", "FAIL"))}, ()).good
    assert not Trial({"clear": GOOD, "tls": change(GOOD, Verdict("ping", "Error"))}, ()).good


def test_the_page() -> None:
    """Every test of every way is told, with what is wrong with it."""
    broken = change(GOOD, Verdict("ping", "FAIL", "a|b"), Verdict("a/b", "Skip", "why"))
    trial = Trial({"clear": GOOD, "tls": broken}, (Comparison("r", "mirror", GOOD, broken),))
    page = render(trial)
    assert "| ping | Pass | FAIL: a\\|b |" in page
    assert "| b | Skip: why | Skip: why |" in page
    assert "| tls | 2 | 0 | 1 | 1 | 0 |" in page
    assert "- r, mirror: `ping`\n  - directly Pass\n  - through the cache FAIL: a\\|b\n" in page
    assert "  FAIL ping: a\\|b" in list(summarize(trial))


def test_the_page_that_is_here() -> None:
    """It tells of no failure of our own registry, and of nothing that is worse through the cache."""
    text = PAGE.read_text()
    own, _, rest = text.partition("\n## Through the cache\n")
    compared, _, every = rest.partition("\n## Every test\n")
    assert "| FAIL" not in own + every
    assert "| Error" not in own + every
    rows = [line.strip("|").split("|") for line in compared.splitlines() if line.startswith("| |")]
    assert rows
    assert {row[-1].strip() for row in rows} == {"0"}
