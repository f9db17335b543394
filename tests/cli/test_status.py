"""`mitm-cache status` beside a service that runs, one that does not, and strangers."""

import http.server
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import override

import pytest
from click.testing import CliRunner, Result

from mitm_cache.ca import CertificateAuthority
from mitm_cache.cli import main
from mitm_cache.demo.image import KIB, generate
from mitm_cache.units import size
from tests.fakes.registry import LyingUpstream
from tests.serving import LISTENERS, Threaded, in_thread


def invoke(folder: Path, admin: str, *arguments: str) -> Result:
    """The command with a configuration whose admin listener is at an address."""
    file = folder / "status.toml"
    file.write_text(f'data_dir = "{folder / "data"}"\n[listen]\nadmin = {json.dumps([admin] if admin else [])}\n')
    return CliRunner().invoke(main, ["--config", str(file), "status", *arguments])


def rows(result: Result) -> dict[str, str]:
    return {label: words for label, _, words in (line.partition(" ") for line in result.output.splitlines())}


def value(result: Result, label: str) -> str:
    return rows(result)[label].strip()


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put("team/app", generate(sizes=[64 * KIB], platforms=["linux/amd64"]), "1")
        yield upstream


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Iterator[Threaded]:
    with in_thread(tmp_path / "data", upstream, listen=(*LISTENERS, "admin")) as cache:
        yield cache


def at(cache: Threaded) -> str:
    host, port = cache.address("admin")
    return f"{host}:{port}"


def test_running(cache: Threaded, tmp_path: Path) -> None:
    """It tells what runs, where, what is held and what was saved, and ends with 0."""
    first = len(cache.puller().pull("team/app", "1").requests)
    second = len(cache.puller().pull("team/app", "1").requests)
    lines = cache.log.wait(first + second)
    result = invoke(tmp_path, at(cache))
    assert result.exit_code == 0
    assert value(result, "state").startswith("ready, process ")
    assert value(result, "data") == str(cache.data)
    for listener in ("tls", "mirror", "admin"):
        assert value(result, listener) == ":".join(map(str, cache.address(listener)))
    held = sum(path.stat().st_size for path in (cache.data / "blobs").glob("*/*/*"))
    assert value(result, "blobs").startswith(f"{len(cache.blobs())} files, {size(held)} of ")
    misses = sum(line["outcome"] == "MISS" for line in lines)
    assert f"{misses} MISS" in value(result, "requests")
    saved = sum(line["bytes_out"] for line in lines if line["outcome"] in ("HIT", "REVALIDATED"))
    assert value(result, "to").endswith(f"of which {size(saved)} saved upstream")
    assert value(result, "CA") == f"valid until {cache.app.authority.describe().not_after:%Y-%m-%d}"


def test_another_service(cache: Threaded, tmp_path: Path) -> None:
    """One with other data is not the one that is asked about, which does not run."""
    other = tmp_path / "other"
    other.mkdir()
    result = invoke(other, at(cache))
    assert result.exit_code == 3
    told = f"not running: at {at(cache)} another service answers, whose data is in {cache.data}"
    assert value(result, "state") == told
    assert value(result, "data").startswith(str(other / "data"))


def test_not_ready(cache: Threaded, tmp_path: Path) -> None:
    """It names the check that failed and ends with 1."""
    spool = cache.data / "spool"
    away = spool.rename(cache.data / "away")
    try:
        result = invoke(tmp_path, at(cache))
    finally:
        away.rename(spool)
    assert result.exit_code == 1
    assert value(result, "state").startswith("not ready, process ")
    assert f"data_dir: {cache.data} cannot be written: No such file or directory" in result.output


def test_a_registry_that_is_away(cache: Threaded, tmp_path: Path, upstream: LyingUpstream) -> None:
    """It is named, with why and for how long, until it is back."""
    assert "AWAY" not in rows(invoke(tmp_path, at(cache)))
    upstream.stop()
    with cache.client() as client:
        assert client.get("/v2/team/app/manifests/1").status == 502
    words = value(invoke(tmp_path, at(cache)), "AWAY")
    assert words.startswith(f"{cache.registry}: for 0:00:0")
    assert "refused the connection" in words


