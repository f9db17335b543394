"""Sockets that a service manager has bound: no root and no capability for ports 443 and 80."""

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mitm_cache.errors import ConfigError
from mitm_cache.listening import inherit
from tests.needs import needs_tool
from tests.ports import free_port
from tests.serving import ROOT


@needs_tool("systemd-socket-activate", package="systemd")
def test_sockets_of_systemd_are_served(tmp_path: Path) -> None:
    """A socket handed over under a listener's name is that listener; the first connection starts the service."""
    port = free_port()
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=mirror", "-E", "MITM_CACHE_DATA_DIR"]
    command += ["-E", "MITM_CACHE_LISTEN_TLS", "-E", "MITM_CACHE_LISTEN_CLEAR", "-E", "MITM_CACHE_LISTEN_ADMIN"]
    command += ["-E", "PATH", "-E", "HOME"]
    environment = os.environ | {
        "MITM_CACHE_DATA_DIR": str(tmp_path / "data"),
        "MITM_CACHE_LISTEN_TLS": "127.0.0.1:0",
        "MITM_CACHE_LISTEN_CLEAR": "127.0.0.1:0",
        "MITM_CACHE_LISTEN_ADMIN": "",
    }
    with subprocess.Popen(
        [*command, sys.executable, "-m", "mitm_cache", "serve"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert "Listening" in process.stderr.readline()
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            client.request("GET", "/v2/")
            assert client.getresponse().status == 200
            client.close()
        finally:
            process.terminate()


def test_another_process_s_sockets_are_left_alone() -> None:
    """LISTEN_PID says for whom the sockets are; a child of the service does not take them."""
    assert inherit({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "tls"}, 2, ("tls",)) == []


def test_a_socket_without_a_listener_s_name_is_refused() -> None:
    """The error says what the name should be."""
    with pytest.raises(ConfigError, match=r"'unknown'.*FileDescriptorName= is one of tls, mirror"):
        inherit({"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "unknown"}, 7, ("tls", "mirror"))


@needs_tool("systemd-socket-activate", package="systemd")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_is_not_tcp_is_refused(tmp_path: Path, kind: socket.SocketKind) -> None:
    """No client could use it: the service does not start, and says what is allowed."""
    path = str(tmp_path / "s")
    command = ["systemd-socket-activate", "-l", path, "--fdname=mirror", "-E", "PATH", "-E", "HOME"]
    command += ["-E", "MITM_CACHE_DATA_DIR", *(["--datagram"] if kind == socket.SOCK_DGRAM else [])]
    with subprocess.Popen(
        [*command, sys.executable, "-m", "mitm_cache", "serve"],
        cwd=ROOT,
        env=os.environ | {"MITM_CACHE_DATA_DIR": str(tmp_path / "data")},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "Listening" in process.stderr.readline()
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(path)
            client.send(b"x")
            said = process.stderr.read()
    assert "'mirror' is not TCP's: ListenStream= is a port or an address" in said
    assert "Traceback" not in said
    assert process.returncode != 0
