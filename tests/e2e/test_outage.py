"""The internet goes away: real clients with empty stores pull what is cached, at once, and are told why where not.

Away is: nobody listens any more, what listened says nothing, or neither a name nor an address leads anywhere.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_pull import CLIENTS, CREDS, NEEDS, check
from tests.lab import images
from tests.lab.clients import Client
from tests.lab.lab import Lab
from tests.lab.process import LabError, wait_until
from tests.lab.product import MIRROR_URL, Product
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_root()]

KINDS = ("docker", "ctr", "cri", "podman")
PUBLIC = ("docker.io/library/tiny:1", "ghcr.io/lab/tiny:1", "quay.io/lab/tiny:1")
"""Tokens from a host of its own, tokens from the registry's own host, and none."""
PRIVATE = "ghcr.io/private/tiny:1"
LONGEST_MS = 4000.0
"""For a request while it is found out that nobody answers; nobody waits for a time-out, which is 10 s and more."""
BACK_SECONDS = 16.0

logger = logging.getLogger(__name__)

type Outage = Callable[[Lab], AbstractContextManager[None]]


@contextmanager
def refused(lab: Lab) -> Iterator[None]:
    """The processes have ended, the token hosts among them."""
    lab.internet.front.end()
    try:
        yield
    finally:
        lab.internet.front.start()


@contextmanager
def silent(lab: Lab) -> Iterator[None]:
    """Connections are taken and nothing is said."""
    lab.internet.front.freeze()
    try:
        yield
    finally:
        lab.internet.front.thaw()


@contextmanager
def unresolved(lab: Lab) -> Iterator[None]:
    """The cache host's way out is down, DNS with it."""
    lab.cache.space.configure("link set internet down")
    try:
        yield
    finally:
        lab.cache.space.configure("link set internet up")


@pytest.fixture
def product(serve: Serve) -> Product:
    return serve(sections={"cache": {"tag_ttl": "0s"}})


def by_mirror(lab: Lab) -> Client:
    return lab.docker(mirrors=(MIRROR_URL,))


def pull(client: Client, reference: str, image: images.Image) -> float:
    """Seconds of a pull, the daemon's start included."""
    begun = time.monotonic()
    check(client.pull(reference), image, "")
    return time.monotonic() - begun


@pytest.mark.parametrize("away", [refused, pytest.param(silent, marks=pytest.mark.slow), unresolved])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in KINDS])
def test_pulls_go_on(lab: Lab, product: Product, kind: str, away: Outage) -> None:
    """One pull of each before; then a client that has nothing gets all of it, and each answer within seconds."""
    image = lab.image(images.TINY)
    for reference in PUBLIC:
        pull(CLIENTS[kind](lab), reference, image)
    lab.wipe_clients()
    mark = len(product.events())
    with away(lab):
        took = {reference: pull(CLIENTS[kind](lab), reference, image) for reference in PUBLIC}
    events = product.events(mark)
    slowest = max(float(str(event["ms"])) for event in events)
    logger.info("%s: %s s; the slowest answer took %.0f ms", kind, list(took.values()), slowest)
    assert {event["outcome"] for event in events} <= {"HIT", "STALE", "LOCAL"}, events
    assert len([event for event in events if event["outcome"] == "STALE"]) >= len(PUBLIC)
    assert slowest < LONGEST_MS


@NEEDS["docker"]
def test_a_mirror_goes_on(lab: Lab, product: Product) -> None:
    """Docker Hub's mirror: the same, and dockerd is told of no login."""
    image = lab.image(images.TINY)
    pull(by_mirror(lab), PUBLIC[0], image)
    lab.wipe_clients()
    mark = len(product.events())
    with refused(lab):
        seconds = pull(by_mirror(lab), PUBLIC[0], image)
    events = product.events(mark)
    logger.info("mirror: %.1f s", seconds)
    assert {event["listener"] for event in events} == {"mirror"}
    assert {event["outcome"] for event in events} == {"HIT", "STALE", "LOCAL"}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in ("docker", "podman")])
def test_a_private_image_is_refused(lab: Lab, product: Product, kind: str) -> None:
    """Nobody can say any more whose it is: a stranger is told so, and gets none of it."""
    image = lab.image(images.TINY)
    check(CLIENTS[kind](lab).pull(PRIVATE, creds=CREDS), image, "")
    mark = len(product.events())
    with refused(lab), pytest.raises(LabError, match=r"what is cached of ghcr\.io/private/tiny is not for everybody"):
        CLIENTS[kind](lab).pull(PRIVATE)
    assert all(event["outcome"] in ("LOCAL", "ERROR") for event in product.events(mark))


@NEEDS["skopeo"]
def test_it_is_back(lab: Lab, product: Product) -> None:
    """The time comes out that a registry is looked for at: within it everything is asked again."""
    image = lab.image(images.TINY)
    client = lab.skopeo()
    pull(client, PUBLIC[2], image)
    with refused(lab):
        pull(client, PUBLIC[2], image)
    begun = time.monotonic()

    def asked() -> bool:
        mark = len(product.events())
        pull(client, PUBLIC[2], image)
        return any(event["outcome"] == "REVALIDATED" for event in product.events(mark))

    wait_until(asked, "upstream's being asked again", seconds=BACK_SECONDS)
    logger.info("asked again after %.1f s", time.monotonic() - begun)
