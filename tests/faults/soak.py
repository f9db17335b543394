"""Everything at once for a long time: hits, misses, joins, clients that leave, faults, evictions and reloads.

What the service occupies is sampled every ten seconds and judged in the end. The load takes half of the machine.
"""

import http.client
import json
import random
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.meter import cpu_seconds
from mitm_cache.cli.reload import TIMEOUT
from mitm_cache.demo.image import KIB, MIB, Image
from mitm_cache.demo.message import Answer, Incoming, Proceed
from mitm_cache.workers import control
from mitm_cache.workers.count import processors
from tests.fakes import faults
from tests.fakes.big import big_image
from tests.fakes.faults import Fault
from tests.fakes.registry import LyingUpstream
from tests.faults.pulls import ANY, Place, Tally, pull
from tests.faults.usage import family, held, usage
from tests.serving import Process

REPOSITORY = "soak/app"
CLIENTS = 12
SAMPLE_SECONDS = 10.0
RELOAD_SECONDS = 60.0
SHARE = 0.5
"""Of the processors, for the service and its load together."""
FAULTY = 0.04
"""Of upstream's answers, for each kind of fault."""
WARM = 20
SETTINGS = """
[cache]
max_size = "200MB"
tag_ttl = "5s"
[serve]
workers = 2
drain = "5s"
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The service at one moment: seconds since the start, bytes, and numbers of things."""

    at: float
    pss: int
    supervisor: int
    descriptors: int
    threads: int
    processes: int
    files: int
    stored: int
    pulls: int
    cpu: float
    """Processors that the service and its load have taken since the sample before."""


@dataclass(frozen=True, slots=True)
class Flat:
    """How much more the last third may have than the middle one: a part of it, or so many, whichever is more."""

    part: float
    number: float


BOUNDS = {
    "pss": Flat(0.03, 6e6),
    "supervisor": Flat(0.03, 2e6),
    "descriptors": Flat(0.05, 8),
    "threads": Flat(0.05, 4),
    "processes": Flat(0, 0),
    "files": Flat(0.10, 100),
}


def judge(samples: Sequence[Sample]) -> list[str]:
    """What has grown: the median of the last third against that of the middle third, by `BOUNDS`."""
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    grown = []
    for name, bound in BOUNDS.items():
        was, now = (statistics.median(getattr(each, name) for each in part) for part in (middle, last))
        if now - was > max(bound.part * was, bound.number):
            grown.append(f"{name} has grown from {was:.0f} to {now:.0f}")
    return grown


