"""A filling that is killed at random instants goes on where it was, and asks for nothing twice."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.content import Chunk
from mitm_cache.demo.image import KIB, assemble, layer
from mitm_cache.demo.ledger import Record
from mitm_cache.demo.message import Answer, Incoming, Proceed
from tests.fakes.registry import LyingUpstream

NAME, HOST = "team/app", "registry.demo"
TAGS = 8
KILLS = 20
PIECE = 8 * KIB
_BASE = [layer("shared", 700 * KIB)]
IMAGES = {
    str(tag): assemble({"linux/amd64": [*_BASE, layer(f"a {tag}", 300 * KIB), layer(f"b {tag}", 150 * KIB)]})
    for tag in range(TAGS)
}


def slowly(incoming: Incoming, proceed: Proceed) -> Answer:
    """A storage host that takes its time, so that a kill finds downloads under way."""
    answer = proceed(incoming)

    def paced(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            for start in range(0, len(chunk), PIECE):
                time.sleep(0.002)  # the pace of the host, not a wait of the test
                yield chunk[start : start + PIECE]

    answer.chunks = paced(answer.chunks)
    return answer


@pytest.mark.parametrize("seed", [1])
def test_killed_again_and_again(tmp_path: Path, seed: int) -> None:
    """What was here whole is never asked for again; what was here in part is, from its last byte."""
    chance = random.Random(seed)
    with LyingUpstream(tmp_path) as upstream:
        for tag, image in IMAGES.items():
            upstream.registry.put(NAME, image, tag)
        upstream.lie("object", slowly)
        data = tmp_path / "data"
        file, listed = tmp_path / "config.toml", tmp_path / "images.txt"
        file.write_text(upstream.configuration(data))
        listed.write_text("".join(f"{HOST}/{NAME}:{tag}\n" for tag in IMAGES))
        command = [sys.executable, "-m", "mitm_cache", "--config", str(file), "sync", "-f", str(listed)]
        content = {digest for image in IMAGES.values() for digest in (*image.manifests, *image.blobs)}
        killed = resumed = 0
        finished = None
        while finished is None:
            here, parts = _blobs(data), _parts(data)
            upstream.requests.clear()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
                if killed < KILLS:
                    _wait(upstream, run, chance.randint(1, 40), chance.random() * 0.1)
                    run.send_signal(signal.SIGKILL)
                run.wait(120)
                if run.returncode == -signal.SIGKILL:
                    killed += 1
                else:
                    finished = run.returncode
            asked = {digest: record.range for record in _gets(upstream) if (digest := _digest(record.path))}
            assert not here & asked.keys()
            for digest in parts.keys() & asked.keys():
                assert asked[digest] == f"bytes={parts[digest]}-"
                resumed += 1
        assert finished == 0
        assert _blobs(data) == content
        assert killed >= 3
        assert resumed > 0
        assert not [path for path in (data / "spool").iterdir() if path.suffix == ".part"]
        print(f"{killed} kills, {resumed} parts carried on, {len(content)} contents, none asked for twice")  # noqa: T201


def _wait(upstream: LyingUpstream, run: "subprocess.Popen[bytes]", number: int, more: float) -> None:
    """Until so many requests have come, or the run has ended, and a moment more."""
    deadline = time.monotonic() + 60
    while len(upstream.requests) < number and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)  # two things are waited for
    time.sleep(more)  # the random instant


def _gets(upstream: LyingUpstream) -> list[Record]:
    return [each for each in upstream.requests if each.method == "GET" and each.kind in ("object", "manifest", "tag")]


def _digest(path: str) -> str:
    found = re.search(r"sha256(?::|/../)([0-9a-f]{64})", path)
    return f"sha256:{found[1]}" if found else ""


def _blobs(data: Path) -> set[str]:
    return {f"{path.parent.parent.name}:{path.name}" for path in (data / "blobs").glob("*/*/*")}


def _parts(data: Path) -> dict[str, int]:
    """What is here of contents that are not here whole, where there is anything."""
    found = {path.stem.replace("-", ":", 1): os.stat(path).st_size for path in (data / "spool").glob("*.part")}
    return {digest: size for digest, size in found.items() if size}
