"""What is read of a node: its hosts file, daemons' settings and trust, and the ways to the cache that follow."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.doctor import processes
from mitm_cache.doctor.finding import Status
from mitm_cache.doctor.node import HostsLine, look, own_trust, read_daemon_json, read_hosts
from mitm_cache.doctor.probes import Way
from mitm_cache.doctor.rounds import visit
from mitm_cache.registries import Known, Registry
from tests.doctor.nodes import QUAY, put, scene
from tests.lab.process import wait_until

LOCAL = Registry("localhost", "localhost")
"""A name that every machine resolves, to itself."""
KNOWN = Known([LOCAL])


def test_hosts_file(tmp_path: Path) -> None:
    """Lines with their numbers; comments, empty lines and what is no address are passed over."""
    path = put(tmp_path, "/etc/hosts", "# 1.1.1.1 a\n\n10.0.0.5 quay.io Q.example # cache\nnonsense quay.io\n::1 x\n")
    assert read_hosts(path) == (HostsLine(3, "10.0.0.5", ("quay.io", "q.example")), HostsLine(5, "::1", ("x",)))
    assert read_hosts(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[]", "is not a JSON object")],
)
def test_broken_daemon_json(tmp_path: Path, text: str, words: str) -> None:
    """What dockerd would not start with is told."""
    assert words in read_daemon_json(put(tmp_path, "daemon.json", text))[1]


def test_ways(tmp_path: Path) -> None:
    """Hosts entries, a daemon's drop-in and a mirror, all to one address, are three ways."""
    put(tmp_path, "/etc/hosts", "127.0.0.1 localhost\n")
    put(tmp_path, "/etc/docker/daemon.json", json.dumps({"registry-mirrors": ["http://127.0.0.1:5001"]}))
    drop_in = (
        '[Service]\n# Environment="HTTPS_PROXY=http://10.1.1.1:1"\n'
        'Environment="HTTPS_PROXY=http://localhost:3129" "NO_PROXY=a,b"\n'
    )
    path = put(tmp_path, "/etc/systemd/system/docker.service.d/proxy.conf", drop_in)
    found = look(scene(tmp_path, known=KNOWN, caches=("127.0.0.1", "::1")))
    assert {way for way in found.ways if way.address == "127.0.0.1"} == {
        Way("tls", "127.0.0.1", 443),
        Way("connect", "127.0.0.1", 3129),
        Way("mirror", "127.0.0.1", 5001),
    }
    (setting,) = found.proxies
    assert (setting.source, setting.proxy, setting.bypass) == (str(path), "http://localhost:3129", "a,b")


def test_the_cache_is_found(tmp_path: Path) -> None:
    """Without --cache it is the address that most registries' names have in the hosts file; else the mirror's."""
    put(tmp_path, "/etc/hosts", "10.0.0.9 quay.io\n10.0.0.5 docker.io ghcr.io\n10.0.0.7 db.example\n")
    known = Known([QUAY, Registry("docker.io", "docker.io"), Registry("ghcr.io", "ghcr.io")])
    here = scene(tmp_path, known=known)
    assert look(here).caches == ("10.0.0.5",)
    (tmp_path / "etc/hosts").unlink()
    put(tmp_path, "/etc/docker/daemon.json", json.dumps({"registry-mirrors": ["http://10.0.0.6:5000/"]}))
    found = look(here)
    assert found.caches == ("10.0.0.6",)
    assert found.ways == (Way("mirror", "10.0.0.6", 5000),)


