"""`mitm-cache doctor` on the lab's node and cache host: well, and with one fault at a time, each told with its cure."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_loops import leads_to
from tests.e2e.test_pull import NEEDS
from tests.e2e.test_setup import Settled
from tests.lab import images, network
from tests.lab.host import Host
from tests.lab.lab import ROOT, Lab
from tests.lab.product import MIRROR, MIRROR_URL, Product, Section, toml
from tests.lab.registries import ADDRESSES, REGISTRY_NAMES, TOKEN_HOST
from tests.lab.resolvers import dnsmasq
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, needs_root()]

CONNECT = 3128
PORTS = {"tls": 443, "clear": 80, "connect": CONNECT, "mirror": MIRROR}
SECTIONS: Mapping[str, Section] = {
    "listen": {"admin": ["127.0.0.1:9500"]},
    "upstream": {"allow_private": True},  # the lab's internet has private addresses
    "cache": {"max_size": "1%"},  # the machine's disk is not the lab's to fill
}
QUAY = "quay.io/lab/tiny:1"
HUB = "docker.io/library/tiny:1"
SECONDS = 20.0
"""The doctor's own limit is fifteen, and the machine may be busy."""
SHIFTED = """
import http.server, sys, time
from email.utils import formatdate
class Door(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response_only(200)
        self.send_header("Date", formatdate(time.time() + float(sys.argv[2]), usegmt=True))
        self.send_header("X-Cache", "LOCAL")
        self.end_headers()
http.server.ThreadingHTTPServer((sys.argv[1], 5000), Door).serve_forever()
"""
"""A mirror on a host whose clock is another."""


@dataclass(frozen=True)
class Visit:
    """What the doctor said, and how it ended."""

    status: int
    findings: list[dict[str, str]]

    def failed(self) -> set[str]:
        """The kinds of checks that failed."""
        return {each["check"] for each in self.findings if each["status"] == "FAIL"}

    def find(self, check: str, status: str = "FAIL") -> dict[str, str]:
        """The first finding of a kind with this status."""
        found = [each for each in self.findings if (each["check"], each["status"]) == (check, status)]
        assert found, self.findings
        return found[0]


def visit(host: Host, *arguments: str, config: Path = Path("/dev/null")) -> Visit:
    """Run it there. Its exit status must be that of its findings, and each but OK must have its cure."""
    command = [sys.executable, "-m", "mitm_cache", "--config", str(config), "doctor", "--json", *arguments]
    done = host.attempt(*command, env={"PYTHONPATH": str(ROOT)}, timeout=SECONDS)
    assert "Traceback" not in done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert all(each["cure"] for each in findings if each["status"] != "OK"), findings
    found = Visit(done.returncode, findings)
    assert found.status == (1 if found.failed() else 0)
    return found


def on_node(lab: Lab, *images_asked: str) -> Visit:
    asked = [word for image in images_asked or (QUAY,) for word in ("--registry", image)]
    return visit(lab.node, "--node", "--cache", network.CACHE, *asked)


def on_host(lab: Lab, product: Product, *asked: str) -> Visit:
    config = lab.fresh("doctor", ".toml")
    config.write_text(toml(product.settings))
    return visit(lab.cache, "--host", *(word for name in asked for word in ("--registry", name)), config=config)


@pytest.fixture
def cache(lab: Lab, serve: Serve) -> Product:
    """A cache with every listener, and an image upstream."""
    lab.image(images.TINY)
    return serve(ports=PORTS, sections=SECTIONS)


@pytest.fixture
def restored(lab: Lab) -> Iterator[Lab]:
    """Names and settings of node and cache host are as before afterwards."""
    files = [host.etc / name for host in (lab.node, lab.cache) for name in ("hosts", "resolv.conf")]
    before = [path.read_text() for path in files]
    yield lab
    for path, text in zip(files, before, strict=True):
        path.write_text(text)
    lab.node.variables.clear()
    (lab.node.etc / "docker" / "daemon.json").unlink(missing_ok=True)


