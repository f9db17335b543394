"""What others see of a service while it takes up another configuration."""

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mitm_cache.cli.reload import TIMEOUT
from mitm_cache.workers import control
from tests.fakes.registry import LyingUpstream
from tests.serving import Process, process


def statuses(url: str, ended: Callable[[], bool]) -> set[int]:
    """What is answered there until it has `ended`; the connections of before a reload may be cut by it."""
    found: set[int] = set()
    while not ended():
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                found.add(answer.status)
        except urllib.error.HTTPError as error:
            found.add(error.code)
            error.close()
        except OSError:
            continue
    return found


def admin(served: Process) -> str:
    found = re.search(r"^admin\s+(\S+)", "".join(served.said), re.MULTILINE)
    assert found is not None
    return found[1]


def test_it_stays_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old workers serve until the new ones do: a probe that finds nobody would have clients led elsewhere."""
    monkeypatch.setenv("MITM_CACHE_LISTEN_ADMIN", "127.0.0.1:0")
    ended = threading.Event()
    with (
        LyingUpstream(tmp_path) as upstream,
        process(tmp_path / "data", upstream) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        looking = pool.submit(statuses, f"http://{admin(served)}/readyz", ended.is_set)
        try:
            for _ in range(2):
                assert control.ask(served.data / "run", "reload", seconds=TIMEOUT)["ok"] is True
        finally:
            ended.set()
        assert looking.result() == {200}
