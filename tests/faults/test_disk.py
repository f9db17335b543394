"""A disk that is full, read-only, or breaks in the middle: clients get every byte, and nothing wrong is kept.

The data directory is a small tmpfs in a mount namespace of the product's own.
"""

import contextlib
import http.client
import os
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, MIB, generate
from tests.fakes import faults
from tests.fakes.big import Pattern, big_image
from tests.fakes.registry import LyingUpstream
from tests.faults.disk import DISK, backed, on_disk
from tests.lab.process import wait_until
from tests.needs import needs_root, needs_tool
from tests.serving import Client, process

pytestmark = [needs_root(), needs_tool("unshare", package="util-linux"), needs_tool("nsenter", package="util-linux")]

NAME = "team/app"
SIZES = [6 * MIB + 1, 5 * MIB + 7, 3 * MIB + 11]
LAYERS = [Pattern(size, f"big {number}") for number, size in enumerate(SIZES)]
DATA = [b"".join(layer.chunks(0, layer.size)) for layer in LAYERS]
HELD = 2 * MIB


def target(number: int) -> str:
    return f"/v2/{NAME}/blobs/{LAYERS[number].digest}"


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put(NAME, big_image(*SIZES), "1")
        yield upstream


def read(client: Client, number: int, headers: dict[str, str] | None = None) -> bytes:
    return client.get(target(number), headers).body


SMALL_RESERVE = '[cache]\nmin_free = "1%"\n'


def test_no_room_to_begin(tmp_path: Path, upstream: LyingUpstream) -> None:
    """Nothing fits: passed through, proven, told why, counted, and warned of once; with room it is kept again."""
    with on_disk(tmp_path, upstream, more=SMALL_RESERVE) as served, served.client() as client:
        filler = served.fill(1 * MIB)
        for _ in range(3):
            assert read(client, 0) == DATA[0]
        lines = served.log.wait(3)
        assert {line["outcome"] for line in lines} == {"MISS"}
        assert all(line["reason"].startswith("passed through uncached: the disk is full") for line in lines)
        assert served.kept() == set()
        assert served.leftovers() == set()
        assert served.metric("mitm_cache_uncached_total") == 3
        assert sum("passed through uncached" in line for line in served.said) == 1
        filler.unlink()
        assert read(client, 0) == DATA[0]
        assert served.kept() == {LAYERS[0].digest}
        assert served.log.wait(4)[3]["reason"] == "not cached"


