"""What tests of the store share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stored import Stored


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    """A data directory with nothing in it yet."""
    with Stored(tmp_path / "data") as stored:
        yield stored
