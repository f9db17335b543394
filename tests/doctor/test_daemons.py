"""Whether daemons live by their files: real files with real times, and environments as daemons have them."""

import http.server
import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, override

import pytest

from mitm_cache.doctor.finding import Status
from mitm_cache.doctor.node import Node, ProxySetting
from mitm_cache.doctor.node_daemons import check_freshness, check_proxies
from mitm_cache.doctor.probes import Way
from mitm_cache.doctor.processes import Process
from tests.doctor.nodes import CACHE, CONNECT, TLS, node, put, scene, worst

PROXY = f"http://{CACHE}:3128"
NOW = time.time()


def daemon(name: str, *arguments: str) -> Process:
    """A daemon that has started an hour ago."""
    return Process(4711, name, NOW - 3600, (name, *arguments), {})


def put_old(root: Path, name: str) -> Path:
    """A file that was there before the daemon."""
    path = put(root, name, "{}")
    os.utime(path, (NOW - 7200, NOW - 7200))
    return path


@pytest.mark.parametrize(
    ("name", "file", "cure"),
    [
        ("dockerd", "/usr/local/share/ca-certificates/mitm-cache.crt", "sudo sh -c 'systemctl restart docker'"),
        ("containerd", "/etc/pki/ca-trust/source/anchors/mitm-cache.crt", "sudo sh -c 'systemctl restart containerd'"),
        ("dockerd", "/etc/docker/daemon.json", "sudo sh -c 'systemctl restart docker'"),
        ("containerd", "/etc/containerd/config.toml", "sudo sh -c 'systemctl restart containerd'"),
        (
            "dockerd",
            "/etc/systemd/system/docker.service.d/proxy.conf",
            "sudo sh -c 'systemctl daemon-reload && systemctl restart docker'",
        ),
        (
            "containerd",
            "/etc/systemd/system/containerd.service.d/proxy.conf",
            "sudo sh -c 'systemctl daemon-reload && systemctl restart containerd'",
        ),
    ],
)
def test_stale(tmp_path: Path, name: str, file: str, cure: str) -> None:
    """A file that was changed after the daemon started is named, with the command that makes it read."""
    path = put_old(tmp_path, file)
    facts = node(daemons=(daemon(name),), daemon_json=tmp_path / "etc/docker/daemon.json")
    assert worst(check_freshness(scene(tmp_path), facts)).status is Status.OK
    os.utime(path)
    found = worst(check_freshness(scene(tmp_path), facts))
    assert found.status is Status.FAIL
    assert str(path) in found.words
    assert found.cure == cure


def test_stale_system_store(tmp_path: Path) -> None:
    """Where the CA is in the store by other means, the store's own time tells; with the CA's file, only that."""
    bundle = put(tmp_path, "bundle.crt", "")
    here = scene(tmp_path, environ={"PATH": "", "SSL_CERT_FILE": str(bundle)})
    facts = node(daemons=(daemon("containerd"),))
    assert worst(check_freshness(here, facts)).status is Status.FAIL
    put_old(tmp_path, "/usr/local/share/ca-certificates/mitm-cache.crt")
    assert worst(check_freshness(here, facts)).status is Status.OK


def test_no_daemon(tmp_path: Path) -> None:
    """There is nothing to restart."""
    assert worst(check_freshness(scene(tmp_path), node())).status is Status.SKIP


@contextmanager
def docker_socket(path: Path, registries: Mapping[str, Any]) -> Iterator[None]:
    """What dockerd tells of itself at its socket."""

    class Info(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"RegistryConfig": registries}).encode()
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    with socketserver.UnixStreamServer(str(path), Info) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("mirrors", "secure", "status"),
    [
        (["http://10.0.0.5:5000/"], False, Status.OK),
        ([], False, Status.FAIL),
        (["http://10.0.0.5:5000/"], True, Status.FAIL),
    ],
)
def test_reloaded(tmp_path: Path, mirrors: list[str], secure: bool, status: Status) -> None:
    """A dockerd that was told to reload has what the file says, and is asked for it."""
    settings = {"registry-mirrors": ["http://10.0.0.5:5000"], "insecure-registries": ["quay.io"]}
    file = put(tmp_path, "/etc/docker/daemon.json", json.dumps(settings))
    running = daemon("dockerd", "-H", f"unix://{tmp_path}/s")
    facts = node(daemons=(running,), daemon_json=file, docker=settings)
    with docker_socket(tmp_path / "s", {"Mirrors": mirrors, "IndexConfigs": {"quay.io": {"Secure": secure}}}):
        found = worst(check_freshness(scene(tmp_path), facts))
    assert found.status is status
    assert status is Status.OK or found.cure.startswith("sudo systemctl reload docker")