def use_mirror(lab: Lab) -> None:
    path = lab.node.etc / "docker" / "daemon.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"registry-mirrors": [MIRROR_URL]}))


# A node.


def test_node_is_well(restored: Lab, cache: Product) -> None:
    """A node with the hosts entries, the CA and the mirror has no failure, and pulls by both ways."""
    use_mirror(restored)
    found = on_node(restored, QUAY, HUB)
    assert found.failed() == set(), found.findings
    pulls = [each for each in found.findings if each["check"] == "pulls" and each["status"] == "OK"]
    assert {each["subject"] for each in pulls} == {
        f"{QUAY} by tls {network.CACHE}:443",
        f"{HUB} by tls {network.CACHE}:443",
        f"{HUB} by mirror {network.CACHE}:{MIRROR} (dockerd)",
    }
    assert all("sha256:" in each["words"] and "X-Cache " in each["words"] for each in pulls)
    doors = {
        each["subject"].partition(" ")[0]
        for each in found.findings
        if (each["check"], each["status"]) == ("doors", "OK")
    }
    assert doors == set(PORTS)


def test_node_by_proxy(restored: Lab, cache: Product) -> None:
    """A node that knows no name and has HTTPS_PROXY is well too; what it is not asked, it finds out."""
    restored.node.resolve({})
    restored.node.variables["HTTPS_PROXY"] = f"http://{network.CACHE}:{CONNECT}"
    found = visit(restored.node, "--node", "--registry", QUAY, "--registry", HUB)
    assert found.failed() == set(), found.findings
    pulls = {each["subject"] for each in found.findings if (each["check"], each["status"]) == ("pulls", "OK")}
    assert pulls == {f"{image} by connect {network.CACHE}:{CONNECT}" for image in (QUAY, HUB)}


@pytest.mark.parametrize("wrong", ["", "10.78.0.99"], ids=["missing", "wrong"])
def test_hosts_entry(restored: Lab, cache: Product, wrong: str) -> None:
    """A name that is missing, or leads elsewhere: the line of the file, and the line to write."""
    names = dict.fromkeys((name for name in REGISTRY_NAMES if name != "quay.io"), network.CACHE)
    restored.node.resolve({**names, TOKEN_HOST: network.TOKEN_HOST, **({"quay.io": wrong} if wrong else {})})
    found = on_node(restored)
    told = found.find("names")
    assert found.failed() == {"names"}
    if wrong:
        text = (restored.node.etc / "hosts").read_text().splitlines()
        number = text.index(f"{wrong} quay.io") + 1
        assert f"/etc/hosts, line {number}" in told["words"]
        assert told["cure"] == f"take quay.io out of line {number} of /etc/hosts, and add: {network.CACHE} quay.io"
    else:
        assert told["cure"] == f"echo '{network.CACHE} quay.io' | sudo tee -a /etc/hosts"


def test_ca_is_not_trusted(restored: Lab, cache: Product) -> None:
    """Nowhere, then in each client's own folder, where Docker Hub in dockerd stays the exception."""
    ca = restored.fresh("ca", ".crt")
    ca.write_text(cache.ca)
    restored.node.trust("none", "")
    found = visit(restored.node, "--node", "--cache", network.CACHE, "--registry", QUAY, "--ca", str(ca))
    assert found.failed() == {"trust"}
    words = [each["words"] for each in found.findings if (each["check"], each["status"]) == ("trust", "FAIL")]
    assert {each.partition(":")[0] for each in words} == {"dockerd", "containerd", "podman and skopeo"}
    assert all("the system store does not believe the certificate" in each for each in words)
    assert f"sudo sh install-ca.sh {ca}" in found.find("trust")["cure"]
    # Docker Hub's token host is believed by the lab's own CA only.
    restored.node.trust("perclient", cache.ca, REGISTRY_NAMES)
    found = on_node(restored, QUAY, HUB)
    assert found.failed() == {"trust"}
    told = found.find("trust")
    assert told["subject"] == "docker.io"
    assert "dockerd reads neither certs.d nor insecure-registries for Docker Hub" in told["words"]


