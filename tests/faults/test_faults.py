"""Many clients pull while upstream breaks in every way: nothing wrong and nothing short, and nothing left afterwards.

`make faults` has 500 pulls, and the same for other caches beside; `make test` a few of them. MITM_CACHE_FAULTS_SEED
gives another order of events.
"""

import json
import os
import re
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mitm_cache.demo.image import Image
from tests.fakes import faults
from tests.fakes.meddler import Kind, Meddler, never, often
from tests.fakes.registry import LyingUpstream
from tests.faults.conftest import Show
from tests.faults.contest import BAD, HEADER, REPOSITORY, Contest, Row, pull_all, some_images
from tests.faults.pulls import CLEAN, Place, Tally, Verdict
from tests.faults.registry import registry
from tests.faults.soak import sometimes
from tests.faults.usage import Left, held, left
from tests.lab.process import wait_until
from tests.needs import needs_tool
from tests.serving import ROOT, Process, process

pytestmark = needs_tool("docker-registry", package="docker-registry")
SEED = int(os.environ.get("MITM_CACHE_FAULTS_SEED", "1"))
MEDDLED, RAW, OTHERS = "meddled.demo", "raw.demo", "team/other"


@dataclass(frozen=True, slots=True)
class Scene:
    """The product with two workers in front of a real registry by two ways that break, and of one that lies."""

    served: Process
    contest: Contest
    others: Mapping[str, Image]
    lies: Mapping[str, Image]
    meddled: Meddler
    raw: Meddler
    lying: LyingUpstream

    def place(self, name: str) -> Place:
        context = ssl.create_default_context(cafile=self.served.ca_file)
        return Place(self.served.address("tls"), name, context)


@contextmanager
def scene(folder: Path, images: int, clients: int) -> Iterator[Scene]:
    with ExitStack() as stack:
        lying = stack.enter_context(LyingUpstream(folder))
        pictures = some_images(images, SEED)
        # Content of their own: what is here already is not asked for.
        others, lies = (some_images(images // 4, SEED + number) for number in (1, 2))
        for tag, image in lies.items():
            lying.registry.put(REPOSITORY, image, tag)
        content = {REPOSITORY: pictures, OTHERS: others}
        doors = stack.enter_context(registry(folder / "registry", lying.trust, RAW, content))
        contest = Contest(folder, lying.trust, doors, pictures, SEED, clients)
        meddled = stack.enter_context(contest.meddler(MEDDLED))
        raw = stack.enter_context(Meddler(doors.tls, None))
        more = "[serve]\nworkers = 2\n" + "".join(
            f'[registries."{name}"]\nurl = "https://{name}:{each.port}"\nresolve = "127.0.0.1"\n'
            for name, each in ((MEDDLED, meddled), (RAW, raw))
        )
        served = stack.enter_context(process(folder / "data", lying, more=more))
        yield Scene(served, contest, others, lies, meddled, raw, lying)


def other_ways(here: Scene) -> Tally:
    """Pulls with TLS that ends at the registry, and from the registry that lies; afterwards each image once without."""
    here.raw.plan = often(SEED, BAD, (Kind.CUT, Kind.RESET, Kind.STALL, Kind.SLOW, Kind.CORRUPT))
    clients = here.contest.clients
    raw, lying = (lambda: here.place(RAW)), (lambda: here.place(here.served.registry))
    tally = pull_all(raw, OTHERS, here.others, clients=clients, each=5, seed=SEED)
    here.raw.plan = never
    for number, fault in enumerate((faults.wrong_bytes(), faults.longer(), faults.cut_after(9000), faults.refuse(503))):
        for where in ("object", "blob", "manifest"):
            here.lying.lie(where, sometimes(fault, SEED + number))
    lied = pull_all(lying, REPOSITORY, here.lies, clients=clients, each=5, seed=SEED)
    here.lying.truth()
    for place, repository, images in ((raw, OTHERS, here.others), (lying, REPOSITORY, here.lies)):
        later = pull_all(place, repository, images, clients=4, each=1, seed=SEED)
        assert later.pulls == {Verdict.RIGHT: len(images)}
    tally.pulls += lied.pulls
    tally.notes += lied.notes
    return tally


def verify(here: Scene) -> dict[str, object]:
    """What `mitm-cache verify --json` says."""
    command = [sys.executable, "-m", "mitm_cache", "--data-dir", str(here.served.data), "verify", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


def settled(here: Scene) -> Left:
    """What is left once nobody pulls and all is here."""
    data = here.served.data
    wait_until(lambda: not left(data).spool and not held(here.served.workers, data), "nothing in hand", seconds=60)
    return left(data)


def all_is_clean(here: Scene, *tallies: Tally) -> None:
    for tally in tallies:
        assert tally.words(*(set(Verdict) - CLEAN - {Verdict.RIGHT})) == []
    assert settled(here) == Left((), (), ())
    assert not here.served.log.select(outcome="ERROR", status=500)
    said = verify(here)
    assert (said["sound"], said["flaws"]) == (True, [])


def test_a_few_pulls_under_faults(tmp_path: Path) -> None:
    """Ten clients and sixty pulls."""
    with scene(tmp_path, 12, 10) as here:
        row = here.contest.play("mitm-cache", lambda: here.place(MEDDLED), here.meddled)
        assert row.faults > 0
        assert row.later.pulls == {Verdict.RIGHT: 12}
        all_is_clean(here, row.tally)


@pytest.mark.faults
def test_500_pulls_under_faults(tmp_path: Path, show: Show) -> None:
    """Fifty clients, two workers, and two other caches beside."""
    with scene(tmp_path, 100, 50) as here:
        rows: list[Row] = [here.contest.play("mitm-cache", lambda: here.place(MEDDLED), here.meddled)]
        more = other_ways(here)
        rows += [here.contest.peer(who) for who in ("nginx", "distribution")]
        others = ", ".join(f"{number} {verdict.value}" for verdict, number in more.pulls.most_common())
        told = [f"{line['status']} {line['reason']}" for line in here.served.log.select(outcome="ERROR")]
        show(
            f"\nseed {SEED}: 100 images, 500 pulls, 50 clients, 25 % of upstream's answers broken",
            HEADER,
            *(row.line() for row in rows),
            f"TLS that ends at the registry, and the registry that lies: {others}",
            *("failed:", *reasons(rows[0].tally.notes + more.notes)),
            *("by the access log:", *reasons(told)),
            f"left: {settled(here).count}; verify: {verify(here)}",
        )
        assert rows[0].later.pulls == {Verdict.RIGHT: 100}
        all_is_clean(here, rows[0].tally, more)


def reasons(words: Sequence[str]) -> list[str]:
    """Without what is different each time; the most frequent first."""
    found = Counter(re.sub(r"/v2/\S+|sha256:\w+|:\d+|\d+(?= of)|\d{4,}", "…", each) for each in words)
    return [f"{number}× {each}" for each, number in found.most_common(15)]
