"""The checks behind `/readyz`, each of them against what it is about."""

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mitm_cache.admin.facts import Facts
from mitm_cache.admin.health import DEAF, OK, UNCACHED, WAITING, Health, is_ready
from mitm_cache.ca.custody import Custody
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import open_layout

GOOD = {"data_dir": "ok", "listeners": "ok", "ca": "ok"}


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    layout = open_layout(tmp_path / "data")
    return Facts(
        layout=layout,
        blobs=Blobs(layout.blobs),
        addresses=(),
        ca=Custody.open(tmp_path / "ca", permitted=["quay.io"], clock=now).describe,
        limit=lambda: 1000,
        in_flight=lambda: 0,
        listeners=lambda: OK,
        clock=now,
        started=now(),
        version="1",
    )


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder cannot be written: for root by a mount, for others by its mode."""
    if os.geteuid():
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k,mode=700", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_all_is_well(facts: Facts, threads: ThreadPoolExecutor) -> None:
    """Every check says ok, and the disk is as it was."""
    assert await Health(facts, threads).check() == GOOD
    assert list(facts.layout.spool.iterdir()) == []


@pytest.mark.parametrize("folder", ["spool", "blobs"])
async def test_read_only(facts: Facts, threads: ThreadPoolExecutor, folder: str) -> None:
    """A data directory that cannot be written is told, until it can be again."""
    health = Health(facts, threads)
    with read_only(facts.layout.root / folder):
        said = (await health.check())["data_dir"]
    assert str(facts.layout.root) in said
    assert "cannot be written" in said
    assert await health.check() == GOOD


async def test_gone(facts: Facts, threads: ThreadPoolExecutor) -> None:
    """So it is with one that is not there, as when its file system is not mounted."""
    health = Health(facts, threads)
    away = facts.layout.root.rename(facts.layout.root.with_name("away"))
    assert (await health.check())["data_dir"] == f"{facts.layout.root} cannot be written: No such file or directory"
    away.rename(facts.layout.root)
    assert await health.check() == GOOD


async def test_a_disk_that_hangs(facts: Facts, threads: ThreadPoolExecutor) -> None:
    """The probe is answered in time, and many probes hold no more than one thread."""
    health = Health(facts, threads, patience=0.1)
    stuck = threading.Event()
    threads.submit(stuck.wait)
    try:
        said = {(await health.check())["data_dir"] for _ in range(3)}
        waiting = threads._work_queue.qsize()
    finally:
        stuck.set()
    assert said == {f"{facts.layout.root} has not answered for 0.1 s"}
    assert waiting == 1
    assert await Health(facts, threads).check() == GOOD


@pytest.mark.parametrize(
    ("offset", "ready"),
    [(timedelta(days=-2), False), (timedelta(), True), (timedelta(days=6 * 365), False)],
    ids=["not yet", "now", "no more"],
)
async def test_ca(facts: Facts, threads: ThreadPoolExecutor, offset: timedelta, ready: bool) -> None:
    """A CA outside its time makes no leaf that a node would take."""
    ca = facts.ca()["signing"]
    said = (await Health(replace(facts, clock=lambda: now() + offset), threads).check())["ca"]
    assert (said == "ok") == ready
    assert ready or said.startswith(f"the CA is valid from {ca.not_before} to {ca.not_after}, and it is ")


async def test_listeners(facts: Facts, threads: ThreadPoolExecutor) -> None:
    """Without listeners there is no service."""
    said = await Health(replace(facts, listeners=lambda: DEAF), threads).check()
    assert said == GOOD | {"listeners": "connections are not accepted"}


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        ("ok", True),
        (f"{UNCACHED}/data cannot be written: No space left on device", True),
        (f"{WAITING}1 of 2 workers accept them", True),
        ("/data is away", False),
    ],
)
def test_what_is_ready(answer: str, ready: bool) -> None:
    """Who passes pulls through uncached serves them."""
    assert is_ready(GOOD | {"data_dir": answer}) is ready
