"""Push on demand with real daemons: an image is built, and nodes pull it without anybody's having pushed it."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_doctor import on_host
from tests.e2e.test_pull import NEEDS
from tests.lab.clients import Client
from tests.lab.docker import Docker
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.process import LabError, Process, wait_until
from tests.lab.product import MIRROR, MIRROR_URL, Event, Product, Section
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, needs_root(), NEEDS["docker"], NEEDS["ctr"]]

NAME = "localhost:5000"
APP = f"{NAME}/team/app"
GIB = 1 << 30

logger = logging.getLogger(__name__)


def trust(host: Host) -> None:
    """What `mitm-cache setup` writes for a local name: nodes find it at the cache."""
    folder = host.etc / "containerd/certs.d" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    text = f'server = "{MIRROR_URL}"\n[host."{MIRROR_URL}"]\ncapabilities = ["pull", "resolve"]\n'
    (folder / "hosts.toml").write_text(text)


@pytest.fixture
def docker(lab: Lab) -> Docker:
    """The daemon of the cache host, which to itself is localhost."""
    return lab.docker(lab.cache)


@pytest.fixture
def product(lab: Lab, serve: Serve, docker: Docker) -> Product:
    return begin(lab, serve, f"unix://{docker.socket}")


def begin(lab: Lab, serve: Serve, daemon: str, more: Mapping[str, Section] = MappingProxyType({})) -> Product:
    """The product on port 5000 of all addresses, and nodes that know of it."""
    sections: dict[str, Section] = {"local": {"names": [NAME], "daemon": daemon}, **more}
    product = serve(ports={"mirror": MIRROR}, address="0.0.0.0", sections=sections)
    trust(lab.node)
    return product


def count(product: Product, number: int) -> int:
    """See that so many manifests have been pushed in all; a mark of the access lines after them."""

    def pushed() -> int:
        return len([line for line in product.events() if line["method"] == "PUT" and line["reference"]])

    wait_until(lambda: pushed() >= number, "the access line of a push")
    assert pushed() == number
    return len(product.events())


def first_byte(product: Product, since: int = 0) -> float:
    """Milliseconds that a pull waited for its first answer about its tag: access lines come at the end of answers."""

    def is_asking(line: Event) -> bool:
        return line["method"] in ("GET", "HEAD") and ":" not in str(line["reference"]) and line["reference"] != ""

    return float(str(product.wait_for(is_asking, since=since)["ttfb_ms"]))


KINDS: dict[str, Callable[[Lab], Client]] = {"ctr": Lab.ctr, "cri": Lab.cri}


@pytest.mark.parametrize("kind", ["ctr", pytest.param("cri", marks=[NEEDS["cri"], pytest.mark.slow])])
def test_what_is_built_is_pulled(lab: Lab, docker: Docker, product: Product, kind: str) -> None:
    """Built, pulled; built anew, pulled anew; pulled again, and nothing is pushed."""
    client, mark, built = KINDS[kind](lab), 0, ""
    for turn in range(2):
        built = docker.build(f"{APP}:1", os.urandom(1000), buildkit=turn == 1)
        assert client.pull(f"{APP}:1").config == built
        logger.info("%s: first byte after %.0f ms, with the push", kind, first_byte(product, mark))
        mark = count(product, turn + 1)
    assert KINDS[kind](lab).pull(f"{APP}:1").config == built
    logger.info("%s: first byte after %.0f ms, without", kind, first_byte(product, mark))
    count(product, 2)


def test_the_doctor(lab: Lab, serve: Serve, docker: Docker) -> None:
    """A daemon that runs is found well, and one that does not is told."""
    product = begin(lab, serve, f"unix://{docker.socket}", {"listen": {"admin": ["127.0.0.1:9500"]}})
    docker.build(f"{APP}:1", b"")
    local = [each for each in on_host(lab, product).findings if each["check"] == "local"]
    assert {each["subject"] for each in local} >= {f"unix://{docker.socket}", NAME, "local.max_size", "certificate"}
    assert {each["status"] for each in local if each["subject"] != "local.max_size"} == {"OK"}, local
    docker.wipe()
    told = on_host(lab, product).find("local")
    assert told["subject"] == f"unix://{docker.socket}"
    assert told["cure"].startswith("sudo systemctl start docker")


@pytest.mark.slow
def test_what_nobody_has(lab: Lab, docker: Docker, product: Product) -> None:
    """404 as of any registry."""
    docker.build(f"{APP}:1", b"")
    with pytest.raises(LabError, match="not found"):
        lab.ctr().pull(f"{APP}:other")


@pytest.mark.slow
def test_nodes_at_once(lab: Lab, serve: Serve, docker: Docker) -> None:
    """Many nodes, several processes: one push."""
    product = begin(lab, serve, f"unix://{docker.socket}", {"serve": {"workers": 2}})
    built = docker.build(f"{APP}:1", os.urandom(30 << 20))
    clients = [lab.ctr() for _ in range(4)]
    with ThreadPoolExecutor(len(clients)) as pool:
        arrived = list(pool.map(lambda client: client.pull(f"{APP}:1").config, clients))
    assert arrived == [built] * len(clients)
    count(product, 1)


@pytest.mark.slow
def test_by_digest(lab: Lab, docker: Docker, product: Product) -> None:
    """What was removed here and is asked for by its digest is pushed again."""
    docker.build(f"{APP}:1", os.urandom(1000))
    digest = lab.ctr().pull(f"{APP}:1").digest
    lab.node.run("curl", "-sf", "-X", "DELETE", f"{MIRROR_URL}/v2/{NAME}/team/app/manifests/{digest}")
    count(product, 1)
    assert lab.ctr().pull(f"{APP}@{digest}").digest == digest
    count(product, 2)


@pytest.mark.slow
def test_somebody_elses_stays(lab: Lab, docker: Docker, product: Product) -> None:
    """What another machine has pushed later is not overwritten by an older image of the daemon's."""
    docker.build(f"{APP}:1", b"older")
    other = lab.docker(lab.cache)
    newer = other.build(f"{APP}:1", b"newer")
    other.push_built(f"{APP}:1")
    mark = count(product, 1)
    assert lab.ctr().pull(f"{APP}:1").config == newer
    first_byte(product, mark)
    count(product, 1)
    latest = docker.build(f"{APP}:1", b"latest")
    assert lab.ctr().pull(f"{APP}:1").config == latest
    count(product, 2)


