"""Pushes while processes are killed: what was accepted is there and right, and in the end nothing else is."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from mitm_cache.cache.entry import Link
from mitm_cache.cache.evict import ABANDONED_SECONDS
from mitm_cache.demo.image import KIB, Image
from mitm_cache.local.manifests import MANIFESTS
from mitm_cache.oci.contents import Contents
from tests.fakes.big import big_image
from tests.fakes.registry import LyingUpstream
from tests.faults.conftest import Show
from tests.faults.pulls import Place, Tally, Verdict, pull
from tests.faults.pushes import NAME, SECTION, Account, Pusher
from tests.faults.test_kills import MEAN_SECONDS, OF_THE_SUPERVISOR, Service, service
from tests.faults.usage import Left, left
from tests.lab.process import wait_until
from tests.serving import ROOT, Client, Process, settings

SEED = int(os.environ.get("MITM_CACHE_FAULTS_SEED", "1"))
REPOSITORIES = ("team/app", "team/web", "other")
ABANDONED = 0.15
"""Pushes that are begun and never ended."""


def images_of(dice: random.Random, number: int) -> list[Image]:
    """Images of three layers, of which others have one too; each with at least one that is its own."""
    shared = [dice.randrange(20 * KIB, 200 * KIB) for _ in range(8)]
    own = dice.sample(range(10 * KIB, 300 * KIB), 2 * number)
    return [big_image(dice.choice(shared), *own[turn : turn + 2]) for turn in range(0, 2 * number, 2)]


class Storm:
    """Clients that push, each an image after the other, until they are told to end; then each ends its own."""

    def __init__(self, connect: Callable[[random.Random], Client], *, images: int = 400) -> None:
        """`connect`: a connection by a way that the dice choose."""
        self._connect = connect
        self.dice = random.Random(SEED)
        self._images = images_of(self.dice, images)
        self._numbers = count()
        self.account = Account()
        self.ended = threading.Event()

    def keep_pushing(self, seed: float) -> None:
        dice = random.Random(seed)
        with Pusher(lambda: self._connect(dice), self.account, seed) as pusher:
            while not self.ended.is_set():
                number = next(self._numbers)
                image, repository = self._images[number % len(self._images)], dice.choice(REPOSITORIES)
                if dice.random() < ABANDONED:
                    pusher.begin(repository, image)
                    self.account.count("left half done")
                else:
                    pusher.push(repository, f"v{number}", image)


class Killer:
    """Kills workers, and sometimes the supervisor, which is started again."""

    def __init__(self, running: Service, dice: random.Random) -> None:
        self._running, self._dice = running, dice
        self.killed = {"workers": 0, "supervisor": 0}

    def kill(self, number: int) -> None:
        while (turn := sum(self.killed.values())) < number:
            threading.Event().wait(min(3.0, self._dice.expovariate(1 / MEAN_SECONDS)))
            if turn == 1 or (turn > 1 and self._dice.random() < OF_THE_SUPERVISOR):
                self._running.restart(None)
                self.killed["supervisor"] += 1
            elif workers := self._running.served.workers:
                os.kill(self._dice.choice(workers), signal.SIGKILL)
                self.killed["workers"] += 1


def place_of(served: Process) -> Place:
    """Where the local registry is."""
    return replace(Place.of(served), name=NAME)


@pytest.mark.parametrize(
    ("clients", "kills"),
    [pytest.param(8, 2, id="few"), pytest.param(50, 20, id="fifty", marks=pytest.mark.faults)],
)
def test_pushes_while_processes_are_killed(tmp_path: Path, show: Show, clients: int, kills: int) -> None:
    """Accepted images are there and right, also after the collection, which leaves nothing that nobody needs."""
    data = tmp_path / "data"
    with LyingUpstream(tmp_path) as upstream, service(data, upstream, 2, SECTION) as running:

        def connect(dice: random.Random) -> Client:
            return running.served.client(dice.choice(("tls", "mirror")), name=NAME, timeout=60)

        storm = Storm(connect)
        killer = Killer(running, storm.dice)
        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            pushing = [pool.submit(storm.keep_pushing, storm.dice.random()) for _ in range(clients)]
            try:
                killer.kill(kills)
                wait_until(lambda: len(storm.account.images) >= clients, "images", seconds=120)
            finally:
                storm.ended.set()
            for each in pushing:
                each.result()
        seconds = time.monotonic() - began
        images, blobs = storm.account.promised()
        show(
            f"\nseed {SEED}, {clients} clients: killed {killer.killed} in {seconds:.0f} s;"
            f" {len(images)} images and {len(blobs)} blobs accepted; met: {dict(storm.account.counts)}",
        )
        assert storm.account.wrong == []
        check(place_of(running.served), images)
        verify(tmp_path, upstream)
        assert {digest for _, digest, _ in blobs} <= blobs_in(data)  # those without a manifest too

        uploads, before = len(list((data / "uploads").iterdir())), len(blobs_in(data))
        make_old(data)
        running.restart(None)
        wait_until(lambda: not needless(data), f"a collection: {needless(data)}", seconds=60)
        assert blobs_in(data) == needed(data)
        check(place_of(running.served), images)
        verify(tmp_path, upstream)
        show(f"collected: {uploads} uploads, and {before - len(blobs_in(data))} of {before} blobs")
        assert storm.account.counts["left half done"] == 0 or uploads > 0


def check(place: Place, images: dict[tuple[str, str], Image]) -> None:
    """Pull all of them."""
    tally = Tally()
    for (repository, tag), image in images.items():
        pull(place, repository, image, tag, tally)
    assert tally.pulls == {Verdict.RIGHT: len(images)}, tally.notes[:5]


def verify(tmp_path: Path, upstream: LyingUpstream) -> None:
    """`mitm-cache verify` finds nothing."""
    config = tmp_path / "verify.toml"
    config.write_text(settings(tmp_path / "data", upstream, more=SECTION))
    command = [sys.executable, "-m", "mitm_cache", "--config", str(config), "verify"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def make_old(data: Path) -> None:
    """As if nothing had been asked for since the graces of the collection."""
    at = time.time() - 2 * ABANDONED_SECONDS
    for folder in ("blobs", "links", "uploads"):
        for path in (data / folder).rglob("*"):
            os.utime(path, (at, at))


def blobs_in(data: Path) -> set[str]:
    return {f"{path.parent.parent.name}:{path.name}" for path in (data / "blobs").glob("*/*/*")}


def needed(data: Path) -> set[str]:
    """The manifests that local repositories hold, and all that these refer to."""
    found = set()
    for path in (data / "links" / "local").rglob("_digests/*"):
        with suppress(FileNotFoundError):  # a collection is removing it
            link = Link.from_json(path.read_text())
            if link.media_type in MANIFESTS:
                content = Contents.of((data / "blobs" / "sha256" / link.digest.hex[:2] / link.digest.hex).read_bytes())
                found |= {str(link.digest), *(str(each.digest) for each in (*content.manifests, *content.blobs))}
    return found


def needless(data: Path) -> list[str]:
    """What is there and need not be."""
    remains = left(data)
    found = sorted(blobs_in(data) - needed(data)) + [path.name for path in (data / "uploads").iterdir()]
    return found + ([] if remains == Left((), (), ()) else [str(remains)])
