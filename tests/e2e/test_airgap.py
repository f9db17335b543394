"""Over an air gap with real tools: one cache is filled by a file, all registries end, and another one serves it all.

Also what Docker and containerd themselves write and read.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_pull import AMD64, CLIENTS, CREDS, NEEDS, check
from tests.lab import images, network
from tests.lab.clients import Arrived
from tests.lab.lab import ROOT, Lab
from tests.lab.process import LabError
from tests.lab.product import Product, toml
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_root(), NEEDS["skopeo"]]

SYNCED: Mapping[str, images.Recipe] = {
    "quay.io/lab/tiny:1": images.TINY,
    "ghcr.io/private/tiny:1": images.TINY,
    "private.example.com/private/many:1": images.MANY,
}
PULLED: Mapping[str, images.Recipe] = {"docker.io/library/tiny:docker": images.TINY_DOCKER}
IMAGES = {**SYNCED, **PULLED}
USER, _, PASSWORD = CREDS.partition(":")
LIST = f"""
quay.io:
  images:
    lab/tiny: ["1"]
ghcr.io:
  credentials: {{username: {USER}, password: {PASSWORD}}}
  images:
    private/tiny: ["1"]
private.example.com:
  credentials: {{username: {USER}, password: {PASSWORD}}}
  images-by-tag-regex:
    private/many: ^1$
"""
"""SYNCED, as `skopeo sync` reads it: two registries let nobody in without a credential."""
OFFLINE = {"cache": {"offline": True}}

logger = logging.getLogger(__name__)


def run(lab: Lab, data: Path, *arguments: object) -> str:
    """A command over a data directory, on the cache's host."""
    settings = {
        "data_dir": str(data),
        "upstream": {"ca_file": str(lab.ca_file), "resolvers": [network.DNS]},
        "registries": {"private.example.com": {"url": "https://private.example.com"}},
    }
    config = lab.fresh("command", ".toml")
    config.write_text(toml(settings))
    command = [sys.executable, "-m", "mitm_cache", "--config", str(config), *map(str, arguments)]
    return lab.cache.run(*command, env={"PYTHONPATH": str(ROOT)}, timeout=120).out


@contextmanager
def switched_off(lab: Lab) -> Iterator[None]:
    """No registry, no token host."""
    lab.internet.front.end()
    try:
        yield
    finally:
        lab.internet.front.start()


@pytest.fixture
def carried(lab: Lab, serve: Serve) -> Path:
    """A folder with all images, from a cache that has ended: most came by `sync`, and one by a client's pull."""
    made = {reference: lab.image(recipe) for reference, recipe in IMAGES.items()}
    product, wanted = serve(), lab.fresh("images", ".yaml")
    for reference in PULLED:
        assert lab.skopeo().pull(reference).digest == made[reference].digest
    wanted.touch(0o600)
    wanted.write_text(LIST)
    filled = json.loads(run(lab, product.data, "sync", "-f", wanted, "--json"))
    assert {one["image"]: one["digest"] for one in filled["images"]} == {name: made[name].digest for name in SYNCED}
    asked = {event["registry"] for event in product.events()}
    assert asked == {"docker.io"}, "a client has asked for more than was to come by its pull"
    out = lab.fresh("carried")
    said = json.loads(run(lab, product.data, "export", "--all", "-o", out, "--json"))
    product.stop()
    logger.info("synced: %s", {key: value for key, value in filled.items() if key != "images"})
    logger.info("exported: %d images, %d blobs, %d bytes", len(said["images"]), said["blobs"], said["bytes"])
    assert {one["name"] for one in said["images"]} == set(IMAGES)
    return out


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in ("docker", "podman", "ctr", "cri")])
def test_the_whole_way(lab: Lab, serve: Serve, carried: Path, kind: str) -> None:
    """Every image is pulled by its own name, by clients that bring no credential, and is what it was upstream."""
    with switched_off(lab):
        far = lab.fresh("far")
        run(lab, far, "import", carried)
        product = serve(data=far, sections=OFFLINE)
        client = CLIENTS[kind](lab)
        mark = len(product.events())
        for reference, recipe in IMAGES.items():
            check(client.pull(reference), lab.image(recipe), "")
        events = product.events(mark)
    assert {event["outcome"] for event in events} <= {"HIT", "LOCAL"}, events
    assert all(event["status"] != 401 for event in events)


