"""Images are removed while the cache serves and fills: no pull fails, and the disk has its bytes back."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mitm_cache.cache.catalog import Catalog
from mitm_cache.cli import main
from mitm_cache.demo.image import KIB, Image, assemble, layer
from tests.fakes.registry import LyingUpstream
from tests.serving import Process, process

AMD = "linux/amd64"
BASE = layer("base", 600 * KIB)
TAGS = [str(number) for number in range(6)]
PULLERS = 2


def image(name: str) -> Image:
    """One that shares its first layer with all others."""
    return assemble({AMD: [BASE, layer(name, 300 * KIB)]})


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as running:
        for tag in TAGS:
            running.registry.put("team/doomed", image(f"doomed {tag}"), tag)
        running.registry.put("team/kept", image("kept"), "1")
        yield running


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Iterator[Process]:
    with process(tmp_path / "data", upstream, more="[serve]\nworkers = 2\n") as served:
        for tag in TAGS:
            served.puller().pull("team/doomed", tag)
        served.puller().pull("team/kept", "1")
        yield served


def age(data: Path, seconds: float = 2400) -> None:
    """All that is here was used so long ago: less than the hour within which a HIT writes nothing."""
    at = time.time() - seconds
    for path in (data / "blobs").glob("*/*/*"):
        os.utime(path, (at, at))


def disk(data: Path) -> int:
    """What blobs take of the disk, as du counts it."""
    return sum(path.stat().st_blocks * 512 for path in (data / "blobs").rglob("*") if path.is_file())


def run(data: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["--config", "/dev/null", "--data-dir", str(data), *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


class Load:
    """Clients that pull one after another until they are told to stop; a pull that fails is raised at the end."""

    def __init__(self, pull: Callable[[], None]) -> None:
        self._pull = pull
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(PULLERS)
        self._rounds = [threading.Semaphore(0) for _ in range(PULLERS)]
        self._work: list[Future[None]] = []

    def __enter__(self) -> "Load":
        self._work = [self._pool.submit(self._go_on, each) for each in self._rounds]
        self.wait()
        return self

    def _go_on(self, done: threading.Semaphore) -> None:
        while not self._stop.is_set():
            self._pull()
            done.release()

    def wait(self) -> None:
        """Until each client has begun and ended one more pull, or one has failed."""
        for work, done in zip(self._work, self._rounds, strict=True):
            while done.acquire(blocking=False):
                pass
            for _ in range(2):  # the first may have been under way
                while not done.acquire(timeout=0.5) and not work.done():
                    pass

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for work in self._work:
            work.result()


def test_rm_beside_pulls_of_others(cache: Process) -> None:
    """Pulls of another image go on from the cache, and what nothing else needs is off the disk."""
    age(cache.data)
    with Load(lambda: _assert_hits(cache)) as load:
        before, alone = disk(cache.data), 0
        for tags in (TAGS[:1], TAGS[1:]):
            alone += run(cache.data, "rm", *(f"{cache.registry}/team/doomed:{tag}" for tag in tags))["freed"]
            load.wait()
        freed = before - disk(cache.data)
    assert freed >= alone > len(TAGS) * 300 * KIB
    images = Catalog(cache.data).images
    assert [str(each) for each in images] == [f"{cache.registry}/team/kept:1"]
    assert Catalog(cache.data).is_complete(images[0])


def _assert_hits(cache: Process) -> None:
    pulled = cache.puller().pull("team/kept", "1")
    assert pulled.count("MISS") == 0


def test_rm_of_what_is_being_pulled(cache: Process) -> None:
    """Who pulls an image while it is removed has it, from the cache or fetched again."""
    with Load(lambda: _pull(cache, "team/doomed", TAGS[0])) as load:
        for _ in range(2):
            age(cache.data)
            run(cache.data, "rm", f"{cache.registry}/team/doomed:{TAGS[0]}")
            load.wait()


def _pull(cache: Process, name: str, tag: str) -> None:
    cache.puller().pull(name, tag)


def test_prune_beside_fills(cache: Process, upstream: LyingUpstream) -> None:
    """Images that come in meanwhile, and share a layer with all that leaves, are whole at the end."""
    names = count()
    lock = threading.Lock()

    def fill() -> None:
        with lock:
            name = f"new-{next(names)}"
            upstream.registry.put("team/new", image(name), name)
        cache.puller().pull("team/new", name)

    age(cache.data)
    with Load(fill) as load:
        done = run(cache.data, "prune", "--older-than", "30m")
        assert {each["image"] for each in done["removed"]} == {
            *(f"{cache.registry}/team/doomed:{tag}" for tag in TAGS),
            f"{cache.registry}/team/kept:1",
        }
        load.wait()
        run(cache.data, "prune", "--older-than", "30m", "--unused")
        load.wait()
    assert done["freed"] > 7 * 300 * KIB
    catalog = Catalog(cache.data)
    new = [each for each in catalog.images if str(each.repository) == "team/new"]
    assert len(new) == len(catalog.images) == next(names)
    assert [str(each) for each in new if not catalog.is_complete(each)] == []
