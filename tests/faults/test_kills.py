"""A hundred times `kill -9`, of workers and supervisor, while clients pull: nothing wrong, and nothing lost."""

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.meter import cpu_seconds
from mitm_cache.cache.evict import NOTE_SECONDS
from mitm_cache.demo.image import KIB, MIB
from mitm_cache.workers.crew import STEADY_SECONDS
from tests.fakes.big import big_image
from tests.fakes.registry import LyingUpstream
from tests.faults.conftest import Show
from tests.faults.pulls import CLEAN, Place, Tally, Verdict, judge, pull
from tests.faults.usage import Left, left
from tests.lab.process import wait_until
from tests.serving import Process, process

pytestmark = pytest.mark.faults
SEED = int(os.environ.get("MITM_CACHE_FAULTS_SEED", "1"))
KILLS = int(os.environ.get("MITM_CACHE_FAULTS_KILLS", "100"))
OF_THE_SUPERVISOR = 0.2
MEAN_SECONDS = 0.5
"""Between two kills, without the time that a restart takes."""
REPOSITORY = "team/app"
CREW = "[serve]\nworkers = {}\n"
CLIENTS = 8


class Service:
    """The product, started again whenever its supervisor has been killed."""

    def __init__(self, data: Path, upstream: LyingUpstream, workers: int, more: str = "") -> None:
        self._data, self._upstream, self._more = data, upstream, CREW.format(workers) + more
        self._stack = ExitStack()
        self.restarts: list[float] = []
        """Seconds from the start of the program to the last byte of a HIT."""
        self.start()

    def start(self) -> None:
        self._stack = ExitStack()
        self.served: Process = self._stack.enter_context(process(self._data, self._upstream, more=self._more))
        self.place = Place.of(self.served)

    def restart(self, hit: tuple[str, int] | None) -> None:
        """Kill the supervisor, start another, and ask for something that was a HIT before."""
        self.served.kill()
        self._stack.close()
        began = time.monotonic()
        self.start()
        if hit is not None:
            self.ask(*hit)
            self.restarts.append(time.monotonic() - began)

    def ask(self, digest: str, size: int) -> None:
        """Ask for a blob that has to be a HIT."""
        with self.place.connect() as client:
            seen = judge(client, "GET", f"/v2/{REPOSITORY}/blobs/{digest}", digest, size)
        assert (seen.verdict, seen.outcome) == (Verdict.RIGHT, "HIT"), (digest, seen)

    def close(self) -> None:
        self._stack.close()


@contextmanager
def service(data: Path, upstream: LyingUpstream, workers: int = 2, more: str = "") -> Iterator[Service]:
    running = Service(data, upstream, workers, more)
    try:
        yield running
    finally:
        running.close()


