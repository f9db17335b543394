"""The same pulls under the same faults through one cache after the other, and what came of them in a table."""

import random
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.peers.caches import Starter, distribution, nginx
from bench.peers.origin import NAME, Origin
from mitm_cache.demo.image import KIB, Image
from tests.fakes.big import big_image
from tests.fakes.meddler import Meddler, never, often
from tests.fakes.trust import Trust
from tests.faults.pulls import Place, Tally, Verdict, pull
from tests.faults.registry import Doors

REPOSITORY = "team/app"
PULLS_OF_EACH = 5
WINDOW = 50
"""Pulls that are asked for at about the same time, so that several clients want one image."""
BAD = 0.25
"""Of upstream's answers."""


def some_images(number: int, seed: int) -> dict[str, Image]:
    """So many different ones by tag, each of two layers of 20 KiB to 1 MiB."""
    dice = random.Random(seed)
    sizes = dice.sample(range(20 * KIB, 1024 * KIB), 2 * number)
    return {f"v{at}": big_image(*sizes[2 * at : 2 * at + 2]) for at in range(number)}


@dataclass(slots=True)
class Row:
    """What came of the pulls through one cache; `fetched` are upstream's bytes, `wanted` those of all content once."""

    who: str
    tally: Tally
    fetched: int
    wanted: int
    faults: int
    later: Tally = field(default_factory=Tally)
    """One pull of each image afterwards, with nothing in the way."""

    def line(self) -> str:
        """For the table."""
        got = self.tally.pulls
        failed = [each for each in Verdict if each not in (Verdict.RIGHT, Verdict.WRONG, Verdict.SHORT) and got[each]]
        how = ", ".join(f"{got[each]} {each.value}" for each in failed)
        kept = self.later.pulls[Verdict.WRONG] + self.later.pulls[Verdict.SHORT]
        cells = [
            self.who,
            got[Verdict.RIGHT],
            f"{sum(got[each] for each in failed)}" + (f" ({how})" if how else ""),
            got[Verdict.WRONG],
            got[Verdict.SHORT],
            f"{kept} of {self.later.pulls.total()}",
            f"{self.fetched / self.wanted:.2f}×",
            self.faults,
        ]
        return "| " + " | ".join(map(str, cells)) + " |"


HEADER = (
    "| through | right | failed | wrong bytes | short 200 | wrong or short for ever | fetched | faults met |\n"
    "|---|---|---|---|---|---|---|---|"
)


def pull_all(
    place: Callable[[], Place], repository: str, images: Mapping[str, Image], *, clients: int, each: int, seed: int
) -> Tally:
    """Have so many clients pull each image `each` times, in an order that the seed gives."""
    dice = random.Random(seed)
    wanted = [tag for tag in images for _ in range(each)]
    order = []
    for start in range(0, len(wanted), WINDOW):
        order += dice.sample(wanted[start : start + WINDOW], len(wanted[start : start + WINDOW]))
    tally = Tally()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda tag: pull(place(), repository, images[tag], tag, tally), order))
    return tally


@dataclass(frozen=True, slots=True)
class Contest:
    """What all caches are given."""

    folder: Path
    trust: Trust
    doors: Doors
    images: Mapping[str, Image]
    seed: int
    clients: int

    @property
    def wanted(self) -> int:
        """Bytes of all content once."""
        documents = sum(len(each.body) for image in self.images.values() for each in image.manifests.values())
        return documents + sum(image.size for image in self.images.values())

    def meddler(self, name: str) -> Meddler:
        """A way to the registry, for one cache alone, that ends TLS under this name."""
        return Meddler(self.doors.clear, self.trust.certify(name))

    def play(self, who: str, place: Callable[[], Place], meddler: Meddler) -> Row:
        """All pulls with faults, then each image once without."""
        meddler.plan = often(self.seed, BAD)
        tally = pull_all(place, REPOSITORY, self.images, clients=self.clients, each=PULLS_OF_EACH, seed=self.seed)
        fetched, met = meddler.sent, meddler.done.total()
        meddler.plan = never
        row = Row(who, tally, fetched, self.wanted, met)
        row.later = pull_all(place, REPOSITORY, self.images, clients=4, each=1, seed=self.seed)
        return row

    def peer(self, who: str) -> Row:
        """One of the other caches, as the benchmarks run it."""
        folder = self.folder / who
        folder.mkdir()
        with self.meddler(NAME) as meddler:
            origin = Origin(folder, self.trust.ca_file, "127.0.0.1", meddler.port, 0, "", 0, "")
            with PEERS[who](origin, folder) as cache:
                context = ssl.create_default_context(cafile=cache.ca_file)
                place = Place(("127.0.0.1", cache.port), cache.name, context)
                return self.play(who, lambda: place, meddler)


PEERS: dict[str, Starter] = {"nginx": partial(nginx, lock_age=None), "distribution": distribution}