def test_own_trust(tmp_path: Path) -> None:
    """Each client's folders for a registry; containers' tools read docker's too, containerd its hosts.toml."""
    docker = put(tmp_path, "/etc/docker/certs.d/quay.io/ca.crt", "x")
    ours = put(tmp_path, "/etc/containers/certs.d/quay.io/own.crt", "x")
    named = put(tmp_path, "/etc/ssl/cache.pem", "x")
    hosts = 'server = "https://quay.io"\n[host."https://quay.io"]\nca = ["/etc/ssl/cache.pem", "/etc/ssl/none.pem"]\n'
    toml = put(tmp_path, "/etc/containerd/certs.d/quay.io/hosts.toml", hosts)
    here = scene(tmp_path)
    assert own_trust(here, "docker", QUAY).files == (docker,)
    assert own_trust(here, "containers", QUAY).files == (ours, docker)
    assert own_trust(here, "containerd", QUAY).files == (named,)
    toml.write_text('[host."https://quay.io"]\nskip_verify = true\n')
    assert own_trust(here, "containerd", QUAY).unverified == str(toml)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is called dockerd."""
    program = tmp_path / "dockerd"
    shutil.copy2(shutil.which("sleep") or "/bin/sleep", program)
    command, env = [str(program), "600"], {"HTTPS_PROXY": "http://10.0.0.5:3128", "NO_PROXY": "quay.io"}
    with subprocess.Popen(command, env=env) as popen:
        # The kernel shows the arguments a moment after the name.
        wait_until(lambda: b"600" in Path(f"/proc/{popen.pid}/cmdline").read_bytes(), "the daemon's arguments")
        yield popen
        popen.kill()


def test_daemons(tmp_path: Path, daemon: "subprocess.Popen[bytes]") -> None:
    """A daemon is found by its name, with its start and its environment."""
    (found,) = [each for each in processes.find(Path("/proc"), {"dockerd"}) if each.pid == daemon.pid]
    assert abs(found.started - time.time()) < 60
    assert found.environ == {"HTTPS_PROXY": "http://10.0.0.5:3128", "NO_PROXY": "quay.io", "": ""}
    assert found.arguments[1] == "600"
    assert "docker" in look(scene(tmp_path, known=KNOWN, caches=("10.0.0.5",))).clients


def test_a_daemon_s_own_daemon(tmp_path: Path) -> None:
    """The containerd that dockerd has started is dockerd's affair: it pulls nothing by itself."""
    for name, program in (("dockerd", "sh"), ("containerd", "sleep")):
        shutil.copy2(os.path.realpath(shutil.which(program) or f"/bin/{program}"), tmp_path / name)
    command = [str(tmp_path / "dockerd"), "-c", f"{tmp_path}/containerd 600 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        child = int(popen.stdout.readline())
        try:
            comm = Path(f"/proc/{child}/comm")
            wait_until(lambda: comm.read_text().strip() == "containerd", "the daemon's own daemon")
            both = processes.find(Path("/proc"), {"dockerd", "containerd"})
            alone = processes.find(Path("/proc"), {"containerd"})
        finally:
            os.kill(child, signal.SIGKILL)
    assert {each.pid for each in both} & {popen.pid, child} == {popen.pid}
    assert child in {each.pid for each in alone}


def test_limits() -> None:
    """A process's own limit, user and listening sockets are read."""
    assert processes.owner(Path("/proc"), os.getpid()) == os.geteuid()
    limit = processes.open_files_limit(Path("/proc"), os.getpid())
    assert limit is None or limit > 0
    assert processes.open_files_limit(Path("/proc"), 0) is None


def test_a_file_that_hangs(tmp_path: Path) -> None:
    """As on a file system whose server is gone, which a pipe is like: it is told, and nobody waits for it."""
    pipe = tmp_path / "etc/docker/daemon.json"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    try:
        found = visit(scene(tmp_path, known=KNOWN, proc=tmp_path), node=True, host=False, patience=0.3)
    finally:
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
    assert [(each.status, each.words) for each in found] == [(Status.FAIL, "no end within 0.3 s")]


def test_a_mirror_that_is_no_url(tmp_path: Path) -> None:
    """It is nobody's, and looked for in no folder."""
    mirrors = ["http://a\0b", "http://[::1", "http://x:y", "x"]
    put(tmp_path, "/etc/docker/daemon.json", json.dumps({"registry-mirrors": mirrors}))
    assert look(scene(tmp_path, known=KNOWN, proc=tmp_path)).mirrors == ()


def test_without_proc(tmp_path: Path) -> None:
    """Where it is not mounted, as in some sandboxes, no daemon is seen, and the rest is still looked at."""
    assert processes.find(tmp_path, {"dockerd"}) == ()
    assert processes.find(tmp_path / "none", {"dockerd"}) == ()
    assert processes.listeners(tmp_path) == {}
