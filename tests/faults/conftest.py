"""Figures are shown as they come, whatever pytest captures."""

import sys
from collections.abc import Callable

import pytest

type Show = Callable[..., None]


@pytest.fixture
def show(capfd: pytest.CaptureFixture[str]) -> Show:
    """Writes each of its arguments as a line."""

    def write(*lines: object) -> None:
        with capfd.disabled():
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()

    return write
