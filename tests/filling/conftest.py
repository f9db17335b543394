"""What is filled, for every module here: a cache that no service runs over."""

from pathlib import Path

import pytest

from tests.fakes.registry import LyingUpstream
from tests.filling.test_run import Cache


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Cache:
    return Cache(tmp_path, upstream)