def test_a_range_past_a_full_disk(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A range is a range there too, and its end waits for the proof of the whole."""
    with on_disk(tmp_path, upstream, more=SMALL_RESERVE) as served, served.client() as client:
        served.fill(1 * MIB)
        reply = client.get(target(0), {"Range": "bytes=1000000-1999999"})
        assert (reply.status, reply.body) == (206, DATA[0][1000000:2000000])
        upstream.lie("object", faults.wrong_bytes())
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            client.get(target(0), {"Range": "bytes=1000000-1999999"})


def test_full_in_the_middle(tmp_path: Path, upstream: LyingUpstream) -> None:
    """The disk fills up under a download that five clients read: each gets every byte; nothing is left of it."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(HELD), times=1)
    with on_disk(tmp_path, upstream, more=SMALL_RESERVE) as served, ThreadPoolExecutor(5) as crowd:
        with served.client() as first:
            response = first.open(target(0))
            assert response.read(1000) == DATA[0][:1000]
            aboard = threading.Semaphore(0)

            def join(start: int) -> bytes:
                with served.client() as client:
                    answer = client.open(target(0), {"Range": f"bytes={start}-"} if start else None)
                    aboard.release()
                    return answer.read()

            replies = [crowd.submit(join, start) for start in (0, 0, 1 * MIB, 4 * MIB)]
            assert all(aboard.acquire(timeout=20) for _ in replies)
            served.fill(0)
            gate.release()
            assert response.read() == DATA[0][1000:]
        for reply, start in zip(replies, (0, 0, 1 * MIB, 4 * MIB), strict=True):
            assert reply.result() == DATA[0][start:]
        full = "passed through uncached: the cache cannot be written: No space"
        assert [line["reason"] for line in served.log.wait(5) if full not in line["reason"]] == []
        assert served.kept() == set()
        wait_until(lambda: not served.leftovers(), "an empty spool", tick=0.02)
        ranges = [each.range for each in upstream.requests.select(kind="object", method="GET")]
        assert ranges[0] == ""
        # Nobody starts from the beginning: what the disk did take is used.
        assert all(int(each.removeprefix("bytes=").removesuffix("-")) >= HELD for each in ranges[1:])


def test_read_only(tmp_path: Path, upstream: LyingUpstream) -> None:
    """What is here is served, the rest passed through, tags and manifests too; nobody notices."""
    image = generate(seed="two", platforms=["linux/amd64"], sizes=[200 * KIB, 300 * KIB])
    upstream.registry.put("team/two", image, "1")
    with on_disk(tmp_path, upstream) as served, served.client() as client:
        assert read(client, 1) == DATA[1]
        served.protect()
        assert read(client, 1) == DATA[1]
        assert served.log.wait(2)[1]["outcome"] == "HIT"
        assert read(client, 2) == DATA[2]
        manifest = client.get("/v2/team/two/manifests/1", {"Accept": "*/*"})
        assert (manifest.status, manifest.body) == (200, image.index.body)
        served.puller().pull("team/two", "1")  # verifies every digest
        assert not served.log.select(outcome="ERROR")
        served.unprotect()
        assert read(client, 2) == DATA[2]
        assert LAYERS[2].digest in served.kept()


def test_broken_in_the_middle(tmp_path: Path, upstream: LyingUpstream) -> None:
    """The kernel refuses to let the file grow: the client gets the rest past the disk, and later it is kept."""
    with process(tmp_path / "data", upstream) as served, served.client() as client:
        hard = resource.prlimit(served.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (HELD, hard))
        assert read(client, 0) == DATA[0]
        assert "File too large" in served.log.wait(1)[0]["reason"]
        assert served.blobs() == set()
        wait_until(lambda: not served.spool(), "an empty spool", tick=0.02)
        resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert read(client, 0) == DATA[0]
        assert served.blobs() == {LAYERS[0].digest}


@needs_tool("mkfs.ext4", package="e2fsprogs")
def test_broken_after_the_write(tmp_path: Path, upstream: LyingUpstream) -> None:
    """The kernel takes the bytes and cannot write them to the disk: the client has them, and nothing unsafe is kept."""
    with on_disk(tmp_path, upstream, disk=backed()) as served, served.client() as client:
        assert read(client, 0) == DATA[0]
        filler = served.behind / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while file.write(bytes(MIB)):
                pass
        assert read(client, 1) == DATA[1]
        assert "cannot be written" in served.log.wait(2)[1]["reason"]
        assert LAYERS[1].digest not in served.kept()
        assert read(client, 0) == DATA[0]
        assert served.log.wait(3)[2]["outcome"] == "HIT"
        wait_until(lambda: not served.leftovers(), "an empty spool", tick=0.02)
        filler.unlink()
        assert read(client, 1) == DATA[1]
        assert served.kept() == {LAYERS[0].digest, LAYERS[1].digest}


@needs_tool("mkfs.ext4", package="e2fsprogs")
def test_unreadable(tmp_path: Path, upstream: LyingUpstream) -> None:
    """What the disk does not give back any more is fetched again."""
    with on_disk(tmp_path, upstream, disk=backed()) as served, served.client() as client:
        assert read(client, 0) == DATA[0]
        assert read(client, 0) == DATA[0]
        [blob] = (served.inside / "blobs").glob("*/*/*")
        with blob.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.truncate(served.behind / "disk", 0)
            with pytest.raises(OSError, match="Input/output"):
                os.pread(file.fileno(), MIB, MIB)
        with pytest.raises(http.client.IncompleteRead):
            read(client, 0)
        client.close()
        assert "cannot be read: Input/output error" in served.log.wait(3)[2]["reason"]
        assert read(client, 0) == DATA[0]
        assert served.log.wait(4)[3]["outcome"] == "MISS"
        assert any("cannot be read: Input/output error" in line for line in served.said)


def test_room_is_made(tmp_path: Path, upstream: LyingUpstream) -> None:
    """The disk is full of what nobody has used for long: it leaves at once for what comes, as much as needed."""
    with on_disk(tmp_path, upstream, more='[cache]\nmin_free = "20%"\nmax_size = "100%"\n') as served:
        with served.client() as client:
            assert read(client, 0) == DATA[0]
            assert read(client, 1) == DATA[1]
            for path in (served.inside / "blobs").glob("*/*/*"):
                age = 9000 if path.name in LAYERS[0].digest else 8000
                os.utime(path, (time.time() - age, time.time() - age))
            served.fill(5 * MIB)
            assert read(client, 2) == DATA[2]
            assert served.kept() == {LAYERS[1].digest, LAYERS[2].digest}
            assert {line["reason"] for line in served.log.wait(3)} == {"not cached"}
        status = os.statvfs(served.inside)
        assert status.f_bavail * status.f_frsize >= DISK // 5
