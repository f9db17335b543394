"""The rule that CI draws the same examples each time, and developers others (see `tests/conftest.py`)."""

import os
import subprocess
import sys

import pytest

from tests.serving import ROOT

PROGRAM = "import tests.conftest, hypothesis; print(hypothesis.settings.default.derandomize)"


@pytest.mark.parametrize(
    ("variables", "same"), [({}, False), ({"CI": "true"}, True), ({"MITM_CACHE_TEST_REQUIRE_ALL": "1"}, True)]
)
def test_examples(variables: dict[str, str], same: bool) -> None:
    """A change is not refused for what another run would not have drawn."""
    environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), **variables}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"{same}\n"
