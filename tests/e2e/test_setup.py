"""`mitm-cache setup` on a node with files of its own: one command, real pulls, and an undo to the byte."""

import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.e2e.conftest import Serve
from tests.e2e.test_matrix import CONNECT, INSIDE
from tests.e2e.test_pull import AMD64, NEEDS, check, pull_twice
from tests.lab import images, network, registries
from tests.lab.clients import Client, Podman
from tests.lab.containerd import CONTAINERD, UNPACK, Cri, Ctr
from tests.lab.docker import Docker
from tests.lab.host import Host, Ran
from tests.lab.lab import Lab
from tests.lab.process import Process
from tests.lab.product import CLEAR, MIRROR, TLS, Product
from tests.needs import needs_root, needs_tool

pytestmark = [
    pytest.mark.e2e,
    needs_root(),
    needs_tool("update-ca-certificates", package="ca-certificates"),
]

# What is written stays, unlike on the lab's other hosts, where each program has an /etc of its own.
_SETTLE = """
set -e
for one in var/lib usr/local; do
    mkdir -p "$1/rw/$one" "$1/rw/work-$one"
    mount -t overlay lab -o "lowerdir=/$one,upperdir=$1/rw/$one,workdir=$1/rw/work-$one" "/$one"
done
rm -rf /var/lib/mitm-cache-setup  # of this machine's own set-up, if it has one
touch "$1/settled"
exec sleep infinity
"""
_WATCHED = ("etc", "usr/local/share/ca-certificates", "var/lib/mitm-cache-setup")
# dockerd's own key, and Java's store, into which a hook of Debian's puts CAs and never takes them out.
_OTHERS = {"key.json", "cacerts"}

DAEMON_JSON = b"""{
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m", "max-file": "3"},
    "max-concurrent-downloads": 5,
    "insecure-registries": ["registry.lan:5000"]
}"""
CONFIG_TOML = """# Written by the distribution.
version = 2
root = "{folder}/data"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]

[grpc]
  address = "{folder}/socket"

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    disable_cgroup = true
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      snapshotter = "native"  # ours
      disable_snapshot_annotations = true
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
{unpack}
"""
REGISTRIES = b"""unqualified-search-registries = ["docker.io"]

[[registry]]
location = "registry.lan"
insecure = true
"""


class Settled(Host):
    """A host whose programs share one /etc, /usr/local and /var/lib, and find there what others wrote."""

    def __init__(self, host: Host) -> None:
        self.__dict__.update(host.__dict__)
        self.variables = {}
        (self.folder / "settled").unlink(missing_ok=True)
        self._holder: Process = host.start("settled", "sh", "-c", _SETTLE, "lab", str(host.folder))
        self._holder.wait_until((self.folder / "settled").exists, "a settled host")
        self.root = Path(f"/proc/{self._holder.pid}/root")

    def _inside(self, command: Sequence[str]) -> list[str]:
        space = f"/proc/{self._holder.pid}/ns"
        return ["nsenter", f"--net={space}/net", f"--mount={space}/mnt", *command]

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)

    def snapshot(self) -> dict[str, tuple[object, ...]]:
        """Every file, link and folder that a set-up may touch: what it holds, and its mode and owner."""
        found: dict[str, tuple[object, ...]] = {}
        for top in _WATCHED:
            for folder, _, names in os.walk(self.root / top):
                for path in (Path(folder), *(Path(folder, name) for name in names)):
                    status = path.lstat()
                    if path.name in _OTHERS:
                        continue
                    holds: object = path.readlink() if path.is_symlink() else None
                    holds = path.read_bytes() if stat.S_ISREG(status.st_mode) else holds
                    found[str(path.relative_to(self.root))] = (holds, status.st_mode, status.st_uid, status.st_gid)
        return found

    def differs(self, before: dict[str, tuple[object, ...]]) -> set[str]:
        """The paths that are not as they were."""
        now = self.snapshot()
        return {path for path in {*now, *before} if now.get(path) != before.get(path)}

    def setup(self, arguments: str, *more: str) -> Ran:
        return self.run(sys.executable, "-m", "mitm_cache", "setup", *shlex.split(arguments), *more, timeout=120)

    def leave(self) -> None:
        self._holder.stop()
        (self.folder / "settled").unlink(missing_ok=True)


class SetDocker(Docker):
    """A dockerd with the node's own daemon.json."""

    def _start(self) -> None:
        assert isinstance(self._host, Settled)
        self._config = json.loads((self._host.root / "etc/docker/daemon.json").read_bytes())
        super()._start()


