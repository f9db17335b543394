"""A disk that is full or read-only when a process starts: what is cached is served, and the rest passes through."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, generate
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.needs import needs_root
from tests.serving import Process, process

pytestmark = needs_root()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    """Take what is left, to the last byte."""
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (64 * KIB, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    assert os.statvfs(folder).f_bavail == 0


def protect(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def pull(served: Process) -> tuple[int, str]:
    with served.client() as client:
        reply = client.get("/v2/team/app/manifests/1", {"Accept": "*/*"})
    return reply.status, reply.outcome


@pytest.mark.parametrize("refuse", [fill, protect])
def test_it_starts_and_replaces_workers(tmp_path: Path, refuse: Callable[[Path], None]) -> None:
    """The index cannot be opened, which is told; it is only quicker than the files, which are all there."""
    data = tmp_path / "data"
    with LyingUpstream(tmp_path) as upstream, small_disk(data):
        upstream.registry.put("team/app", generate(sizes=[KIB], platforms=["linux/amd64"], seed="full"), "1")
        with process(data, upstream) as served:
            assert pull(served) == (200, "MISS")
        refuse(data)
        with process(data, upstream) as served:
            assert pull(served) == (200, "REVALIDATED")
            told = f"the index in {data / 'index'} cannot be opened: "
            assert told in "".join(served.said)
            first = served.pid
            os.kill(first, signal.SIGKILL)
            assert pull(served) == (200, "REVALIDATED")
            wait_until(lambda: served.pid != first, "the replacement")
