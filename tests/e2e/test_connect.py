"""Nodes with no way out but the cache and no proxy setting: hosts entries for the token hosts as well."""

from collections.abc import Iterator

import pytest

from tests.e2e.test_pull import CLIENTS, CREDS, NEEDS, pull_twice
from tests.lab import images, network, registries
from tests.lab.lab import Lab
from tests.lab.product import Product
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_root()]


@pytest.fixture
def isolated(lab: Lab) -> Iterator[Lab]:
    """A node that is led to the cache for the registries and their token hosts; as before afterwards."""
    before = (lab.node.etc / "hosts").read_text()
    lab.node.resolve(dict.fromkeys((*registries.REGISTRY_NAMES, registries.TOKEN_HOST), network.CACHE))
    yield lab
    (lab.node.etc / "hosts").write_text(before)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in CLIENTS])
def test_token_hosts_through_the_cache(isolated: Lab, cache_process: Product, kind: str) -> None:
    """With hosts entries for registries and token hosts a node logs in and pulls a private image of Docker Hub."""
    client, image = CLIENTS[kind](isolated), isolated.image(images.TINY)
    pull_twice(isolated, cache_process, client, "docker.io/private/tiny:1", image, creds=CREDS)
    tunnel = {"outcome": "TUNNEL"}.items()
    assert cache_process.wait_for(lambda event: tunnel <= event.items() and "auth.docker.io" in str(event["reason"]))
