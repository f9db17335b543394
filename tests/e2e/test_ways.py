"""Every way in over one cache: what came in by one is a HIT by each other, and two caches stand in for each other."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_matrix import CONNECT, INSIDE
from tests.e2e.test_pull import AMD64, NEEDS, check, is_hit
from tests.lab import images, network, registries
from tests.lab.clients import Arrived
from tests.lab.lab import Lab
from tests.lab.product import CLEAR, MIRROR, MIRROR_URL, OWN, TLS, Product
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, needs_root(), *(NEEDS[client] for client in ("skopeo", "podman", "docker", "ctr"))]

CERTS = "containerd/certs.d"
MIRRORED = "containers/registries.conf.d/mirror.conf"
SECOND = "10.77.0.2"
"""Where another cache listens."""
AT_QUAY, AT_HUB = "quay.io/lab/tiny:1", "docker.io/library/tiny:1"


@dataclass(frozen=True)
class Way:
    """How a node comes in: what is listened on, and a pull by a real client."""

    ports: Mapping[str, int]
    pull: Callable[[Lab, str], Arrived]


def _write(lab: Lab, name: str, text: str) -> None:
    path = lab.node.etc / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _hosts_toml(*endpoints: str) -> str:
    return "".join(f'[host."{one}"]\n  capabilities = ["pull", "resolve"]\n' for one in endpoints)


def by_hosts(lab: Lab, reference: str) -> Arrived:
    return lab.skopeo().pull(reference, platform=AMD64)


def by_connect(lab: Lab, reference: str) -> Arrived:
    lab.node.resolve({})
    lab.node.variables["HTTPS_PROXY"] = f"http://{network.CACHE}:{CONNECT}"
    return lab.podman().pull(reference)


def by_clear_text(lab: Lab, reference: str) -> Arrived:
    """443 is closed, the CA is not there, and the registry is marked insecure."""
    lab.node.trust("none", "")
    return lab.docker(insecure=("quay.io",)).pull(reference)


def by_namespace(lab: Lab, reference: str) -> Arrived:
    """containerd's own form: `_default` in its certs.d, and `?ns=` in each request."""
    lab.node.resolve({})
    _write(lab, f"{CERTS}/_default/hosts.toml", _hosts_toml(MIRROR_URL))
    return lab.ctr().pull(reference)


def by_prefix(lab: Lab, reference: str) -> Arrived:
    """podman's own form: a mirror with the registry in its path."""
    lab.node.resolve({})
    registry = reference.partition("/")[0]
    _write(
        lab,
        MIRRORED,
        f'[[registry]]\nprefix = "{registry}"\nlocation = "{registry}"\n'
        f'[[registry.mirror]]\nlocation = "{network.CACHE}:{MIRROR}/{registry}"\ninsecure = true\n',
    )
    return lab.podman().pull(reference)


def by_own_name(lab: Lab, reference: str) -> Arrived:
    """Another name for the image, `registry.lan/quay.io/…`, by TLS on the usual port."""
    lab.node.resolve({OWN: network.CACHE})
    return lab.skopeo().pull(f"{OWN}/{reference}", platform=AMD64)


def by_registry_mirrors(lab: Lab, reference: str) -> Arrived:
    """dockerd's own form: Docker Hub at the mirror's root."""
    lab.node.resolve({})
    lab.node.trust("none", "")
    return lab.docker(mirrors=(MIRROR_URL,)).pull(reference)


WAYS = {
    "hosts": Way({"tls": TLS}, by_hosts),
    "connect": Way({"connect": CONNECT}, by_connect),
    "clear": Way({"clear": CLEAR}, by_clear_text),
    "namespace": Way({"mirror": MIRROR}, by_namespace),
    "prefix": Way({"mirror": MIRROR}, by_prefix),
    "own name": Way({"tls": TLS}, by_own_name),
    "root": Way({"mirror": MIRROR}, by_registry_mirrors),
}
OF_QUAY = [name for name in WAYS if name != "root"]
OF_HUB = [name for name in WAYS if name != "clear"]  # dockerd takes Docker Hub for insecure never


@pytest.fixture(name="node")
def restored(lab: Lab) -> Iterator[Lab]:
    """A lab whose node is as before afterwards."""
    names = ("hosts", "resolv.conf")
    before = [(lab.node.etc / name).read_text() for name in names]
    yield lab
    _as_before(lab, dict(zip(names, before, strict=True)))


def _as_before(lab: Lab, files: Mapping[str, str]) -> None:
    lab.node.variables.clear()
    (lab.node.etc / MIRRORED).unlink(missing_ok=True)
    for name, text in files.items():
        (lab.node.etc / name).write_text(text)


