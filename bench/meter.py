"""What a process costs: CPU seconds and resident memory, read from /proc."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """The process and every process below it."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += children(int(child))
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes and all below them."""
    total = 0
    for pid in {each for top in pids for each in children(top)}:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICK


def resident(pid: int) -> int:
    """Bytes of memory a process occupies."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def peak(pid: int) -> int:
    """The most bytes of memory a process has occupied."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@dataclass(slots=True)
class Span:
    """How long something took, and what it cost the servers."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def measured(*pids: int) -> Iterator[Span]:
    """Measure what happens in the context."""
    span, cpu, start = Span(), cpu_seconds(pids), time.perf_counter()
    yield span
    span.wall, span.cpu = time.perf_counter() - start, cpu_seconds(pids) - cpu


@dataclass(frozen=True, slots=True)
class Latency:
    """Of many like requests, in milliseconds."""

    p50: float
    p99: float
    count: int


def latency(ask: Callable[[], object], *, until: Callable[[int], bool]) -> Latency:
    """Ask again and again, one after the other, until `until(number asked)`."""
    times: list[float] = []
    while not until(len(times)):
        start = time.perf_counter()
        ask()
        times.append((time.perf_counter() - start) * 1000)
    return Latency(median(times), quantiles(times, n=100)[98] if len(times) > 1 else times[0], len(times))
