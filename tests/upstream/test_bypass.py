"""Content that is kept nowhere, because the disk takes nothing."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mitm_cache.cache.entry import Head, Link
from mitm_cache.cache.spool import Part
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.upstream.bypass import CHUNK, Bypass
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.upstream.fetching import Supply
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redirect import Origin

CONTENT = bytes(range(256)) * 8192 + b"the end"
HEAD = Head(len(CONTENT), "application/octet-stream")


class Registry:
    """Gives the content from any byte on, and remembers from which."""

    def __init__(self) -> None:
        self.starts: list[int] = []

    def supply(self) -> Supply:
        return Supply(self._fetch, self._landed, "quay.io")

    def _fetch(self, start: int, sink: Sink) -> Answer:
        self.starts.append(start)
        fields = [("Content-Length", str(len(CONTENT) - start))]
        if start:
            fields.append(("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"))
        answer = Answer(206 if start else 200, Headers(fields), Origin.of("https://quay.io"))
        assert sink.begin(answer)
        sink.write(CONTENT[start:])
        return answer

    def _landed(self, link: Link) -> None:
        raise AssertionError(f"{link} is kept nowhere")


async def received(bypass: Bypass, start: int) -> bytes:
    assert await bypass.ready() == HEAD
    await bypass.readable(start, len(CONTENT))
    found = b""
    while piece := await bypass.receive():
        found += piece
    return found


@pytest.mark.parametrize(("how", "starts"), [(os.O_RDONLY, [CHUNK]), (os.O_WRONLY, [0])], ids=["sound", "unreadable"])
@pytest.mark.parametrize("start", [0, 1000, CHUNK + 5])
async def test_a_part_that_goes_no_further(tmp_path: Path, how: int, starts: list[int], start: int) -> None:
    """What a part file has is taken from it; what the disk does not give back comes from upstream too."""
    path = tmp_path / "part"
    path.write_bytes(CONTENT[:CHUNK])
    part = Part(Digest.of(CONTENT), path, os.open(path, how))
    registry = Registry()
    bypass = Bypass(
        part.digest, registry.supply(), StoreError("no room"), stopped=lambda: False, head=HEAD, part=part, start=start
    )
    with ThreadPoolExecutor(1) as pool:
        done = asyncio.get_running_loop().run_in_executor(pool, bypass.run)
        assert await received(bypass, start) == CONTENT[start:]
        await done
    assert registry.starts == starts
    assert part.fileno() < 0


async def test_a_manifest_without_a_length(tmp_path: Path) -> None:
    """The disk took its size and no byte more; upstream says no length, and it is had whole."""
    path = tmp_path / "part"
    path.touch()
    part = Part(Digest.of(CONTENT), path, os.open(path, os.O_RDONLY))

    def fetch(start: int, sink: Sink) -> Answer:
        answer = Answer(200, Headers(), Origin.of("https://quay.io"))
        assert (start, sink.begin(answer)) == (0, False)
        answer.body = CONTENT
        return answer

    def landed(link: Link) -> None:
        raise AssertionError(f"{link} is kept nowhere")

    supply = Supply(fetch, landed, "quay.io", max_size=len(CONTENT))
    bypass = Bypass(part.digest, supply, StoreError("no room"), stopped=lambda: False, head=HEAD, part=part)
    with ThreadPoolExecutor(1) as pool:
        done = asyncio.get_running_loop().run_in_executor(pool, bypass.run)
        assert await received(bypass, 0) == CONTENT
        await done
