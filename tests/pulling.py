"""The set-up of most tests of pulls: a registry with one image, the product in front of it, and a client of that.

`tests/conftest.py` gives it to all modules. `upstream` has the `image` as `team/app:1`. Each module may put fixtures of
its own in place of any of these.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, Image, generate
from tests.fakes.registry import LyingUpstream
from tests.serving import Client, Threaded, in_thread

NAME = "team/app"


@pytest.fixture(scope="session")
def image() -> Image:
    """A small one, for one platform."""
    return generate(sizes=[3 * KIB], platforms=["linux/amd64"])


@pytest.fixture(scope="session")
def newer() -> Image:
    """What a tag may move to."""
    return generate(sizes=[3 * KIB], platforms=["linux/amd64"], seed="newer")


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