@pytest.mark.slow
@NEEDS["docker"]
def test_stale_daemon(restored: Lab, cache: Product) -> None:
    """A dockerd that has started before the CA was put into the system store does not trust it yet."""
    restored.node.trust("none", "")
    docker = restored.docker(mirrors=(MIRROR_URL,))
    docker.pull(HUB)
    assert "daemons" not in on_node(restored, HUB).failed()
    restored.node.trust("system", cache.ca + restored.ca_file.read_text())
    told = on_node(restored, HUB).find("daemons")
    assert told["subject"].startswith("dockerd (process ")
    assert "/etc/ssl/certs/ca-certificates.crt" in told["words"]
    assert told["cure"] == "sudo sh -c 'systemctl restart docker'"


@pytest.mark.slow
def test_listener_is_closed(restored: Lab, serve: Serve) -> None:
    """Hosts entries that lead to a host where nobody listens, and to an address that is nobody's."""
    restored.image(images.TINY)
    serve(ports={"mirror": MIRROR}, sections=SECTIONS)
    found = on_node(restored)
    assert {"doors", "pulls"} <= found.failed()
    told = found.find("doors")
    assert told["subject"] == f"tls {network.CACHE}:443"
    assert "refused" in told["words"]
    assert "listen.tls" in told["cure"]
    nobody = "10.77.0.99"
    restored.node.resolve({"quay.io": nobody})
    told = visit(restored.node, "--node", "--cache", nobody, "--registry", QUAY).find("doors")
    assert "firewall" in told["words"]


@pytest.fixture
def settled(lab: Lab) -> Iterator[Settled]:
    """A node that knows no registry, and keeps what is written to its /etc."""
    node = Settled(lab.node)
    node.put("/etc/hosts", f"127.0.0.1 localhost\n{network.TOKEN_HOST} {TOKEN_HOST}\n".encode())
    node.put("/etc/containerd/config.toml", b"version = 2\n")
    yield node
    lab.wipe_clients()
    node.leave()


@pytest.mark.slow
@NEEDS["podman"]
@NEEDS["ctr"]
def test_set_up_by_mirror(lab: Lab, cache: Product, settled: Settled) -> None:
    """What `mitm-cache setup` writes for containerd and podman is found and well; a closed mirror is told by name."""
    for client in ("containerd", "podman"):
        settled.setup(f"{client} --way mirror --cache {network.CACHE}")
    mirror = f"mirror {network.CACHE}:{MIRROR}"
    asked = ("--node", "--registry", QUAY, "--registry", HUB)
    found = visit(settled, *asked)
    assert found.failed() == set(), found.findings
    assert not [each for each in found.findings if each["status"] == "WARN"], found.findings
    pulls = {each["subject"] for each in found.findings if (each["check"], each["status"]) == ("pulls", "OK")}
    clients = ("containerd", "podman and CRI-O")
    assert pulls == {f"{image} by {mirror} ({client})" for image in (QUAY, HUB) for client in clients}
    cache.stop()
    found = visit(settled, *asked)
    assert found.failed() == {"doors", "pulls"}
    told = found.find("doors")
    assert told["subject"] == mirror
    for path in ("/etc/containerd/certs.d/_default/hosts.toml", "/etc/containers/registries.conf.d/mitm-cache.conf"):
        assert path in told["words"]
    assert "listen.mirror" in told["cure"]


