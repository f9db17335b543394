"""The set-up of most tests of pulls: a registry with one image, the product in front of it, and a client of that.

`tests/conftest.py` gives it to all modules. Each says what its `image` is, which `upstream` has as `team/app:1`, and
may put fixtures of its own in place of any of these.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.image import Image
from tests.fakes.registry import LyingUpstream
from tests.serving import Client, Threaded, in_thread

NAME = "team/app"


@pytest.fixture
def upstream(tmp_path: Path, image: Image) -> Iterator[LyingUpstream]:
    """A registry that tells the truth until it is told to lie."""
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put(NAME, image, "1")
        yield upstream


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Iterator[Threaded]:
    """The product in a thread, over `data` in the test's folder."""
    with in_thread(tmp_path / "data", upstream) as cache:
        yield cache


@pytest.fixture
def client(cache: Threaded) -> Iterator[Client]:
    """A connection by TLS, for one request after the other."""
    with cache.client() as client:
        yield client
