"""The rule that nothing is skipped where everything must run.

On a developer's machine a test may skip because a tool is missing (see `tests/needs.py`). With
`MITM_CACHE_TEST_REQUIRE_ALL=1`, as CI sets it, a skipped test or module fails and names its reason, unless it
is marked `@pytest.mark.may_skip("why")`. Expected failures (`xfail`) are not skips.
"""

import os
import signal
from collections.abc import Generator

import hypothesis
import pytest

from tests.clock import clock  # noqa: F401 - a fixture, for every module that has none of its own
from tests.pulling import cache, client, image, newer, upstream  # noqa: F401 - as well

# A loaded machine is no failure of what is tested. Where a change is judged, it is by the same examples each time: what
# is drawn anew is for developers, who can look into what it finds.
hypothesis.settings.register_profile(
    "project",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ or os.environ.get("MITM_CACHE_TEST_REQUIRE_ALL") == "1",
)
hypothesis.settings.load_profile("project")

# A shell has what it starts in the background ignore Ctrl-C, and programs that tests start and interrupt inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("MITM_CACHE_TEST_REQUIRE_ALL") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {reason} (MITM_CACHE_TEST_REQUIRE_ALL=1 forbids skipping)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("may_skip") is None:
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report