class SetCri(Cri):
    """A containerd with the node's own config.toml, asked as a kubelet asks."""

    def __init__(self, host: Settled, folder: Path) -> None:
        super().__init__(host, folder)
        host.put("/etc/containerd/config.toml", self.config(host).encode())

    def config(self, host: Host) -> str:
        """What the node has before."""
        return CONFIG_TOML.format(folder=self._folder, unpack=UNPACK)

    def _ensure(self) -> None:
        if self._daemon is None:
            self._launch("/etc/containerd/config.toml")


class SetCtr(SetCri, Ctr):
    """The same, asked by `ctr` with the folder that was set up."""

    pull = Ctr.pull


class SetDefault(SetCri):
    """A containerd with its own default written down, of whatever version that is; only its folders are moved."""

    def config(self, host: Host) -> str:
        text = host.run(CONTAINERD, "config", "default").out
        text = text.replace("/run/containerd/containerd.sock", f"{self._folder}/socket")
        text = text.replace("/var/lib/containerd", f"{self._folder}/data")
        text = text.replace("/run/containerd", f"{self._folder}/state")
        text = text.replace("disable_cgroup = false", "disable_cgroup = true")
        return re.sub(r"""snapshotter = ["']overlayfs["']""", 'snapshotter = "native"', text) + UNPACK


CLIENTS = {"docker": SetDocker, "cri": SetCri, "default": SetDefault, "ctr": SetCtr, "podman": Podman}


@pytest.fixture
def node(lab: Lab, product: Product) -> Iterator[Settled]:
    """A node that knows no registry, only Docker Hub's token host, and has a CA besides three public ones."""
    assert product.process is not None
    settled = Settled(lab.node)
    some = (settled.root / "etc/ca-certificates.conf").read_text().splitlines()
    listed = [line for line in some if line and line[0] not in "#!"]
    settled.put("/etc/ca-certificates.conf", "\n".join(listed[:3]).encode() + b"\n")
    settled.put("/usr/local/share/ca-certificates/lab.crt", lab.ca.cert_pem.bytes())
    settled.run("update-ca-certificates", "--fresh")
    hosts = f"127.0.0.1\tlocalhost node\n{network.TOKEN_HOST} {registries.TOKEN_HOST}  # no newline at the end"
    settled.put("/etc/hosts", hosts.encode())
    settled.put("/etc/docker/daemon.json", DAEMON_JSON, 0o600)
    settled.put("/etc/containers/registries.conf", REGISTRIES)
    yield settled
    lab.wipe_clients()
    settled.leave()


@pytest.fixture
def product(serve: Serve) -> Product:
    return serve(ports={"tls": TLS, "clear": CLEAR, "connect": CONNECT, "mirror": MIRROR}, sections=INSIDE)


def case(kind: str, options: str, *references: str, quick: bool = False) -> ParameterSet:
    marks = [NEEDS["cri" if kind == "default" else kind], *([] if quick else [pytest.mark.slow])]
    return pytest.param(kind, options, references, marks=marks, id=f"{kind} {options}".replace("--", ""))


CLOSED = f"{network.CACHE}:5009"
"""Of two caches the first one is down."""
QUAY, HUB, GHCR = "quay.io/lab/tiny:1", "docker.io/library/tiny:1", "ghcr.io/lab/tiny:1"