@pytest.mark.parametrize(
    ("reference", "first", "others"),
    [
        pytest.param(AT_QUAY, "namespace", ["hosts", "own name"], id="quick"),
        *(pytest.param(AT_QUAY, first, OF_QUAY, id=f"quay {first}", marks=pytest.mark.slow) for first in OF_QUAY),
        *(pytest.param(AT_HUB, first, OF_HUB, id=f"hub {first}", marks=pytest.mark.slow) for first in OF_HUB),
    ],
)
def test_one_cache(node: Lab, serve: Serve, reference: str, first: str, others: list[str]) -> None:
    """Pulled by one way, then by each other: a HIT for every blob, and upstream is asked for none."""
    image = node.image(images.TINY)
    files = {name: (node.node.etc / name).read_text() for name in ("hosts", "resolv.conf")}
    data = node.fresh("data")
    for number, name in enumerate((first, *(other for other in others if other != first))):
        _as_before(node, files)
        way = WAYS[name]
        product = serve(data=data, ports=way.ports, sections=INSIDE)
        mark = node.internet.log.mark()
        check(way.pull(node, reference), image, "")
        if number:
            assert node.internet.log.content(mark) == [], f"{name} fetched again what came by {first}"
            for blob in image.blobs[AMD64]:
                product.wait_for(is_hit(blob))
        else:
            assert node.internet.log.content(mark) != []
        product.stop()
        node.wipe_clients()


def test_an_unknown_namespace(node: Lab, serve: Serve) -> None:
    """A registry that the cache does not serve is refused at the mirror; the client then asks its own host."""
    product = serve(ports={"mirror": MIRROR})
    node.node.resolve({})
    _write(node, f"{CERTS}/_default/hosts.toml", _hosts_toml(MIRROR_URL))
    with pytest.raises(Exception, match=r"unknown\.example"):
        node.ctr().pull("unknown.example/lab/tiny:1")
    refused = {"outcome": "REFUSED", "status": 404}.items()
    assert "unknown.example" in str(product.wait_for(lambda event: refused <= event.items())["reason"])


@pytest.fixture
def two(node: Lab, serve: Serve) -> Iterator[tuple[Product, Product]]:
    """Two caches with one CA and nothing else in common, both of which the node knows under every name."""
    node.cache.space.configure(f"addr add {SECOND}/24 dev node")
    try:
        one = serve()
        data = node.fresh("data")
        (data / "ca").mkdir(parents=True, mode=0o700)
        for file in (one.data / "ca").iterdir():
            copied = data / "ca" / file.name
            copied.touch(mode=file.stat().st_mode & 0o777)
            copied.write_bytes(file.read_bytes())
        data.chmod(0o700)
        other = serve(data=data, address=SECOND)
        lines = [f"{address} {name}" for name in registries.REGISTRY_NAMES for address in (network.CACHE, SECOND)]
        _write(node, "hosts", "\n".join(["127.0.0.1 localhost", *lines, ""]))
        yield one, other
    finally:
        node.cache.space.configure(f"addr del {SECOND}/24 dev node")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["skopeo", "podman", "docker", "ctr"])
@pytest.mark.parametrize("stopped", [0, 1])
def test_two_addresses(node: Lab, two: tuple[Product, Product], kind: str, stopped: int) -> None:
    """Hosts entries with two addresses for each name: one cache is stopped, pulls go on by the other."""
    image = node.image(images.TINY)
    client = getattr(node, kind)()
    check(client.pull(AT_QUAY, platform=AMD64), image, "")
    two[stopped].stop()
    client.wipe()
    check(client.pull(AT_QUAY, platform=AMD64), image, "")
    assert [event for event in two[1 - stopped].events() if event["outcome"] in ("MISS", "HIT")]


@pytest.mark.slow
def test_two_endpoints(node: Lab, two: tuple[Product, Product]) -> None:
    """Two mirror endpoints in containerd and in dockerd: one cache is stopped, pulls go on by the other."""
    node.node.resolve({})
    endpoints = [MIRROR_URL, MIRROR_URL.replace(network.CACHE, SECOND)]
    _write(node, f"{CERTS}/_default/hosts.toml", _hosts_toml(*endpoints))
    image, containerd, docker = node.image(images.TINY), node.ctr(), node.docker(mirrors=tuple(endpoints))
    two[0].stop()
    check(containerd.pull(AT_QUAY), image, "")
    check(docker.pull(AT_HUB), image, "")