def _filled(lab: Lab, serve: Serve, reference: str, recipe: images.Recipe) -> Product:
    image, product = lab.image(recipe), serve()
    assert lab.skopeo().pull(reference).digest == image.digest
    return product


@NEEDS["ctr"]
@pytest.mark.parametrize("reference", ["quay.io/lab/tiny:1", "quay.io/lab/tiny:docker"])
def test_containerd_reads_and_writes(lab: Lab, serve: Serve, reference: str) -> None:
    """`ctr images import` of an export, all platforms of it, and `ctr images export` back into another cache."""
    recipe = IMAGES["quay.io/lab/tiny:1"] if reference.endswith(":1") else images.TINY_DOCKER
    product = _filled(lab, serve, reference, recipe)
    out, back, far = lab.fresh("out", ".tar"), lab.fresh("back", ".tar"), lab.fresh("far")
    run(lab, product.data, "export", reference, "-o", out)
    ctr = lab.ctr()
    assert ctr.load(out, reference, "--all-platforms").digest == lab.image(recipe).digest
    ctr.save(back, reference, "--all-platforms")
    run(lab, far, "import", back)
    assert _blobs(far) == _blobs(product.data)


@NEEDS["ctr"]
@NEEDS["podman"]
def test_containerd_reads_a_part(lab: Lab, serve: Serve) -> None:
    """What one node has pulled, exported with --partial, is an image for another node of the same platform."""
    reference, image = "quay.io/lab/tiny:1", lab.image(images.TINY)
    product = serve()
    lab.podman().pull(reference)
    out = lab.fresh("out", ".tar")
    with pytest.raises(LabError, match="linux/arm64"):
        run(lab, product.data, "export", reference, "-o", out)
    run(lab, product.data, "export", reference, "--partial", "-o", out)
    assert lab.ctr().load(out, reference).digest == image.digest


@NEEDS["ctr"]
def test_containerd_writes_one_platform(lab: Lab, serve: Serve) -> None:
    """What a node pulled for itself: the index is there whole, and the one platform that it has is served."""
    reference, image = "quay.io/lab/tiny:1", lab.image(images.TINY)
    product = serve()
    ctr, back, far = lab.ctr(), lab.fresh("back", ".tar"), lab.fresh("far")
    ctr.pull(reference)
    ctr.save(back, reference)
    product.stop()
    with switched_off(lab):
        run(lab, far, "import", back)
        serve(data=far, sections=OFFLINE)
        check(lab.podman().pull(reference), image, "")


@NEEDS["docker"]
@NEEDS["podman"]
def test_docker_save(lab: Lab, serve: Serve) -> None:
    """An image that Docker has saved has another manifest, and the same configuration and unpacked layers."""
    reference, image = "quay.io/lab/tiny:1", lab.image(images.TINY)
    product = serve()
    docker, saved, far = lab.docker(), lab.fresh("saved", ".tar"), lab.fresh("far")
    first: Arrived = docker.pull(reference)
    docker.save(reference, saved)
    product.stop()
    run(lab, far, "import", saved)
    with switched_off(lab):
        serve(data=far, sections=OFFLINE)
        docker.wipe()
        arrivals = [client.pull(reference) for client in (docker, lab.podman(), lab.ctr())]
    assert len({arrived.digest for arrived in arrivals}) == 1
    assert {arrived.config for arrived in arrivals} == {first.config}
    made = json.loads(_blobs(far)[arrivals[0].digest])
    assert made["config"]["digest"] == first.config == image.configs[AMD64]
    diff_ids = json.loads(_blobs(far)[first.config])["rootfs"]["diff_ids"]
    layers = [_blobs(far)[layer["digest"]] for layer in made["layers"]]
    assert [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers] == diff_ids


def _blobs(data: Path) -> dict[str, bytes]:
    return {f"sha256:{path.name}": path.read_bytes() for path in (data / "blobs").glob("*/*/*")}
