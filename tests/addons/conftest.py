"""A registry whose blobs are elsewhere, a host that is no registry, and the scripts in front of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, Image, generate
from tests.addons.mitmdump import Mitmdump, mitmdump
from tests.fakes.registry import LyingUpstream
from tests.fakes.registry import Witness as Elsewhere

_NUMBERS = count(1)


@dataclass(slots=True)
class Put:
    """An image that nobody has pulled yet."""

    repository: str
    image: Image
    digest: str = field(init=False)
    content: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.digest, content = max(self.image.blobs.items(), key=lambda item: item[1].size)
        self.content = b"".join(bytes(chunk) for chunk in content.chunks(0, content.size))

    @property
    def tag(self) -> str:
        """Where its tag is asked for."""
        return f"/v2/{self.repository}/manifests/1"

    @property
    def blob(self) -> str:
        """Where its layer is asked for."""
        return f"/v2/{self.repository}/blobs/{self.digest}"


@pytest.fixture(scope="session")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path_factory.mktemp("upstream")) as running:
        yield running


@pytest.fixture
def upstream(internet: LyingUpstream) -> Iterator[LyingUpstream]:
    """It tells the truth, has been asked for nothing yet, and is up again afterwards."""
    internet.requests.clear()
    yield internet
    internet.truth()


@pytest.fixture(scope="session")
def elsewhere(internet: LyingUpstream) -> Iterator[Elsewhere]:
    with Elsewhere(tls=internet.trust.certify("elsewhere.demo")) as running:
        yield running


@pytest.fixture
def put(upstream: LyingUpstream) -> Put:
    seed = f"addons {next(_NUMBERS)}"
    new = Put(f"team/{seed.replace(' ', '-')}", generate(sizes=[300 * KIB], platforms=["linux/amd64"], seed=seed))
    upstream.registry.put(new.repository, new.image, "1")
    return new


@pytest.fixture(scope="session")
def start(
    internet: LyingUpstream, elsewhere: Elsewhere, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Mitmdump]]:
    """Run scripts together; the same ones are started once for all tests."""
    running: dict[tuple[str, ...], Mitmdump] = {}
    with ExitStack() as stack:

        def started(*addons: str) -> Mitmdump:
            if addons not in running:
                folder: Path = tmp_path_factory.mktemp("mitmdump")
                others = {elsewhere.name: elsewhere.address[1]}
                running[addons] = stack.enter_context(mitmdump(folder, *addons, upstream=internet, others=others))
            return running[addons]

        yield started
