"""Nodes whose only way out is the cache: by HTTPS_PROXY, or by hosts entries for the token hosts as well."""

from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet

from tests.e2e.conftest import Serve
from tests.e2e.test_pull import CLIENTS, CREDS, NEEDS, pull_twice
from tests.lab import images, network, registries
from tests.lab.lab import Lab

pytestmark = pytest.mark.e2e

PROXY = f"http://{network.CACHE}:3128"
INSIDE = {"upstream": {"allow_private": True}}
"""The lab's internet has private addresses."""


@pytest.fixture
def isolated(lab: Lab) -> Iterator[Lab]:
    """A node that knows no name at all; everything as before afterwards."""
    before = (lab.node.etc / "hosts").read_text(), (lab.node.etc / "resolv.conf").read_text()
    lab.node.resolve({})
    yield lab
    lab.node.variables.clear()
    for name, text in zip(("hosts", "resolv.conf"), before, strict=True):
        (lab.node.etc / name).write_text(text)


IMAGES = [
    ("quay.io/lab/tiny:1", ""),
    ("docker.io/library/tiny:1", ""),
    ("ghcr.io/private/tiny:1", CREDS),
    ("private.example.com/private/tiny:1", CREDS),
]
QUICK = {("skopeo", "docker.io"), ("docker", "quay.io")}
"""Client and registry of what `make test` runs too."""


def _cases() -> Iterator[ParameterSet]:
    for kind in CLIENTS:
        for reference, creds in IMAGES:
            registry = reference.partition("/")[0]
            marks = [NEEDS[kind], *([] if (kind, registry) in QUICK else [pytest.mark.slow])]
            yield pytest.param(kind, reference, creds, id=f"{kind} {registry}", marks=marks)


@pytest.mark.parametrize(("kind", "reference", "creds"), list(_cases()))
def test_through_connect(isolated: Lab, serve: Serve, kind: str, reference: str, creds: str) -> None:
    """HTTPS_PROXY alone: registries are cached, Docker Hub's token host is tunnelled."""
    image = isolated.image(images.TINY)
    serve(ports={"connect": 3128}, sections=INSIDE)
    isolated.node.variables["HTTPS_PROXY"] = PROXY
    pull_twice(isolated, CLIENTS[kind](isolated), reference, image, creds=creds)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in CLIENTS])
def test_token_hosts_through_the_cache(isolated: Lab, serve: Serve, kind: str) -> None:
    """With hosts entries for registries and token hosts a node logs in and pulls a private image of Docker Hub."""
    image = isolated.image(images.TINY)
    isolated.node.resolve(dict.fromkeys((*registries.REGISTRY_NAMES, registries.TOKEN_HOST), network.CACHE))
    product = serve()
    pull_twice(isolated, CLIENTS[kind](isolated), "docker.io/private/tiny:1", image, creds=CREDS)
    assert product.wait_for(lambda event: event["outcome"] == "TUNNEL" and "auth.docker.io" in str(event["reason"]))
