"""What the admin listener and the log tell of workers, whatever these do."""

import http.client
import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mitm_cache.cli.reload import TIMEOUT
from mitm_cache.workers import control
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.serving import Process, process


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        yield upstream


@pytest.fixture
def served(tmp_path: Path, upstream: LyingUpstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """Two workers, and an admin listener."""
    monkeypatch.setenv("MITM_CACHE_LISTEN_ADMIN", "127.0.0.1:0")
    with process(tmp_path / "data", upstream, more="[serve]\nworkers = 2\n") as served:
        yield served


def admin(served: Process) -> str:
    found = re.search(r"^admin\s+(\S+)", "".join(served.said), re.MULTILINE)
    assert found is not None
    return found[1]


def ask(served: Process, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{admin(served)}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def document(served: Process, path: str) -> Any:
    return json.loads(ask(served, path)[1])


def test_a_registry_that_is_away(served: Process, upstream: LyingUpstream) -> None:
    """It is away as soon as one of the workers knows."""
    upstream.stop()
    with served.client() as client:
        assert client.get("/v2/team/app/manifests/1").status == 502
    (name, absence), *more = document(served, "/status")["away"].items()
    assert (name, more) == (served.registry, [])
    assert absence["seconds"] in range(30)
    assert "refused the connection" in absence["reason"]
    assert f'mitm_cache_upstream_away{{host="{served.registry}"}} 1.0' in ask(served, "/metrics")[1]


def test_a_worker_that_hangs(served: Process) -> None:
    """Probes and the status tell of it, by its name; once nobody accepts connections the service is not ready."""
    one, other = document(served, "/status")["workers"]
    os.kill(one, signal.SIGSTOP)
    try:
        assert ask(served, "/healthz")[0] == 503
        told = f"some connections wait: 1 of 2 workers accept them; worker {one} does not answer"
        status = document(served, "/status")
        assert (status["ready"], status["checks"]["listeners"]) == (True, told)
        os.kill(other, signal.SIGSTOP)
        code, words = ask(served, "/readyz")
        assert code == 503
        assert "connections are not accepted; worker" in words
    finally:
        os.kill(one, signal.SIGCONT)
        os.kill(other, signal.SIGCONT)
    wait_until(lambda: ask(served, "/healthz")[0] == 200, "answers")
    assert document(served, "/readyz") == {"ready": True, "checks": {"data_dir": "ok", "listeners": "ok", "ca": "ok"}}
    said = "".join(served.said)
    assert f"worker {one} has not answered for 2 s" in said
    assert f"worker {one} answers again" in said


def test_figures_without_the_data_directory(served: Process) -> None:
    """They are told all the same, and what is wrong."""
    limit = document(served, "/status")["limit"]
    away = served.data.rename(served.data.with_name("away"))
    try:
        code, metrics = ask(served, "/metrics")
        status = document(served, "/status")
    finally:
        away.rename(served.data)
    assert code == 200
    assert "mitm_cache_workers 2.0" in metrics
    assert (status["ready"], status["limit"]) == (False, limit)
    assert status["checks"]["data_dir"] == f"{served.data} cannot be written: No such file or directory"
    assert "Traceback" not in "".join(served.said)


def test_who_asks_during_a_reload_is_answered(served: Process) -> None:
    """A connection that was accepted before it too; the log tells of a reload whoever wanted it."""
    asking = http.client.HTTPConnection(admin(served), timeout=30)
    asking.putrequest("GET", "/readyz")
    asking.send(b"")  # connected, and its request is still on its way
    ask(served, "/healthz")  # who comes later has been accepted, so it has been too
    assert control.ask(served.data / "run", "reload", seconds=TIMEOUT)["ok"] is True
    asking.endheaders()
    with asking.getresponse() as answer:
        assert answer.status == 200
    asking.close()
    wait_until(lambda: "reloaded: 2 workers serve by it" in "".join(served.said), "a line")
    broken = Path(str(served.popen.args[4]))  # type: ignore[index]  # the list that it was started with
    broken.write_text("data_dir = 1")
    told = control.ask(served.data / "run", "reload", seconds=TIMEOUT)["message"]
    wait_until(lambda: f"not reloaded, what was before stays: {told}" in "".join(served.said), "a line")
