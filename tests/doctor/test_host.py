"""The cache host: real directories, keys, sockets, processes and registries, with one fault at a time."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from mitm_cache.ca import CertificateAuthority
from mitm_cache.cache.layout import open_layout
from mitm_cache.config import Config, load
from mitm_cache.doctor import host_disk, host_upstream, rounds, service
from mitm_cache.doctor.finding import Finding, Status, ok
from mitm_cache.doctor.host_disk import User
from mitm_cache.doctor.scene import Scene
from mitm_cache.doctor.service import Service
from mitm_cache.parsing import Endpoint
from mitm_cache.registries import Registry
from tests.doctor.nodes import scene, worst
from tests.doctor.servers import answering
from tests.fakes.registry import LyingUpstream
from tests.needs import needs_root
from tests.serving import LISTENERS, Threaded, in_thread, settings

HERE = "127.0.0.1"
DEMO = Registry("registry.demo", "registry.demo")
STOPPED = Service(endpoint=Endpoint(HERE, 9500))


def configured(tmp_path: Path, text: str = "") -> Config:
    path = tmp_path / "config.toml"
    path.write_text(f'data_dir = "{tmp_path / "data"}"\n{text}')
    return load(file=path, environ={})


def made(tmp_path: Path) -> Config:
    """A data directory as a first start leaves it."""
    config = configured(tmp_path)
    open_layout(config.data_dir)
    CertificateAuthority.create(config.ca_dir, permitted=config.permitted_names(), now=datetime.now(UTC))
    return config


def data(tmp_path: Path, config: Config) -> Finding:
    return worst(host_disk.check_data(scene(tmp_path), config, STOPPED))


def ca(tmp_path: Path, config: Config, **more: Any) -> Finding:
    return worst(host_disk.check_ca(scene(tmp_path, **more), config, STOPPED))


# The data directory.


def test_data(tmp_path: Path) -> None:
    """A good one, one that is not there, one of a newer program, one that is damaged, and one of somebody else."""
    assert data(tmp_path, configured(tmp_path)).status is Status.WARN
    config = made(tmp_path)
    assert data(tmp_path, config).status is Status.OK
    marker = config.data_dir / "FORMAT"
    marker.write_text(json.dumps({"format": 99, "identity": "x"}))
    newer = data(tmp_path, config)
    assert (newer.status, newer.words) == (Status.FAIL, "says format 99, and this version knows 1")
    assert newer.cure.startswith("install the version that wrote it")
    marker.write_text("{")
    assert data(tmp_path, config).words == "is damaged"
    marker.unlink()
    foreign = data(tmp_path, config)
    assert foreign.status is Status.FAIL
    assert foreign.cure.startswith("data_dir = ")


def test_another_configuration(tmp_path: Path) -> None:
    """A service that runs over another directory is not the one that this configuration is of."""
    other = Service(endpoint=STOPPED.endpoint, running=True, alive=True, document={"data_dir": "/srv/cache"})
    found = worst(host_disk.check_data(scene(tmp_path), made(tmp_path), other))
    assert found.status is Status.FAIL
    assert found.cure == "mitm-cache --config FILE doctor, or --data-dir /srv/cache"


@needs_root()
def test_another_owner(tmp_path: Path) -> None:
    """Files that a command run as root has left cannot be used by the service's user."""
    config = made(tmp_path)
    user = User(4242, frozenset({4242}), "somebody")
    for path in (config.data_dir, *config.data_dir.rglob("*")):
        os.chown(path, 4242, 4242)
    assert worst(host_disk.judge_rights(config.data_dir, user)).status is Status.OK
    os.chown(config.ca_dir / "ca.key", 0, 0)
    found = worst(host_disk.judge_rights(config.data_dir, user))
    assert found.status is Status.FAIL
    assert "ca.key is not its own to use" in found.words
    assert found.cure == f"sudo chown -R somebody: {config.data_dir}"
    os.chown(config.data_dir / "spool", 0, 0)
    assert "spool" in worst(host_disk.judge_rights(config.data_dir, user)).words


# Its disk.


