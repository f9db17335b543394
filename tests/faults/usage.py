"""What a service occupies: memory, descriptors, threads, processes; and what it has left behind."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.meter import children
from mitm_cache.cache.entry import Link
from mitm_cache.errors import StoreError


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all below it; `pss` in bytes."""

    pss: int
    descriptors: int
    threads: int
    processes: int


def usage(pids: Iterable[int]) -> Usage:
    """Of these processes now; one that has just ended counts for nothing."""
    pss = descriptors = threads = processes = 0
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
            here = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
            opened, running = len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))
        except (OSError, StopIteration):
            continue
        pss, descriptors = pss + here, descriptors + opened
        threads, processes = threads + running, processes + 1
    return Usage(pss, descriptors, threads, processes)


def family(pid: int) -> list[int]:
    """A process and all below it; nothing where it has ended."""
    try:
        return children(pid)
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Left:
    """What is in a data directory that nobody needs: names of files, by their kind."""

    spool: tuple[str, ...]
    drafts: tuple[str, ...]
    links_to_nothing: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.spool) + len(self.drafts) + len(self.links_to_nothing)


def left(data: Path) -> Left:
    """Look for parts and notes of downloads, files that were never finished, and links to blobs that are not there."""
    blobs = {f"{path.parent.parent.name}:{path.name}" for path in (data / "blobs").glob("*/*/*")}
    drafts, empty = [], []
    for folder in ("blobs", "links"):
        drafts += [str(path) for path in (data / folder).rglob(".*") if path.is_file()]
    for path in (data / "links").rglob("*"):
        if "_digests" in path.parts and not path.name.startswith(".") and path.is_file():
            try:
                digest = str(Link.from_json(path.read_text()).digest)
            except StoreError:
                digest = "nothing at all"
            if digest not in blobs:
                empty.append(f"{path.name}: {digest}")
    spool = [path.name for path in (data / "spool").iterdir()]
    return Left(tuple(sorted(spool)), tuple(drafts), tuple(empty))


def held(pids: Iterable[int], data: Path) -> list[str]:
    """The blobs and parts of a data directory that processes have open, removed ones too."""
    found = []
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue  # closed meanwhile
            if target.startswith((f"{data}/spool/", f"{data}/blobs/")):
                found.append(target)
    return found
