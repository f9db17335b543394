"""`kill -9` of whoever writes, several processes over one data directory: the others finish, and no byte is wrong."""

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mitm_cache.demo.image import MIB
from tests.fakes.big import Pattern, big_image
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.serving import Process, process

NAME = "team/app"


@dataclass(slots=True)
class Reading:
    """What one client has of the blob so far."""

    served: Process
    expected: memoryview
    target: str
    got: int = 0
    right: bool = True
    moved: threading.Condition = field(default_factory=threading.Condition)

    def run(self) -> None:
        """Read to the end or to the cut, and compare every byte."""
        try:
            with self.served.client(timeout=60) as client:
                response = client.open(self.target)
                while chunk := response.read1(65536):
                    self._take(chunk)
        except OSError:
            pass  # its process was killed

    def _take(self, chunk: bytes) -> None:
        with self.moved:
            self.right = self.right and self.expected[self.got : self.got + len(chunk)] == chunk
            self.got += len(chunk)
            self.moved.notify_all()

    def wait(self, number: int) -> None:
        """Block until so many bytes have come."""
        with self.moved:
            if not self.moved.wait_for(lambda: self.got >= number, 60):
                raise TimeoutError(f"{self.got} of {number} bytes")

    @property
    def complete(self) -> bool:
        return self.got == len(self.expected)


class Scene:
    """Processes over one data directory, and clients that read one blob through them."""

    def __init__(
        self, data: Path, upstream: LyingUpstream, blob: Pattern, processes: list[Process], pool: ThreadPoolExecutor
    ) -> None:
        self.data, self.upstream, self.blob = data, upstream, blob
        self.bytes = memoryview(b"".join(blob.chunks(0, blob.size)))
        self.processes = processes
        self._pool = pool
        self._ends: list[Future[None]] = []
        self.readings: list[Reading] = []

    def read(self, processes: Sequence[Process], clients: int) -> None:
        """Have so many clients of each process begin to read."""
        for served in processes:
            for _ in range(clients):
                reading = Reading(served, self.bytes, f"/v2/{NAME}/blobs/{self.blob.digest}")
                self.readings.append(reading)
                self._ends.append(self._pool.submit(reading.run))

    @property
    def part(self) -> Path:
        return self.data / "spool" / f"{self.blob.digest.replace(':', '-')}.part"

    def writer(self) -> Process | None:
        """The process that holds the lock of the part file."""
        try:
            inode = self.part.stat().st_ino
        except FileNotFoundError:
            return None
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF
            if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
                return next((each for each in self.processes if each.pid == int(words[4])), None)
        return None

    def size(self) -> int:
        """Bytes in the part file."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return -1

    def kill_writer(self) -> Process:
        """Kill whoever writes now."""
        wait_until(lambda: self.writer() is not None, "a writer", seconds=20, tick=0.005)
        writer = self.writer()
        assert writer is not None
        assert writer.pid  # it is known while it lives
        writer.kill()
        return writer

    def finish(self) -> None:
        """Wait for the clients; the first mistake of a test's own is raised."""
        for end in self._ends:
            end.result()

    def ranges(self) -> list[str]:
        """What was asked of the storage host, in order."""
        return [each.range for each in self.upstream.requests.select(kind="object", method="GET")]


@contextmanager
def scene(directory: Path, size: int, processes: int) -> Iterator[Scene]:
    """A scene with one blob of so many bytes."""
    data = directory / "data"
    with ExitStack() as stack:
        upstream = stack.enter_context(LyingUpstream(directory))
        upstream.registry.put(NAME, big_image(size), "1")
        pool = stack.enter_context(ThreadPoolExecutor(64))
        serving = [stack.enter_context(process(data, upstream)) for _ in range(processes)]
        yield Scene(data, upstream, Pattern(size, "big 0"), serving, pool)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, 12 * MIB, 3) as three:
        yield three


