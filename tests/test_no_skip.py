"""The rule of `conftest.py`, tried on test files of its own."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

SKIPPING = """
import pytest

@pytest.mark.skipif(True, reason="needs skopeo: apt-get install skopeo")
def test_marked(): pass

def test_called(): pytest.skip("no kernel support")

@pytest.mark.may_skip("only some kernels have it")
def test_allowed(): pytest.skip("no kernel support")

@pytest.mark.xfail(reason="known")
def test_expected(): assert False
"""


@pytest.fixture
def inner(pytester: pytest.Pytester) -> Iterator[pytest.Pytester]:
    own = hypothesis.settings.get_profile("project")
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nmarkers =\n    may_skip(reason): x\n")
    pytester.makepyfile(SKIPPING)
    yield pytester
    hypothesis.settings.register_profile("project", own)  # the other one's is of other variables
    hypothesis.settings.load_profile("project")


def test_skips_stay_skips(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the setting nothing changes."""
    monkeypatch.delenv("MITM_CACHE_TEST_REQUIRE_ALL", raising=False)
    inner.runpytest().assert_outcomes(skipped=3, xfailed=1)


def test_a_skip_fails(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it a skip fails and says what is missing; `may_skip` and `xfail` are left alone."""
    monkeypatch.setenv("MITM_CACHE_TEST_REQUIRE_ALL", "1")
    result = inner.runpytest()
    result.assert_outcomes(errors=1, failed=1, skipped=1, xfailed=1)  # a mark skips, and so fails, in the setup
    result.stdout.fnmatch_lines(["*test_marked: *needs skopeo: apt-get install skopeo*", "*test_called: *no kernel*"])


def test_a_skipped_module_fails(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that skips itself while it is collected fails too."""
    monkeypatch.setenv("MITM_CACHE_TEST_REQUIRE_ALL", "1")
    path = inner.makepyfile(test_whole="import pytest\npytest.skip('not here', allow_module_level=True)\n")
    inner.runpytest(path).assert_outcomes(errors=1)
