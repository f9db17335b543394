"""Real clients push to a remote registry through the product, and what they have pushed is what is pulled."""

import shutil
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_matrix import CONNECT, INSIDE
from tests.e2e.test_pull import CREDS, NEEDS
from tests.lab import images, network
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.product import CLEAR, Product
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, needs_root(), NEEDS["skopeo"]]

MIB = 1 << 20
BIG = 500 * MIB
OLD, NEW = images.Recipe("pushed:old", (50_000,)), images.Recipe("pushed:new", (60_000,))


def push(host: Host, image: images.Image, reference: str, *flags: str) -> None:
    """By skopeo, blobs and manifest as they are."""
    home = host.folder / "pushing"
    shutil.rmtree(home, ignore_errors=True)  # where it would remember what a registry has already
    home.mkdir()
    command = ("skopeo", "copy", "--quiet", "--preserve-digests", f"--dest-creds={CREDS}", *flags)
    host.run(*command, image.source, f"docker://{reference}", env={"HOME": str(home)}, timeout=300)


def seen(host: Host, reference: str, *flags: str) -> str:
    """The digest of what a tag is for a client on `host`."""
    command = ("skopeo", "inspect", f"--creds={CREDS}", "--format={{.Digest}}", *flags)
    return host.run(*command, f"docker://{reference}").out.strip()


@pytest.mark.parametrize(
    ("registry", "way"),
    [
        ("private.example.com", "hosts"),
        pytest.param("private.example.com", "connect", marks=pytest.mark.slow),
        pytest.param("private.example.com", "clear", marks=pytest.mark.slow),
        pytest.param("ghcr.io", "hosts", marks=pytest.mark.slow),
        pytest.param("ghcr.io", "connect", marks=pytest.mark.slow),
    ],
)
def test_a_tag_is_moved(lab: Lab, serve: Serve, registry: str, way: str) -> None:
    """A tag that was pulled is pushed anew through the cache: the next pull brings what was pushed."""
    ports = {"connect": CONNECT} if way == "connect" else {"clear": CLEAR} if way == "clear" else None
    product = serve(ports=ports, sections=INSIDE)
    reference = f"{registry}/private/moving:{way}"
    verify = "tls-verify=false" if way == "clear" else "tls-verify=true"
    before = (lab.node.etc / "hosts").read_text()
    if way == "connect":
        lab.node.variables["HTTPS_PROXY"] = f"http://{network.CACHE}:{CONNECT}"
        lab.node.resolve({})
    try:
        for recipe in (OLD, NEW):
            image = images.make(recipe, lab.fresh("image"))
            mark = len(product.events())
            push(lab.node, image, reference, f"--dest-{verify}")
            assert seen(lab.node, reference, f"--{verify}") == image.digest
            product.wait_for(lambda line: line["method"] == "PUT" and line["reference"] == way, since=mark)
            [put] = [line for line in product.events(mark) if line["method"] == "PUT" and line["reference"] == way]
            assert (put["outcome"], put["status"]) == ("RELAY", 201)
            assert all(line["outcome"] != "ERROR" for line in product.events(mark))
            assert [row for row in lab.internet.log.requests(registry) if row.method == "PUT"], "it went past the cache"
    finally:
        lab.node.variables.clear()
        (lab.node.etc / "hosts").write_text(before)


@pytest.mark.slow
@NEEDS["docker"]
def test_docker_pushes(lab: Lab, serve: Serve) -> None:
    """dockerd pulls, pushes to another repository, and that is pulled."""
    serve()
    lab.image(images.TINY)
    docker = lab.docker()
    docker.pull("private.example.com/private/tiny:1", creds=CREDS)
    docker.push("private.example.com/private/tiny:1", "private.example.com/private/again:1")
    pushed = lab.skopeo().pull("private.example.com/private/again:1", creds=CREDS)
    docker.wipe()
    assert docker.pull("private.example.com/private/again:1", creds=CREDS).digest == pushed.digest


@pytest.mark.slow
def test_a_big_push(lab: Lab, serve: Serve) -> None:
    """500 MB through the cache: its memory stays flat; how fast it is beside going direct is printed."""
    product = serve()
    before = _peak(product)
    took: dict[str, list[float]] = {"direct": [], "cache": []}
    cpu, pushed = 0.0, ""
    for turn in range(2):
        for way, host in (("direct", lab.direct), ("cache", lab.node)):
            folder = lab.fresh("image")  # another each time: clients and registries find ways not to push the same
            image = images.make(images.Recipe(f"{way}{turn}:1", (BIG,)), folder)
            used, started = _cpu(product), time.monotonic()
            push(host, image, f"private.example.com/private/{way}{turn}:1")
            took[way].append(time.monotonic() - started)
            cpu += _cpu(product) - used
            pushed = image.digest
            shutil.rmtree(folder)
    grown = _peak(product) - before
    direct, cache = min(took["direct"]), min(took["cache"])
    print(  # noqa: T201
        f"500 MiB pushed: direct {500 / direct:.0f} MiB/s, through the cache {500 / cache:.0f} MiB/s"
        f" ({direct / cache:.2f}x), its memory grew by {grown / MIB:.1f} MiB, {cpu / 1.048:.2f} CPU s/GB"
    )
    assert lab.skopeo().pull("private.example.com/private/cache1:1", creds=CREDS).digest == pushed
    assert grown < 32 * MIB
    assert cache < 3 * direct


def _status(product: Product) -> Path:
    assert product.process is not None
    return Path(f"/proc/{product.process.pid}")


def _peak(product: Product) -> int:
    """The most resident memory that the process has ever had, in bytes (proc(5), VmHWM)."""
    lines = (_status(product) / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def _cpu(product: Product) -> float:
    """Seconds of CPU that the process has used."""
    fields = (_status(product) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