def test_no_list_of_mirrors(tmp_path: Path) -> None:
    """dockerd takes null for none."""
    settings = {"registry-mirrors": None, "insecure-registries": None}
    file = put(tmp_path, "/etc/docker/daemon.json", json.dumps(settings))
    facts = node(daemons=(daemon("dockerd", "-H", f"unix://{tmp_path}/s"),), daemon_json=file, docker=settings)
    with docker_socket(tmp_path / "s", {"Mirrors": None, "IndexConfigs": None}):
        assert worst(check_freshness(scene(tmp_path), facts)).status is Status.OK


def with_proxy(proxy: str, bypass: str = "", *, ways: tuple[Way, ...] = (CONNECT,), **more: Any) -> Node:
    """A node whose dockerd has this HTTPS_PROXY, and whose DNS knows the real registries."""
    setting = ProxySetting("dockerd (process 1)", proxy, bypass, "dockerd")
    names = {"quay.io": ["34.1.1.1"]} if TLS not in ways else {}
    return node(names, ways=ways, proxies=(setting, *more.pop("files", ())), **more)


@pytest.mark.parametrize(
    ("facts", "status", "words", "cure"),
    [
        pytest.param(with_proxy(PROXY, "localhost,.local"), Status.OK, "leads to the cache", "", id="well"),
        pytest.param(
            with_proxy(PROXY, "localhost,.quay.io,quay.io"),
            Status.FAIL,
            "NO_PROXY holds quay.io",
            "take it out of NO_PROXY",
            id="NO_PROXY",
        ),
        pytest.param(
            with_proxy(f"https://{CACHE}:3128"), Status.FAIL, "says https://", f"HTTPS_PROXY={PROXY}", id="https"
        ),
        pytest.param(
            with_proxy("http://bob:secret@10.1.1.1:8080", ways=(TLS,)),
            Status.FAIL,
            "HTTPS_PROXY is http://10.1.1.1:8080, not the cache: pulls go there, past the hosts entries",
            "NO_PROXY=quay.io for it",
            id="another proxy past the hosts entries",
        ),
        pytest.param(
            with_proxy("http://10.1.1.1:8080", "quay.io", ways=(TLS,)), Status.OK, "leaves the registries out", "",
            id="another proxy for others",
        ),
        pytest.param(
            with_proxy("", files=(ProxySetting("/etc/systemd/system/docker.service.d/p.conf", PROXY, ""),)),
            Status.FAIL,
            "runs without HTTPS_PROXY as in /etc/systemd/system/docker.service.d/p.conf",
            "sudo sh -c 'systemctl daemon-reload && systemctl restart docker'",
            id="not restarted",
        ),
        pytest.param(
            with_proxy(PROXY, files=(ProxySetting("containerd (process 2)", "", "", "containerd"),)),
            Status.WARN,
            "HTTPS_PROXY differs: containerd: none; dockerd: http://10.0.0.5:3128",
            "the same HTTPS_PROXY",
            id="one daemon without",
        ),
        pytest.param(
            node(daemons=(Process(7, "dockerd", 0.0, (), None),)), Status.SKIP, "may not be read", "sudo mitm-cache",
            id="not root",
        ),
    ],
)  # fmt: skip
def test_proxies(tmp_path: Path, facts: Node, status: Status, words: str, cure: str) -> None:
    """What is wrong with HTTPS_PROXY and NO_PROXY, without a password, and the setting that puts it right."""
    found = list(check_proxies(scene(tmp_path, asked=["quay.io"]), facts))
    bad = worst(found)
    assert bad.status is status
    assert words in bad.words
    assert cure in bad.cure
    assert "secret" not in "".join(each.words + each.cure for each in found)