@pytest.mark.parametrize(
    ("total", "free", "held", "limit", "status", "cure"),
    [
        (1000, 900, 0, 800, Status.OK, ""),
        (1000, 100, 800, 800, Status.OK, ""),
        (1000, 500, 100, 800, Status.WARN, f'cache.max_size = "{550 << 10}M"'),
        (1000, 900, 0, 2000, Status.FAIL, 'cache.max_size = "80%"'),
        (1000, 5, 100, 800, Status.FAIL, "free some (du -xsh"),
    ],
)
def test_disk(total: int, free: int, held: int, limit: int, status: Status, cure: str) -> None:
    """Room for what may come, in GiB: enough, shared with others, promised and not there, or gone."""
    numbers = {"total": total << 30, "free": free << 30, "held": held << 30, "limit": limit << 30}
    found = host_disk.judge_disk(Path("/"), **numbers)
    assert found.status is status
    assert cure in found.cure


def test_disk_is_measured(tmp_path: Path) -> None:
    """A limit beyond the file system is found on a real one."""
    made(tmp_path)
    config = configured(tmp_path, '[cache]\nmax_size = "900000T"\n')
    assert worst(host_disk.check_disk(config, STOPPED)).cure.startswith('cache.max_size = "80%"')


# The CA.


def test_ca(tmp_path: Path) -> None:
    """A good one, a key that others may read, one that is broken, and none."""
    config = made(tmp_path)
    key = config.ca_dir / "ca.key"
    assert ca(tmp_path, config).status is Status.OK
    key.chmod(0o644)
    readable = ca(tmp_path, config)
    assert (readable.status, readable.cure) == (Status.FAIL, f"sudo chmod 600 {key}")
    key.chmod(0o600)
    (config.ca_dir / "ca.crt").write_text("no certificate")
    assert "PEM" in ca(tmp_path, config).words
    key.unlink()
    (config.ca_dir / "ca.crt").unlink()
    assert ca(tmp_path, config).status is Status.WARN


@pytest.mark.parametrize(
    ("days", "status", "words"),
    [
        (0, Status.OK, ""),
        (5 * 365 - 10, Status.WARN, "ends in 9 days"),
        (5 * 365 + 3, Status.FAIL, "ended 3 days ago"),
        (-3, Status.FAIL, "is valid from"),
    ],
)
def test_the_end_of_the_ca(tmp_path: Path, days: int, status: Status, words: str) -> None:
    """The days that are left, by the clock of this host."""
    config = made(tmp_path)
    now = (datetime.now(UTC) + timedelta(days=days, seconds=60)).timestamp()
    found = ca(tmp_path, config, now=lambda: now)
    assert found.status is status
    assert words in found.words


def test_a_registry_that_was_added(tmp_path: Path) -> None:
    """A name outside the constraints is told before the start fails with it."""
    made(tmp_path)
    config = configured(tmp_path, '[registries."new.example.com"]\n')
    found = ca(tmp_path, config)
    assert found.status is Status.FAIL
    assert "may not sign for new.example.com" in found.words
    assert found.cure.startswith("mitm-cache ca rotate, ")


# The service and its ports.


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        yield upstream


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Iterator[Threaded]:
    with in_thread(tmp_path / "data", upstream, listen=(*LISTENERS, "admin")) as cache:
        yield cache


def at(config: Config, cache: Threaded) -> Config:
    """The configuration with the admin listener where it is."""
    from dataclasses import replace

    return replace(config, listen={**config.listen, "admin": (Endpoint(*cache.address("admin")),)})


def test_service(cache: Threaded, tmp_path: Path) -> None:
    """It runs and is ready; then its disk goes."""
    config = at(cache.app.config, cache)
    running = service.look(config)
    assert worst(service.check_service(running)).status is Status.OK
    ports = list(service.check_ports(scene(tmp_path), config, running))
    assert {each.status for each in ports} == {Status.OK}
    assert len(ports) == 5
    away = (cache.data / "spool").rename(cache.data / "away")
    try:
        found = worst(service.check_service(service.look(config)))
    finally:
        away.rename(cache.data / "spool")
    assert found.status is Status.FAIL
    assert "not ready: data_dir" in found.words
    assert "df" in found.cure