class Storm:
    """Clients that pull while processes are killed, until enough were."""

    def __init__(self, running: Service, upstream: LyingUpstream) -> None:
        self._running = running
        self._dice = dice = random.Random(SEED)
        self._ended = threading.Event()
        self.tally = Tally()
        self.killed = {"workers": 0, "supervisor": 0}
        sizes = [[dice.randrange(50 * KIB, 900 * KIB) for _ in range(2)] for _ in range(150)]
        self.images = {f"v{number}": big_image(*each) for number, each in enumerate(sizes)}
        self.sizes = {digest: blob.size for image in self.images.values() for digest, blob in image.blobs.items()}
        for tag, image in self.images.items():
            upstream.registry.put(REPOSITORY, image, tag)

    @property
    def hits(self) -> list[str]:
        """Blobs that were served as HIT."""
        return sorted(self.tally.hits & self.sizes.keys())

    def rage(self) -> None:
        """Kill `KILLS` processes."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._keep_pulling, self._dice.random()) for _ in range(CLIENTS)]
            try:
                while sum(self.killed.values()) < KILLS:
                    self._ended.wait(min(3.0, self._dice.expovariate(1 / MEAN_SECONDS)))
                    self._kill()
            finally:
                self._ended.set()
            for each in clients:
                each.result()

    def _keep_pulling(self, seed: float) -> None:
        dice = random.Random(seed)
        while not self._ended.is_set():
            # Images become known one after the other, so that there are both hits and downloads to the end.
            known = 10 + 140 * sum(self.killed.values()) // KILLS
            tag = f"v{min(known, len(self.images) - 1) - int(dice.expovariate(0.15)) % known}"
            if pull(self._running.place, REPOSITORY, self.images[tag], tag, self.tally) is Verdict.REFUSED:
                self._ended.wait(0.05)

    def _kill(self) -> None:
        if self._dice.random() < OF_THE_SUPERVISOR:
            hits = self.hits
            known = self._dice.choice(hits) if hits else None
            self._running.restart((known, self.sizes[known]) if known else None)
            self.killed["supervisor"] += 1
        elif workers := self._running.served.workers:
            os.kill(self._dice.choice(workers), signal.SIGKILL)
            self.killed["workers"] += 1


def test_a_hundred_kills(tmp_path: Path, show: Show) -> None:
    """What was served as a HIT once is there and right in the end, and a restarted service serves it at once."""
    data = tmp_path / "data"
    with LyingUpstream(tmp_path) as upstream, service(data, upstream) as running:
        storm = Storm(running, upstream)
        upstream.storage.rate = 2 * MIB
        storm.rage()
        upstream.storage.rate = None
        upstream.requests.clear()
        for digest in storm.hits:
            running.ask(digest, storm.sizes[digest])
        assert upstream.requests.count(kind="object") == 0
        later = Tally()
        for tag, image in storm.images.items():  # what was broken off is finished by whoever comes for it
            pull(running.place, REPOSITORY, image, tag, later)
        remains = left(data)
        got = ", ".join(f"{number} {verdict.value}" for verdict, number in storm.tally.pulls.most_common())
        times = f"median {statistics.median(running.restarts):.2f} s, most {max(running.restarts):.2f} s"
        show(
            f"\nseed {SEED}: killed {storm.killed}; pulls: {got}",
            f"restart to the first HIT: {times} of {len(running.restarts)}",
            f"{len(storm.hits)} blobs were a HIT once: all there. {len(remains.drafts)} drafts of links are left",
        )
        assert storm.tally.words(*(set(Verdict) - CLEAN - {Verdict.RIGHT, Verdict.REFUSED})) == []
        assert later.pulls == {Verdict.RIGHT: len(storm.images)}
        assert storm.tally.pulls[Verdict.RIGHT] >= KILLS  # so that something was under way
        assert (remains.spool, remains.links_to_nothing) == ((), ())
        # What was about to be a link is removed by the first sweep that finds it a minute old.
        for draft in remains.drafts:
            os.utime(draft, (time.time() - 2 * NOTE_SECONDS, time.time() - 2 * NOTE_SECONDS))
        running.restart(None)
        wait_until(lambda: left(data) == Left((), (), ()), "a sweep")


@pytest.mark.parametrize(("workers", "bound"), [(2, 0.5), (1, 2.0)], ids=["with a spare", "alone"])
def test_a_replacement_serves_soon(
    tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch, workers: int, bound: float
) -> None:
    """Until every connection that came after the kill is served: by a worker that waits, or one that starts."""
    monkeypatch.setenv("MITM_CACHE_LISTEN_ADMIN", "127.0.0.1:0")
    image = big_image(300 * KIB)
    digest, size = next((digest, blob.size) for digest, blob in image.blobs.items() if blob.size > 100 * KIB)
    with LyingUpstream(tmp_path) as upstream, service(tmp_path / "data", upstream, workers) as running:
        upstream.registry.put(REPOSITORY, image, "1")
        pull(running.place, REPOSITORY, image, "1", Tally())
        times = []
        for _ in range(10):
            wait_until(lambda: rests(running.served, workers), "workers at rest", tick=0.5)
            victim = running.served.workers[0]
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: running.ask(digest, size), range(8)))
            times.append(time.monotonic() - began)
        figures = f"median {statistics.median(times):.2f} s, most {max(times):.2f} s of {len(times)}"
        show(f"\nkill of a worker to 8 HITs on new connections: {figures}")
        assert statistics.median(times) <= bound


def rests(served: Process, workers: int) -> bool:
    """Whether all workers, and the one that waits beside several, are there, take no time, and count as steady."""
    crew = served.workers
    if len(crew) != workers + (workers > 1):
        return False
    before = cpu_seconds(crew)
    threading.Event().wait(1.1 * STEADY_SECONDS)
    return served.workers == crew and cpu_seconds(crew) - before < 0.1