@dataclass(slots=True)
class Soak:
    """One run over a service and its upstream; `samples` and `tally` are what came of it."""

    served: Process
    upstream: LyingUpstream
    place: Place
    seed: int
    seconds: float
    tell: Callable[[Sample], None]
    samples: list[Sample] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    work: Counter[str] = field(default_factory=Counter)
    reloads: int = 0
    _began: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _pause: float = 0.2
    _numbers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _warm: list[Image] = field(default_factory=list)

    def run(self) -> None:
        """Load the service for as long as was said; what goes wrong in the load itself is raised."""
        self._began = time.monotonic()
        self._warm = [self._image(f"warm-{number}", 300 * KIB + number) for number in range(WARM)]
        dice = random.Random(self.seed)
        for where in ("object", "blob", "manifest"):
            for fault in _faults():
                self.upstream.lie(where, sometimes(fault, dice.random()))
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            work = [pool.submit(self._guarded, self._load, dice.random()) for _ in range(CLIENTS)]
            work.append(pool.submit(self._guarded, self._reload))
            try:
                self._sample()
            finally:
                self._ended.set()
            for each in work:
                each.result()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException:
            self._ended.set()
            raise

    def _image(self, tag: str, *sizes: int) -> Image:
        image = big_image(*sizes)
        self.upstream.registry.put(REPOSITORY, image, tag)
        return image

    def _next(self) -> int:
        with self._lock:
            self._numbers += 1
            return self._numbers

    def _load(self, seed: float) -> None:
        dice = random.Random(seed)
        kinds = {self._hit: 60, self._miss: 12, self._join: 18, self._leave: 10}
        while not self._ended.is_set():
            (kind,) = dice.choices(list(kinds), weights=list(kinds.values()))
            kind(dice)
            with self._lock:
                self.work[kind.__name__.strip("_")] += 1
            self._ended.wait(self._pause * dice.uniform(0.5, 1.5))

    def _hit(self, dice: random.Random) -> None:
        number = dice.randrange(WARM)
        pull(self.place, REPOSITORY, self._warm[number], f"warm-{number}", self.tally)

    def _miss(self, dice: random.Random) -> None:
        number = self._next()
        image = self._image(f"cold-{number}", 400 * KIB + number, 100 * KIB + number)
        pull(self.place, REPOSITORY, image, f"cold-{number}", self.tally)
        self._forget(f"cold-{number}", image)

    def _join(self, _: random.Random) -> None:
        """Whoever comes within the same two seconds asks for the same."""
        number = int((time.monotonic() - self._began) / 2)
        image = self._image(f"joint-{number}", 2 * MIB + number)
        pull(self.place, REPOSITORY, image, f"joint-{number}", self.tally)

    def _leave(self, dice: random.Random) -> None:
        """A client reads a part and is gone."""
        number = self._next()
        image = self._image(f"left-{number}", MIB + number)
        layer = max(image.blobs, key=lambda digest: image.blobs[digest].size)
        try:
            with self.place.connect() as client:
                client.open(f"/v2/{REPOSITORY}/blobs/{layer}", ANY).read(dice.randrange(1, MIB))
        except (OSError, http.client.HTTPException):
            pass  # it was cut before that
        self._forget(f"left-{number}", image)

    def _forget(self, tag: str, image: Image) -> None:
        """Upstream has so many that its own memory would matter; a download that a client has left may need it."""
        here = self.upstream.registry.repositories[REPOSITORY]
        here.tags.pop(tag, None)

    def _reload(self) -> None:
        """Every minute of the first third, so that the workers of the others live long enough to be judged."""
        while not self._ended.wait(min(RELOAD_SECONDS, self.seconds / 10)):
            if time.monotonic() - self._began > self.seconds / 3 - SAMPLE_SECONDS:
                return
            answer = control.ask(self.served.data / "run", "reload", seconds=TIMEOUT)
            assert answer["ok"], answer
            self.reloads += 1

    def _sample(self) -> None:
        pid = self.served.popen.pid
        own = pid, _self()
        cpu, when = cpu_seconds(own), time.monotonic()
        while not self._ended.wait(min(SAMPLE_SECONDS, self.seconds / 30)):
            try:
                used, now = cpu_seconds(own), time.monotonic()
            except OSError:
                continue  # a worker has just ended
            load = max(0.0, used - cpu) / (now - when)  # what ended takes its share with it
            cpu, when = used, now
            self._pause = min(5.0, max(0.01, self._pause * min(2.0, max(0.5, load / (SHARE * processors())))))
            here = usage(family(pid))
            sizes = _sizes(self.served.data)
            sample = Sample(
                round(now - self._began, 1),
                here.pss,
                usage([pid]).pss,
                here.descriptors,
                here.threads,
                here.processes,
                len(sizes),
                sum(sizes),
                self.tally.pulls.total(),
                round(load, 2),
            )
            self.samples.append(sample)
            self.tell(sample)
            self.upstream.requests.clear()
            if now - self._began >= self.seconds:
                return

    def lines(self) -> list[str]:
        """The table of what was seen."""
        third = len(self.samples) // 3
        rows = ["| | first third | middle third | last third |", "|---|---|---|---|"]
        parts = (self.samples[:third], self.samples[third : 2 * third], self.samples[2 * third :])
        for name in (*BOUNDS, "stored"):
            scale, unit = (1e6, " MB") if name in ("pss", "supervisor", "stored") else (1, "")
            cells = [statistics.median(getattr(each, name) for each in part) / scale for part in parts]
            rows.append(f"| {name} | " + " | ".join(f"{cell:.0f}{unit}" for cell in cells) + " |")
        evicted = sum(int(found[1]) for line in self.served.said if (found := re.search(r"evicted (\d+) blobs", line)))
        verdicts = ", ".join(f"{number} {verdict.value}" for verdict, number in self.tally.pulls.most_common())
        work = ", ".join(f"{number} {kind}" for kind, number in self.work.most_common())
        rows += ["", f"{verdicts}; work: {work}; {evicted} blobs evicted; {self.reloads} reloads; seed {self.seed}"]
        return rows

    def record(self, path: Path) -> None:
        """Write the samples, one to a line."""
        path.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in self.samples))

    def in_hand(self) -> list[str]:
        """Blobs and parts that are open though nobody pulls. A part that a reload has broken off stays for a day."""
        return held(self.served.workers, self.served.data)


def _faults() -> list[Fault]:
    return [
        faults.cut_after(20_000, "close"),
        faults.cut_after(90_000, "reset"),
        faults.wrong_bytes(),
        faults.refuse(503),
        faults.ignore_range(),
    ]


def sometimes(fault: Fault, seed: float) -> Fault:
    """A fault that holds for a part of all GETs, `FAULTY`."""
    dice, lock = random.Random(seed), threading.Lock()

    def maybe(incoming: Incoming, proceed: Proceed) -> Answer:
        with lock:
            told = dice.random() < FAULTY
        return fault(incoming, proceed) if told and incoming.method == "GET" else proceed(incoming)

    return maybe


def _self() -> int:
    return int(Path("/proc/self").readlink().name)


def _sizes(data: Path) -> list[int]:
    """The sizes of all files of a data directory."""
    found = []
    for path in data.rglob("*"):
        try:
            if path.is_file():
                found.append(path.stat().st_size)
        except OSError:
            continue  # it has just been removed
    return found