@pytest.mark.parametrize(
    ("kind", "options", "references"),
    [
        case("podman", "podman --way mirror", QUAY, HUB, quick=True),
        case("podman", "podman --way hosts", QUAY, HUB),
        case("podman", "podman --way hosts --store client", QUAY, HUB),
        case("podman", "podman --way hosts --trust insecure", QUAY),
        case("podman", "podman --way connect", QUAY, HUB),
        case("docker", "docker", QUAY, HUB),
        case("docker", "docker --store client", QUAY, HUB),
        case("docker", "docker --trust insecure", QUAY, HUB),
        case("docker", "docker --way connect", QUAY, HUB),
        case("docker", "docker --way connect --trust insecure", QUAY, HUB),
        case("docker", "docker --way mirror", HUB),
        case("cri", "containerd", QUAY, HUB),
        case("cri", "containerd --store client", QUAY, HUB),
        case("cri", "containerd --trust insecure", QUAY),
        case("cri", "containerd --way connect --store client", QUAY, HUB),
        case("cri", "containerd --way mirror", QUAY, HUB, GHCR),
        case("default", "containerd --way mirror", QUAY, HUB),
        case("ctr", "containerd --way mirror", QUAY, HUB, GHCR),
        case("ctr", "containerd --store client", QUAY, GHCR),
        case("cri", f"containerd --way mirror --cache {CLOSED}", QUAY),
        case("podman", f"podman --way mirror --cache {CLOSED}", QUAY),
        case("docker", f"docker --way mirror --cache {CLOSED}", HUB),
    ],
)
def test_pull_after_setup(
    lab: Lab, product: Product, node: Settled, kind: str, options: str, references: tuple[str, ...]
) -> None:
    """One command, and a client pulls through the cache; a second run changes nothing; the undo leaves no trace."""
    client: Client = lab._keep(CLIENTS[kind](node, lab.fresh(kind)))
    image, before = lab.image(images.TINY), node.snapshot()
    given = lab.fresh("ca", ".crt")
    given.write_text(product.ca)
    arguments = f"{options} --cache {network.CACHE}"
    arguments += "" if "insecure" in options or "mirror" in options else f" --ca {given}"

    shown = node.setup(arguments, "--dry-run").out
    assert "+++ /" in shown
    assert node.differs(before) == set()

    assert "Wrote" in node.setup(arguments).out
    after = node.snapshot()
    assert after != before
    assert "Nothing to change" in node.setup(arguments).out
    assert node.differs(after) == set()

    node.variables = environment(node)
    pull_twice(lab, product, client, references[0], image)
    for reference in references[1:]:  # of the same blobs, which the cache has by now
        client.wipe()
        mark = len(product.events())
        check(client.pull(reference), image, AMD64)
        asked = {"registry": reference.partition("/")[0], "digest": image.manifests[AMD64]}.items()
        product.wait_for(lambda event, asked=asked: asked <= event.items(), since=mark)  # type: ignore[misc]
    node.variables = {}

    client.wipe()
    assert "Put back" in node.setup("--undo").out
    assert node.differs(before) == set()
    assert "Nothing to undo" in node.setup("--undo").out


def environment(node: Settled) -> dict[str, str]:
    """What systemd, which does not run here, would hand to the daemons from their drop-ins."""
    found: dict[str, str] = {}
    for path in (node.root / "etc/systemd/system").glob("*.service.d/mitm-cache.conf"):
        found.update(re.findall(r'^Environment="([A-Z_]+)=(.*)"$', path.read_text(), re.MULTILINE))
    return found


@pytest.mark.slow
@NEEDS["docker"]
def test_the_ca_by_its_fingerprint(lab: Lab, product: Product, node: Settled) -> None:
    """The node fetches the CA from the cache, and takes it by the right fingerprint only."""
    before = node.snapshot()
    shown = lab.cache.run("openssl", "x509", "-noout", "-fingerprint", "-sha256", text=product.ca).out
    fingerprint = shown.strip().partition("=")[2]
    wrong = node.attempt(
        *(sys.executable, "-m", "mitm_cache", "setup", "docker", "--cache", network.CACHE, "--fingerprint", "00" * 32)
    )
    assert wrong.returncode == 1
    assert "not the cache's CA" in wrong.stderr
    assert node.differs(before) == set()
    node.setup(f"docker --cache {network.CACHE} --fingerprint {fingerprint}")
    pull_twice(lab, product, lab._keep(SetDocker(node, lab.fresh("docker"))), QUAY, lab.image(images.TINY))
    node.setup("docker --undo")
    assert node.differs(before) == set()


@pytest.mark.slow
@NEEDS["docker"]
@NEEDS["cri"]
def test_two_clients_share_what_they_need(lab: Lab, product: Product, node: Settled) -> None:
    """Undoing one target leaves what another needs; and what somebody wrote meanwhile stays in any case."""
    client = lab._keep(SetCri(node, lab.fresh("cri")))
    before = node.snapshot()
    given = lab.fresh("ca", ".crt")
    given.write_text(product.ca)
    for target in ("docker", "containerd"):
        node.setup(f"{target} --cache {network.CACHE} --ca {given}")
    node.setup("docker --undo")
    pull_twice(lab, product, client, QUAY, lab.image(images.TINY))
    hosts = node.root / "etc/hosts"
    hosts.write_text(hosts.read_text() + "192.0.2.7 added.example\n")
    assert "changed by somebody" in node.setup("--undo").out
    assert hosts.read_text().endswith("# no newline at the end\n192.0.2.7 added.example\n")
    assert node.differs(before) == {"etc/hosts"}