@pytest.mark.slow
def test_a_push_by_hand_at_the_same_time(lab: Lab, docker: Docker, product: Product) -> None:
    """Neither waits for the other, and what is pulled is what was built."""
    built = docker.build(f"{APP}:1", os.urandom(30 << 20))
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        by_hand = pool.submit(docker.push_built, f"{APP}:1")
        pulled = pool.submit(lab.ctr().pull, f"{APP}:1")
        by_hand.result()
        assert pulled.result().config == built
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_the_daemon_is_away(lab: Lab, docker: Docker, product: Product) -> None:
    """What is stored is served; it costs a pull no second."""
    built = docker.build(f"{APP}:1", os.urandom(1000))
    lab.ctr().pull(f"{APP}:1")
    docker.wipe()
    mark = count(product, 1)
    assert lab.ctr().pull(f"{APP}:1").config == built
    assert first_byte(product, mark) < 1500
    assert "does not say what it has" in product.said()


def test_where_there_are_users(lab: Lab, serve: Serve, docker: Docker) -> None:
    """Strangers push nothing; what is pushed on demand needs no password."""
    users = lab.fresh("users")
    users.write_text("")
    users.chmod(0o600)
    product = begin(lab, serve, f"unix://{docker.socket}", {"clients": {"users_file": str(users)}})
    built = docker.build(f"{APP}:1", os.urandom(1000))
    with pytest.raises(LabError, match=r"denied|unauthorized|authentication required"):
        docker.push_built(f"{APP}:1")
    assert lab.ctr().pull(f"{APP}:1").config == built
    assert [line["status"] for line in product.events() if line["method"] == "PUT" and line["reference"] == "1"] == [
        201
    ]


@contextmanager
def podman(host: Host, folder: Path) -> Iterator[tuple[Callable[..., str], Path]]:
    """Podman's service with a storage of its own: its command, and its socket."""
    folder.mkdir()
    flags = ("--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs")
    command = ("podman", *flags, "--events-backend", "none", "--cgroup-manager", "cgroupfs")
    config = host.etc / "containers/registries.conf"
    before = config.read_text()
    config.write_text(f'[[registry]]\nlocation = "{NAME}"\ninsecure = true\n')
    socket = folder / "socket"
    service: Process = host.start("podman", *command, "system", "service", "--time", "0", f"unix://{socket}")
    try:
        ping = ("curl", "-sf", "--unix-socket", str(socket), "http://podman/_ping")
        service.wait_until(lambda: host.attempt(*ping).returncode == 0, "podman's answer")
        yield lambda *arguments: host.run(*command, *arguments).out, socket
    finally:
        service.stop()
        config.write_text(before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@NEEDS["podman"]
def test_podman(lab: Lab, serve: Serve) -> None:
    """Its socket is as good as Docker's, and so are its images."""
    with podman(lab.cache, lab.fresh("service")) as (run, socket):
        product = begin(lab, serve, f"unix://{socket}")
        context = lab.fresh("context")
        context.mkdir()
        (context / "Containerfile").write_text("FROM scratch\nCOPY content /\n")
        client, mark = lab.ctr(), 0
        for turn in range(2):
            (context / "content").write_bytes(os.urandom(1000))
            run("build", "--quiet", "--tag", f"{APP}:1", str(context))
            [seen] = json.loads(run("image", "inspect", f"{APP}:1"))
            assert client.pull(f"{APP}:1").config == f"sha256:{seen['Id']}"
            mark = count(product, turn + 1)
        lab.ctr().pull(f"{APP}:1")
        first_byte(product, mark)
        count(product, 2)


@pytest.mark.slow
def test_an_image_of_a_gibibyte(lab: Lab, docker: Docker, product: Product) -> None:
    """A client waits for its first byte for as long as the push takes; built anew with the same layer, not for long."""
    built = docker.build(f"{APP}:big", os.urandom(GIB))
    began = time.monotonic()
    assert lab.ctr().pull(f"{APP}:big").config == built
    seconds = time.monotonic() - began
    logger.info("1 GiB: first byte after %.1f s, all after %.1f s", first_byte(product) / 1000, seconds)
    count(product, 1)
