"""Every client, every registry, both ways: each pulls twice, and the second time nothing that is cached is fetched."""

from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet

from tests.e2e.conftest import Serve
from tests.e2e.test_pull import CLIENTS, CREDS, NEEDS, pull_twice
from tests.lab import images, network
from tests.lab.lab import Lab
from tests.lab.product import Product
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, needs_root()]

CONNECT = 3128
INSIDE = {"upstream": {"allow_private": True}}
"""The lab's internet has private addresses."""

IMAGES = [
    ("quay.io/lab/tiny:1", ""),
    ("docker.io/library/tiny:1", ""),
    ("ghcr.io/private/tiny:1", CREDS),
    ("private.example.com/private/tiny:1", CREDS),
    ("gcr.io/lab/tiny:1", ""),
    ("registry.k8s.io/tiny:1", ""),
]
QUICK = {
    "hosts": {("skopeo", "quay.io"), ("ctr", "quay.io"), ("buildah", "gcr.io"), ("syft", "registry.k8s.io")},
    "connect": {("skopeo", "docker.io"), ("docker", "quay.io")},
}
"""Client and registry of what `make test` runs too, by way."""


def _cases(way: str) -> Iterator[ParameterSet]:
    for kind in CLIENTS:
        for reference, creds in IMAGES:
            registry = reference.partition("/")[0]
            marks = [NEEDS[kind], *([] if (kind, registry) in QUICK[way] else [pytest.mark.slow])]
            yield pytest.param(kind, reference, creds, id=f"{kind} {registry}", marks=marks)


@pytest.fixture
def isolated(lab: Lab) -> Iterator[Lab]:
    """A node that knows no name at all, only the proxy; everything as before afterwards."""
    before = (lab.node.etc / "hosts").read_text(), (lab.node.etc / "resolv.conf").read_text()
    lab.node.resolve({})
    lab.node.variables["HTTPS_PROXY"] = f"http://{network.CACHE}:{CONNECT}"
    yield lab
    lab.node.variables.clear()
    for name, text in zip(("hosts", "resolv.conf"), before, strict=True):
        (lab.node.etc / name).write_text(text)


@pytest.mark.parametrize(("kind", "reference", "creds"), list(_cases("hosts")))
def test_through_hosts(lab: Lab, cache_process: Product, kind: str, reference: str, creds: str) -> None:
    """A client whose name for the registry leads to the cache gets upstream's image, then the cached one."""
    pull_twice(lab, cache_process, CLIENTS[kind](lab), reference, lab.image(images.TINY), creds=creds)


@pytest.mark.parametrize(("kind", "reference", "creds"), list(_cases("connect")))
def test_through_connect(isolated: Lab, serve: Serve, kind: str, reference: str, creds: str) -> None:
    """HTTPS_PROXY alone: registries are cached, Docker Hub's token host is tunnelled."""
    image = isolated.image(images.TINY)
    product = serve(ports={"connect": CONNECT}, sections=INSIDE)
    pull_twice(isolated, product, CLIENTS[kind](isolated), reference, image, creds=creds)