def test_no_service(tmp_path: Path) -> None:
    """Nobody, a stranger, and nobody to ask."""
    with answering(200, body=b"<html>") as port:
        config = configured(tmp_path, f'[listen]\nadmin = ["{HERE}:{port}"]\n')
        stranger = worst(service.check_service(service.look(config)))
    assert (stranger.status, stranger.words) == (Status.FAIL, "it is not mitm-cache that answers there")
    gone = worst(service.check_service(service.look(config)))
    assert gone.status is Status.FAIL
    assert gone.cure.startswith("sudo systemctl start mitm-cache")
    config = configured(tmp_path, "[listen]\nadmin = []\n")
    assert worst(service.check_service(service.look(config))).status is Status.SKIP


def test_a_port_is_taken(tmp_path: Path) -> None:
    """Another program on a port of ours is named, with its process."""
    with socket.create_server((HERE, 0)) as other:
        port = other.getsockname()[1]
        config = configured(tmp_path, f'[listen]\ntls = ["{HERE}:{port}"]\nclear = []\n')
        found = [each for each in service.check_ports(scene(tmp_path), config, STOPPED) if f":{port}" in each.subject]
    (taken,) = found
    assert taken.status is Status.FAIL
    assert f"({os.getpid()}) has it" in taken.words
    assert taken.cure == f"stop it (ss -ltnp 'sport = :{port}'), or another address in listen.tls"


def test_ports() -> None:
    """A listener that is gone while the service runs, one of systemd's, and one on the port of no hosts entry."""
    running = Service(
        endpoint=STOPPED.endpoint, running=True, alive=True, document={"listeners": [{"name": "tls", "port": 8443}]}
    )
    assert service.judge_port("clear", 80, None, running).status is Status.FAIL
    assert service.judge_port("clear", 80, None, STOPPED).status is Status.OK
    assert service.judge_port("tls", 443, frozenset({"systemd (1)"}), STOPPED).status is Status.OK
    high = service.judge_port("tls", 8443, frozenset({"mitm-cache (77)"}), running)
    assert high.status is Status.WARN
    assert "net.ipv4.ip_unprivileged_port_start=80" in high.cure


@pytest.mark.parametrize(("limit", "status"), [(1000, Status.WARN), (None, Status.OK)])
def test_open_files(tmp_path: Path, limit: int | None, status: Status) -> None:
    """The limit of the process that serves."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = (limit or most, most)
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, {limits}); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline()
        found = worst(service.check_files(scene(tmp_path), Service(endpoint=None, document={"pid": popen.pid})))
        popen.communicate(b"\n")
    assert found.status is status
    assert worst(service.check_files(scene(tmp_path), STOPPED)).status is Status.SKIP
    assert status is Status.OK or "LimitNOFILE=65536" in found.cure


# The way out.


def reach(here: Scene, config: Config, registry: Registry = DEMO) -> list[Finding]:
    shared = host_upstream.Shared(here, config, STOPPED)
    try:
        return list(host_upstream.check_registry(here, shared, registry))
    finally:
        shared.close()


def upstream_config(tmp_path: Path, upstream: LyingUpstream, replaced: tuple[str, str] = ("", "")) -> Config:
    path = tmp_path / "reach.toml"
    path.write_text(settings(tmp_path / "data", upstream).replace(*replaced))
    return load(file=path, environ={})


def test_reached(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A registry that answers is no loop and reached; its Date tells the time."""
    found = reach(scene(tmp_path), upstream_config(tmp_path, upstream))
    assert [each.check for each in found] == ["loop", "upstream", "time"]
    assert {each.status for each in found} <= {Status.OK, Status.SKIP}


@pytest.mark.parametrize(("asked", "status"), [([], Status.WARN), (["registry.demo"], Status.FAIL)])
def test_not_reached(tmp_path: Path, asked: list[str], status: Status) -> None:
    """A registry that is down fails where it was asked for; else a machine may be without internet."""
    with LyingUpstream(tmp_path) as upstream:
        config = upstream_config(tmp_path, upstream)
    found = worst(reach(scene(tmp_path, asked=asked), config))
    assert (found.status, found.check) == (status, "upstream")
    assert "refused the connection" in found.words
    assert "curl -v https://registry.demo/v2/" in found.cure


