"""A time that passes when it is told to. `tests/conftest.py` gives one to every module that has none of its own."""

import pytest


class Clock:
    """Seconds, from `now` on."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