def test_json(cache: Threaded, tmp_path: Path) -> None:
    """With --json it is a document, the service's own."""
    document = json.loads(invoke(tmp_path, at(cache), "--json").output)
    assert (document["running"], document["ready"], document["data_dir"]) == (True, True, str(cache.data))
    assert {each["name"] for each in document["listeners"]} == {"tls", "clear", "connect", "mirror", "admin"}


@pytest.fixture
def free() -> str:
    """An address where nobody listens: it was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_stopped(tmp_path: Path, free: str) -> None:
    """Without a service the data directory is read, nothing of it is touched, and the end is 3."""
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put("team/app", generate(sizes=[KIB], platforms=["linux/amd64"]), "1")
        with in_thread(tmp_path / "data", upstream) as cache:
            cache.puller().pull("team/app", "1")
            blobs, end = len(cache.blobs()), cache.app.authority.describe().not_after
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    result = invoke(tmp_path, free)
    assert result.exit_code == 3
    assert value(result, "state") == f"not running: nobody answers at {free}"
    assert value(result, "blobs").startswith(f"{blobs} files, ")
    assert value(result, "CA") == f"valid until {end:%Y-%m-%d}"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


@pytest.mark.parametrize("admin", ["free", ""], ids=["nobody answers", "nobody to ask"])
def test_never_started(tmp_path: Path, free: str, admin: str) -> None:
    """A cache that never ran is no error, and is not made by asking."""
    result = invoke(tmp_path, admin and free, "--json")
    assert result.exit_code == 3
    document = json.loads(result.output)
    assert (document["running"], document["blobs"]) == (False, None)
    assert document["data_dir_trouble"] == "No such file or directory"
    assert not (tmp_path / "data").exists()
    assert invoke(tmp_path, admin and free).exit_code == 3


class Stranger(http.server.BaseHTTPRequestHandler):
    """Another program at our port."""

    status, body = 200, b"<html>"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def stranger(status: int, body: bytes) -> Iterator[str]:
    kind = type("Other", (Stranger,), {"status": status, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        pytest.param(200, b"<html>", "it is not mitm-cache that answers there", id="no JSON"),
        pytest.param(200, b"[]", "it is not mitm-cache that answers there", id="other JSON"),
        pytest.param(403, b"not in clients.allow\n", "it answered 403: not in clients.allow", id="refused"),
        pytest.param(500, b"\x1b[2J", "it answered 500: Internal Server Error", id="no text"),
    ],
)
def test_strangers(tmp_path: Path, status: int, body: bytes, words: str) -> None:
    """Who answers something else is told apart from a service that is ready."""
    with stranger(status, body) as address:
        result = invoke(tmp_path, address)
    assert result.exit_code == 1
    assert value(result, "state") == f"not ready: {address}: {words}"


def test_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that hangs is not ready."""
    monkeypatch.setattr(sys.modules["mitm_cache.cli.status"], "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = invoke(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}")
    assert result.exit_code == 1
    assert value(result, "state").endswith("no answer in time")


def test_broken_ca(tmp_path: Path, free: str) -> None:
    """A CA that cannot be read is told in its row."""
    CertificateAuthority.create(tmp_path / "data" / "ca", permitted=["quay.io"], now=datetime.now(UTC))
    (tmp_path / "data" / "ca" / "ca.crt").write_text("no certificate")
    result = invoke(tmp_path, free)
    assert result.exit_code == 3
    assert "is not a certificate in PEM form" in value(result, "CA")


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (500 << 30, "500.0 GiB"), (3 << 50, "3072.0 TiB")],
)
def test_size(count: int, words: str) -> None:
    """In the units that cache.max_size takes."""
    assert size(count) == words
