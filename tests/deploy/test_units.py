"""The units of systemd: sound, in step with the program, and its ExecStart at work with the sockets they hand over."""

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mitm_cache.config import LISTENERS, PORTS
from mitm_cache.demo.image import generate
from mitm_cache.demo.puller import Puller
from tests.deploy import units
from tests.fakes.registry import LyingUpstream
from tests.needs import needs_tool
from tests.ports import free_port

PROGRAM = Path(sys.executable).with_name("mitm-cache")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they are, but for the program's path: that one is not installed under /opt here."""
    folder = tmp_path / "system"
    shutil.copytree(units.FOLDER, folder)
    service = folder / units.SERVICE
    text = service.read_text()
    assert "ExecStart=/opt/mitm-cache/bin/mitm-cache " in text
    service.write_text(text.replace("/opt/mitm-cache/bin/mitm-cache", str(PROGRAM)))
    return folder


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@needs_tool("systemd-analyze", package="systemd")
def test_systemd_finds_no_fault(installed: Path) -> None:
    """Every unit is understood, to the last setting."""
    names = [str(installed / name) for name in (units.SERVICE, *units.sockets())]
    done = analyze("verify", "--recursive-errors=one", *names)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_tool("systemd-analyze", package="systemd")
def test_the_service_is_hardened(installed: Path) -> None:
    """systemd's own measure of what a service could do (0 to 10, of which a plain one has 9.6) stays below 1.5."""
    done = analyze("security", "--offline=true", "--threshold=15", "--no-pager", str(installed / units.SERVICE))
    assert done.returncode == 0, done.stdout


def test_sockets_are_the_listeners() -> None:
    """Each listener for nodes has a socket unit of its name, on the port that clients expect."""
    expected = {f"mitm-cache-{name}.socket": (name, str(PORTS[name][0])) for name in LISTENERS if name != "admin"}
    found = {name: (unit["FileDescriptorName"][0], unit["ListenStream"][0]) for name, unit in units.sockets().items()}
    assert found == expected


def test_the_service_takes_every_socket() -> None:
    """It is handed all of them however it is started, and they are enabled with it."""
    service = units.read(units.SERVICE)
    for key in ("Sockets", "Also"):
        assert set(service[key][0].split()) == set(units.sockets()), key
    for name, unit in units.sockets().items():
        assert unit["Service"] == [units.SERVICE], name


def _free_ports(number: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < number:
        ports.add(free_port())
    return list(ports)


def _unprivileged() -> list[str]:
    """What makes a command run without root's rights, and as another user in its own eyes; files stay within reach."""
    return ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"] if os.geteuid() == 0 else []


@contextmanager
def activated(config: Path) -> Iterator[dict[str, int]]:
    """ExecStart, started by its first connection as systemd would, with every socket that the units name; the ports."""
    names = [unit["FileDescriptorName"][0] for unit in units.sockets().values()]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    listen = [word for name in names for word in ("-l", f"127.0.0.1:{ports[name]}")]
    installed, *arguments = units.read(units.SERVICE)["ExecStart"][0].split()
    assert installed == "/opt/mitm-cache/bin/mitm-cache"
    activate = ["systemd-socket-activate", *listen, f"--fdname={':'.join(names)}", "-E", "PATH"]
    command = [*_unprivileged(), *activate, str(PROGRAM), "--config", str(config), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            while said.count("Listening on") < len(names):
                line = process.stderr.readline()
                assert line, f"systemd-socket-activate has ended:\n{said}"
                said += line
            yield ports
        finally:
            process.terminate()
            said = process.stderr.read()
        assert process.wait(30) == 0, said


@needs_tool("systemd-socket-activate", package="systemd")
@needs_tool("unshare", package="util-linux")
def test_a_pull_through_handed_over_sockets(tmp_path: Path) -> None:
    """Without a right of its own the program serves on what systemd has bound; a registry's image comes through."""
    data = tmp_path / "data"
    image = generate(sizes=(1 << 20,))
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put("team/app", image, "1")
        config = tmp_path / "config.toml"
        config.write_text(upstream.configuration(data, listen=()))
        with activated(config) as ports:
            # The first connection starts it, and waits for it.
            mirror = http.client.HTTPConnection("127.0.0.1", ports["mirror"], timeout=60)
            mirror.request("GET", "/v2/")
            assert mirror.getresponse().status == 200
            mirror.close()
            puller = Puller(upstream.registry.name, connect=("127.0.0.1", ports["tls"]), ca_files=[data / "ca/ca.crt"])
            assert puller.pull("team/app", "1").digest == image.index.digest
            assert puller.pull("team/app", "1").count("HIT") > 0