def test_not_trusted(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A registry whose certificate is not believed: ca_file."""
    bundle = tmp_path / "data-upstreams.crt"
    config = upstream_config(tmp_path, upstream, (f'ca_file = "{bundle}"', ""))
    found = worst(reach(scene(tmp_path), config))
    assert found.status is Status.FAIL
    assert "TLS handshake" in found.words
    assert 'registries."registry.demo".ca_file' in found.cure


def test_loop(tmp_path: Path, upstream: LyingUpstream) -> None:
    """The product's own router says that the way leads back to a listener."""
    host, port = upstream.registry.address
    config = upstream_config(tmp_path, upstream, ("tls = ['127.0.0.1:0']", f'tls = ["{host}:{port}"]'))
    found = worst(reach(scene(tmp_path), config))
    assert (found.status, found.check) == (Status.FAIL, "loop")
    assert "leads back to this cache" in found.words
    assert "upstream.resolvers" in found.cure


@pytest.mark.slow
def test_no_names(tmp_path: Path) -> None:
    """No DNS server answers: the key that names one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind((HERE, 0))
        server = f"{HERE}:{closed.getsockname()[1]}"
    path = tmp_path / "names.toml"
    path.write_text(f'data_dir = "{tmp_path / "data"}"\n[upstream]\nresolvers = ["{server}"]\n')
    config = load(file=path, environ={})
    shared = host_upstream.Shared(scene(tmp_path), config, STOPPED)
    started = time.monotonic()
    try:
        found = worst(host_upstream.check_registry(scene(tmp_path), shared, Registry("quay.io", "quay.io")))
    finally:
        shared.close()
    assert found.status is Status.WARN
    assert found.cure.startswith("upstream.resolvers")
    assert time.monotonic() - started < 10


def test_offline_by_configuration(tmp_path: Path, upstream: LyingUpstream) -> None:
    """What the configuration keeps offline is not asked, and nothing is wrong with it."""
    config = replace(upstream_config(tmp_path, upstream), offline=True)
    asked = len(upstream.requests.select())
    (found,) = reach(scene(tmp_path), config)
    assert (found.status, found.check, found.subject) == (Status.SKIP, "upstream", DEMO.name)
    assert len(upstream.requests.select()) == asked


def test_a_stranger_upstream(tmp_path: Path, upstream: LyingUpstream) -> None:
    """What is no registry is told apart."""
    assert host_upstream.judge_answer(DEMO, 404, "x").status is Status.FAIL
    assert host_upstream.judge_answer(DEMO, 401, "x").status is Status.OK
    assert host_upstream.judge_answer(DEMO, 429, "x").status is Status.WARN


@pytest.mark.parametrize(("ahead", "status"), [(0, Status.OK), (3600, Status.FAIL), (-3600, Status.FAIL)])
def test_time(ahead: int, status: Status) -> None:
    """The clock against the registry's."""
    now = time.time()
    found = host_upstream.judge_time(DEMO, formatdate(now - ahead, usegmt=True), now)
    assert found.status is status
    assert status is Status.OK or "timedatectl set-ntp true" in found.cure


# All of it.


def test_broken_configuration(tmp_path: Path) -> None:
    """A configuration that does not load is the one finding: the rest would be guesses."""
    path = tmp_path / "config.toml"
    path.write_text("data_dri = 1\n")
    here = scene(tmp_path)
    broken = Scene(config=lambda: load(file=path, environ={}), known=here.known, file=path, root=tmp_path)
    (found,) = rounds.visit(broken, node=False, host=True)
    assert (found.status, found.check) == (Status.FAIL, "configuration")
    assert "data_dri is not a key" in found.words
    assert str(path) in found.cure


def test_whole(cache: Threaded, tmp_path: Path) -> None:
    """A cache host that is well has no failure, and is known as one."""
    config = at(cache.app.config, cache)
    here = scene(tmp_path, asked=["registry.demo"], known=config.known)
    well = Scene(
        config=lambda: config, known=here.known, wanted=here.wanted, file=here.file, root=tmp_path, environ=here.environ
    )
    found = rounds.visit(well, node=False, host=True)
    assert [each for each in found if each.status is Status.FAIL] == []
    assert {"configuration", "service", "files", "ports", "data", "disk", "ca", "loop", "upstream"} <= {
        each.check for each in found
    }
    assert ok("configuration", str(here.file), "is not there: every key has its default") in found