@pytest.mark.slow
@pytest.mark.parametrize("shift", [3 * 86400, -3 * 86400], ids=["node behind", "node ahead"])
def test_clock(restored: Lab, shift: int) -> None:
    """A cache whose Date is three days away: certificates of one are not valid by the clock of the other."""
    use_mirror(restored)
    fake = restored.cache.start("shifted", sys.executable, "-c", SHIFTED, network.CACHE, str(shift))
    try:
        fake.wait_until(lambda: restored.cache.listening(MIRROR), "the mirror with another clock")
        told = on_node(restored, "docker.io").find("clock")
    finally:
        fake.stop()
    assert "certificates are not valid by it" in told["words"]
    assert "timedatectl set-ntp true" in told["cure"]


@pytest.mark.slow
def test_upstream_is_down(restored: Lab, cache: Product) -> None:
    """The node is told what the cache says, and that the cause is on the cache's host; there it is found."""
    restored.internet.front.set_faults({"quay.io": "return 503;"})
    try:
        on_the_node, on_the_host = on_node(restored), on_host(restored, cache, "quay.io")
    finally:
        restored.internet.front.set_faults({})
    told = on_the_node.find("pulls")
    assert on_the_node.failed() == {"pulls"}
    assert told["cure"] == "on the cache host: mitm-cache doctor --host --registry quay.io"
    told = on_the_host.find("upstream")
    assert on_the_host.failed() == {"upstream"}
    assert "/v2/ answers 503" in told["words"]
    assert "curl -v https://quay.io/v2/" in told["cure"]


# The cache host.


def test_host_is_well(restored: Lab, cache: Product) -> None:
    """A cache host whose own hosts file leads to itself is well: its router does not look there."""
    found = on_host(restored, cache, "quay.io", "docker.io")
    assert found.failed() == set(), found.findings
    loops = {each["subject"] for each in found.findings if (each["check"], each["status"]) == ("loop", "OK")}
    assert loops == {"quay.io", "docker.io"}
    assert "runs and is ready" in found.find("service", "OK")["words"]


def test_host_leads_to_itself(restored: Lab, serve: Serve) -> None:
    """A name server that sends everybody to the cache, the cache too: the keys that lead out, and that they do."""
    restored.cache.resolve({})
    sections = {**SECTIONS, "upstream": {"resolvers": []}}
    product = serve(ports=PORTS, sections=sections)
    with dnsmasq(restored.cache, leads_to(network.CACHE)):
        found = on_host(restored, product, "quay.io")
        assert found.failed() == {"loop"}
        assert "quay.io leads back to this cache" in found.find("loop")["words"]
        assert "upstream.resolvers" in found.find("loop")["cure"]
        assert "resolve" in found.find("loop")["cure"]
        product.settings["registries"] = {"quay.io": {"resolve": [ADDRESSES["quay.io"]]}}
        assert "loop" not in on_host(restored, product, "quay.io").failed()


@contextmanager
def small_disk(lab: Lab) -> Iterator[Path]:
    """A file system of 100 MiB in memory."""
    folder = lab.fresh("small")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "lab", str(folder)], check=True)
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        yield folder


@pytest.mark.slow
def test_small_disk(restored: Lab, serve: Serve) -> None:
    """A limit that the disk cannot hold, and a disk that others have filled."""
    with small_disk(restored) as folder:
        product = serve(data=folder / "data", ports=PORTS, sections={**SECTIONS, "cache": {"max_size": "1G"}})
        told = on_host(restored, product, "quay.io").find("disk")
        assert told["cure"] == 'cache.max_size = "80%", or a file system of its own'
        (folder / "others").write_bytes(bytes(60 << 20))
        product.settings["cache"] = {"max_size": "80%"}
        told = on_host(restored, product, "quay.io").find("disk")
        assert "there is no room for downloads" in told["words"]
        assert told["cure"].startswith("free some (du -xsh")
        product.stop()


@pytest.mark.slow
def test_service_is_stopped(restored: Lab, cache: Product) -> None:
    """A cache that does not run: how it is started."""
    cache.stop()
    found = on_host(restored, cache, "quay.io")
    assert found.failed() == {"service"}
    assert found.find("service")["cure"].startswith("sudo systemctl start mitm-cache")
