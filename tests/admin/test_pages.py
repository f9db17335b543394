"""The admin listener of the real product: its numbers are those of the access lines."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from mitm_cache.admin.server import PATIENCE
from mitm_cache.demo.image import KIB, Image, generate
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.local.registry import digest_of
from tests.needs import needs_root, needs_tool
from tests.serving import LISTENERS, ROOT, Line, Reply, Threaded, in_thread

WITH_ADMIN = (*LISTENERS, "admin")
ANY = {"Accept": "*/*"}

type Samples = Mapping[tuple[str, ...], float]


@pytest.fixture(scope="session")
def image() -> Image:
    return generate(sizes=[300 * KIB, 40 * KIB], platforms=["linux/amd64"], seed="admin")


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Iterator[Threaded]:
    with in_thread(tmp_path / "data", upstream, listen=WITH_ADMIN) as cache:
        yield cache


def ask(cache: Threaded, path: str, headers: Mapping[str, str] | None = None) -> Reply:
    connection = http.client.HTTPConnection(*cache.address("admin"), timeout=30)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def scrape(cache: Threaded) -> Samples:
    """Every sample, by its name and the values of its labels in the order of their names."""
    reply = ask(cache, "/metrics")
    assert reply.status == 200
    families = text_string_to_metric_families(reply.body.decode())
    return {
        (each.name, *dict(sorted(each.labels.items())).values()): each.value
        for family in families
        for each in family.samples
    }


def named(samples: Samples, name: str) -> dict[tuple[str, ...], float]:
    return {labels[1:]: value for labels, value in samples.items() if labels[0] == name}


def layer(image: Image) -> str:
    digest, _ = max(image.blobs.items(), key=lambda item: item[1].size)
    return f"/v2/team/app/blobs/{digest}"


def traffic(cache: Threaded, upstream: LyingUpstream, image: Image) -> list[Line]:
    """A bit of everything; the access lines of it."""
    pulls = [cache.puller().pull("team/app", "1") for _ in range(2)]
    count = sum(len(pull.requests) for pull in pulls)
    with cache.client() as client:
        upstream.lie("manifest", faults.refuse(500))
        assert client.get(f"/v2/team/app/manifests/sha256:{'0' * 64}", ANY).status == 502
        assert client.get("/v2/team/other/manifests/1", ANY).status == 404
        assert client.get(layer(image), {"Range": "bytes=0-9"}).status == 206
        assert client.ask("PUT", layer(image)).status == 405
    context = ssl.create_default_context(cafile=cache.ca_file)
    with socket.create_connection(cache.address("tls")) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="unknown.example")
    return cache.log.wait(count + 5)


def test_numbers_add_up(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """Requests and bytes are those of the access lines, by registry and outcome; nothing else is a label."""
    lines = traffic(cache, upstream, image)
    requests: Counter[tuple[str, ...]] = Counter()
    sent: Counter[tuple[str, ...]] = Counter()
    received: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        registry = line["registry"] if line["registry"] == upstream.registry.name else "other"
        requests[line["outcome"], registry, f"{line['status'] // 100}xx" if line["status"] else "none"] += 1
        sent[line["outcome"], registry] += line["bytes_out"]
        received[registry,] += line["bytes_in"]
    assert {"HIT", "MISS", "ERROR", "REFUSED"} <= {outcome for outcome, _, _ in requests}
    assert "other" in {registry for _, registry, _ in requests}
    samples = scrape(cache)
    assert named(samples, "mitm_cache_requests_total") == requests
    assert named(samples, "mitm_cache_sent_bytes_total") == +sent
    assert named(samples, "mitm_cache_received_bytes_total") == +received
    assert sum(received.values()) > image.size

    status = json.loads(ask(cache, "/status").body)
    assert status["requests"] == Counter(line["outcome"] for line in lines)
    assert status["bytes"] == {
        "sent": sum(sent.values()),
        "received": sum(received.values()),
        "saved": sum(line["bytes_out"] for line in lines if line["outcome"] in ("HIT", "REVALIDATED", "JOINED")),
        "pushed": 0,
    }
    assert status["bytes"]["saved"] > image.size


def test_what_is_pushed(tmp_path: Path, upstream: LyingUpstream) -> None:
    """What comes from clients to the local registry is counted apart from what comes from upstream."""
    layer = os.urandom(100 * KIB)
    more = '[local]\nnames = ["localhost"]\nmax_size = "1G"\n'
    with in_thread(tmp_path / "local", upstream, listen=WITH_ADMIN, more=more) as cache:
        with cache.client("mirror", name="localhost") as client:
            opened = client.ask("POST", f"/v2/app/blobs/uploads/?digest={digest_of(layer)}", body=layer)
            assert opened.status == 201
            assert client.get(f"/v2/app/blobs/{digest_of(layer)}").body == layer
        pushed, pulled = cache.log.wait(2, registry="local")
        assert (pushed["outcome"], pushed["bytes_in"], pushed["bytes_out"]) == ("LOCAL", len(layer), 0)
        assert (pulled["outcome"], pulled["bytes_in"], pulled["bytes_out"]) == ("LOCAL", 0, len(layer))
        samples = scrape(cache)
        assert samples["mitm_cache_pushed_bytes_total",] == len(layer)
        assert named(samples, "mitm_cache_received_bytes_total") == {}
        document = json.loads(ask(cache, "/status").body)
        assert document["bytes"] == {"sent": len(layer), "received": 0, "saved": 0, "pushed": len(layer)}


def test_facts(cache: Threaded) -> None:
    """What does not come from requests: build, CA, limit, blobs and the process; and no noise."""
    samples = scrape(cache)
    [build] = named(samples, "mitm_cache_build_info")
    ends = cache.app.authority.describe().not_after.timestamp()
    assert samples["mitm_cache_ca_expiry_timestamp_seconds", "signing"] == ends
    disk = shutil.disk_usage(cache.data)
    assert samples["mitm_cache_blobs_limit_bytes",] == pytest.approx(disk.total * 0.8, rel=0.01)
    assert samples["process_resident_memory_bytes",] > 1 << 20
    assert json.loads(ask(cache, "/status").body)["version"] in build
    assert not [name for name, *_ in samples if name.endswith("_created")]


def test_every_metric_is_documented(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """The table of docs/operations.md holds each metric with its labels, and no other."""
    traffic(cache, upstream, image)
    wait_until(lambda: ("mitm_cache_blobs_bytes",) in scrape(cache), "a sweep", seconds=30)
    upstream.stop()
    with cache.client() as client:
        client.get("/v2/team/unknown/manifests/1", ANY)  # from now on somebody is away
    documented: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "operations.md").read_text().splitlines():
        if line.startswith("| `mitm_cache_"):
            names, labels = (set(re.findall(r"`(\w+)`", cell)) for cell in line.split("|")[1:3])
            documented |= {
                name: labels for name in names if not name.startswith("mitm_cache_sync_")
            }  # with [[sync]] only
    families = text_string_to_metric_families(ask(cache, "/metrics").body.decode())
    samples = [each for family in families for each in family.samples if each.name.startswith("mitm_cache_")]
    assert documented == {each.name: set(each.labels) for each in samples}


def test_blobs(upstream: LyingUpstream, tmp_path: Path) -> None:
    """The status counts the files of the data directory; the gauge is as of the last sweep, which is at the start."""
    with in_thread(tmp_path / "data", upstream, listen=WITH_ADMIN) as cache:
        cache.puller().pull("team/app", "1")
        held = json.loads(ask(cache, "/status").body)["blobs"]
        assert held["count"] == len(cache.blobs())
        assert held["bytes"] == sum(path.stat().st_size for path in (cache.data / "blobs").glob("*/*/*"))
    with in_thread(tmp_path / "data", upstream, listen=WITH_ADMIN) as again:
        wait_until(lambda: ("mitm_cache_blobs_bytes",) in scrape(again), "a sweep", seconds=30)
        assert scrape(again)["mitm_cache_blobs_bytes",] == held["bytes"]


def test_in_flight(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """A request is in flight until its last byte."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(1000))
    assert scrape(cache)["mitm_cache_in_flight",] == 0
    with cache.client() as client:
        client.send_request("GET", layer(image))
        gate.wait_held()
        assert scrape(cache)["mitm_cache_in_flight",] == 1
        gate.release()
        client.getresponse().read()
    cache.log.wait(1)
    assert scrape(cache)["mitm_cache_in_flight",] == 0