def all_is_well(scene: Scene, killed: Sequence[Process]) -> None:
    """No byte wrong anywhere; who was served by a survivor has all of them, and one blob is all that is kept."""
    assert all(reading.right for reading in scene.readings)
    survivors = [reading for reading in scene.readings if reading.served not in killed]
    assert survivors
    assert [reading.got for reading in survivors if not reading.complete] == []
    alive = [each for each in scene.processes if each not in killed]
    wait_until(lambda: not alive[0].spool(), "an empty spool", seconds=10)
    assert alive[0].blobs() == {scene.blob.digest}
    path = scene.data / "blobs" / scene.blob.digest.replace(":", f"/{scene.blob.digest[7:9]}/")
    assert path.read_bytes() == scene.bytes


def test_one_download_for_several_processes(three: Scene) -> None:
    """Nobody dies: clients of three processes at once cost one GET, and read along across processes as it grows."""
    gate = three.upstream.gate()
    three.upstream.lie("object", gate.hold_after(4 * MIB))
    three.read(three.processes, 4)
    for reading in three.readings:
        reading.wait(4 * MIB)
    gate.release()
    three.finish()
    all_is_well(three, [])
    assert three.ranges() == [""]


def test_killed_writers_are_followed(three: Scene) -> None:
    """The writer is killed mid-blob, then its heir: the last process finishes by Range, exactly where they stopped."""
    gate = three.upstream.gate()
    three.upstream.lie("object", gate.hold_after(4 * MIB))
    three.read(three.processes, 4)
    killed: list[Process] = []
    for had in (4 * MIB, 8 * MIB):
        wait_until(lambda: three.size() == had, f"{had} bytes", tick=0.01)  # noqa: B023
        for reading in three.readings:
            if reading.served not in killed:
                reading.wait(had)
        killed.append(three.kill_writer())
        three.upstream.requests.wait(len(killed) + 1, kind="object")
    gate.release()
    three.finish()
    all_is_well(three, killed)
    assert len({each.pid for each in killed}) == 2
    assert three.ranges() == ["", f"bytes={4 * MIB}-", f"bytes={8 * MIB}-"]


def test_everybody_killed(tmp_path: Path) -> None:
    """No process is left: a new one finds the beginning, carries on by Range, and nothing is left behind."""
    with scene(tmp_path, 6 * MIB, 1) as alone:
        gate = alone.upstream.gate()
        alone.upstream.lie("object", gate.hold_after(2 * MIB))
        alone.read(alone.processes, 2)
        for reading in alone.readings:
            reading.wait(2 * MIB)
        dead = alone.kill_writer()
        alone.finish()
        gate.release()
        with process(alone.data, alone.upstream) as fresh:
            alone.processes.append(fresh)
            alone.read([fresh], 2)
            alone.finish()
            all_is_well(alone, [dead])
        assert alone.ranges() == ["", f"bytes={2 * MIB}-"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_chaos(tmp_path: Path, seed: int) -> None:
    """Five processes, fifty clients, three writers killed at any moment of a throttled download."""
    dice = random.Random(seed)
    size = 60 * MIB + dice.randrange(MIB)
    with scene(tmp_path, size, 5) as chaos:
        chaos.upstream.storage.rate = 12 * MIB
        chaos.read(chaos.processes, 10)
        killed: list[Process] = []
        for number in range(3):
            mark = size * (number + dice.random()) / 3.5
            wait_until(lambda: chaos.size() >= mark, f"{mark:.0f} bytes", seconds=60, tick=0.005)  # noqa: B023
            killed.append(chaos.kill_writer())
        chaos.finish()
        all_is_well(chaos, killed)
        first, *others = chaos.ranges()
        starts = [int(each.removeprefix("bytes=").removesuffix("-")) for each in others]
        assert first == ""
        # No byte twice. One who was killed while it still hashed what it had inherited has asked for nothing, and one
        # who was killed before the first byte came has left its place to the next.
        assert 1 <= len(starts) <= 3
        assert starts == sorted(starts)