def test_openmetrics(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """Who asks for OpenMetrics gets it."""
    traffic(cache, upstream, image)
    reply = ask(cache, "/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
    families = openmetrics.text_string_to_metric_families(reply.body.decode())  # type: ignore[no-untyped-call]
    assert {"mitm_cache_requests", "mitm_cache_build"} <= {family.name for family in families}


@pytest.mark.parametrize("version", ["abc", "1.0.x", "1.0.0.\xb2", ""])
def test_odd_versions(cache: Threaded, caplog: pytest.LogCaptureFixture, version: str) -> None:
    """Who asks for a form that there is none of gets one that there is."""
    for kind in ("application/openmetrics-text", "text/plain"):
        reply = ask(cache, "/metrics", {"Accept": f"{kind};version={version}"})
        assert reply.status == 200
        assert b"\nmitm_cache_in_flight 0.0\n" in reply.body
    assert "failed for no known reason" not in caplog.text


def test_probes(cache: Threaded) -> None:
    """A service at work is alive and ready; one whose data directory is away is alive, not ready, and says why."""
    assert ask(cache, "/healthz").status == 200
    ready = ask(cache, "/readyz")
    assert (ready.status, json.loads(ready.body)["ready"]) == (200, True)
    away = cache.data.rename(cache.data.with_name("away"))
    try:
        ready = ask(cache, "/readyz")
        assert ready.status == 503
        assert json.loads(ready.body) == {
            "ready": False,
            "checks": {
                "data_dir": f"{cache.data} cannot be written: No such file or directory",
                "listeners": "ok",
                "ca": "ok",
            },
        }
        assert ask(cache, "/healthz").status == 200
        assert scrape(cache)["mitm_cache_blobs_limit_bytes",] > 0
        assert json.loads(ask(cache, "/status").body)["ready"] is False
    finally:
        away.rename(cache.data)
    assert ask(cache, "/readyz").status == 200


def test_pulls_do_not_come_in_here(cache: Threaded) -> None:
    """The admin listener is no way to a registry, and other listeners have no admin pages."""
    assert ask(cache, "/v2/").status == 404
    with cache.client("mirror") as client:
        assert client.get("/metrics").status != 200


def test_idle_clients_do_not_hold_the_service(tmp_path: Path, upstream: LyingUpstream) -> None:
    """It stops at once while probes hang."""
    wires = []
    with in_thread(tmp_path / "data", upstream, listen=WITH_ADMIN) as cache:
        for head in [b"", b"GET /metr"] * 5:
            wires.append(socket.create_connection(cache.address("admin"), timeout=30))
            wires[-1].sendall(head)
        assert ask(cache, "/healthz").status == 200
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE
    for wire in wires:
        with wire:
            try:
                assert wire.recv(1) == b""
            except ConnectionResetError:
                pass


def test_loopback_is_always_admitted(tmp_path: Path, upstream: LyingUpstream) -> None:
    """Probes of the host itself need no place in clients.allow."""
    more = '[clients]\nallow = ["192.0.2.0/24"]\n'
    with in_thread(tmp_path / "data", upstream, listen=WITH_ADMIN, more=more) as cache:
        assert ask(cache, "/readyz").status == 200


@needs_root()
@needs_tool("unshare", package="util-linux")
@needs_tool("ip", package="iproute2")
@needs_tool("curl", package="curl")
@pytest.mark.parametrize(("allow", "status"), [("loopback", "403"), ("192.0.2.0/24", "200")])
def test_others_are_admitted_by_clients_allow(tmp_path: Path, allow: str, status: str) -> None:
    """An admin listener that others reach answers those of clients.allow."""
    file = tmp_path / "config.toml"
    file.write_text(
        f'data_dir = "{tmp_path / "data"}"\n[clients]\nallow = ["{allow}"]\n'
        '[listen]\ntls = []\nclear = []\nmirror = ["127.0.0.1:5000"]\nadmin = [":9500"]\n'
    )
    prepare = "ip link set lo up && ip address add 192.0.2.1/32 dev lo"
    command = ["unshare", "--net", "sh", "-c", f'{prepare} && exec "$@"', "sh"]
    command += [sys.executable, "-m", "mitm_cache", "--config", str(file), "serve"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if line == "Ready.\n":
                    break
            else:
                raise AssertionError("".join(said))
            curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://192.0.2.1:9500/metrics"]
            enter = ["nsenter", "--net", "--target", str(process.pid)]
            assert subprocess.run([*enter, *curl], capture_output=True, text=True, check=True).stdout == status
        finally:
            os.kill(process.pid, signal.SIGTERM)


def test_a_port_that_is_taken(tmp_path: Path, upstream: LyingUpstream) -> None:
    """The service does not start without its probes, and says which key to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "config.toml"
        text = upstream.configuration(tmp_path / "data").replace("admin = []", f'admin = ["127.0.0.1:{port}"]')
        file.write_text(text)
        command = [sys.executable, "-m", "mitm_cache", "--config", str(file), "serve"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"listen.admin: 127.0.0.1:{port} cannot be bound: Address already in use" in done.stderr
