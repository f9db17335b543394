"""Damage at rest: what rots on the disk reaches no client whole, is put aside, and is fetched again."""

import http.client
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.proof import SMALL, Proofs
from mitm_cache.cache.quarantine import Quarantine
from mitm_cache.demo.image import KIB, MIB
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from tests.fakes.big import Pattern, big_image
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.serving import Threaded, in_thread

NAME = "team/app"
SIZES = {"small": 300 * KIB, "large": SMALL + 3 * MIB}
LAYERS = {name: Pattern(size, f"big {number}") for number, (name, size) in enumerate(SIZES.items())}


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put(NAME, big_image(*SIZES.values()), "1")
        yield upstream


def target(name: str) -> str:
    return f"/v2/{NAME}/blobs/{LAYERS[name].digest}"


def content(name: str) -> bytes:
    return b"".join(LAYERS[name].chunks(0, SIZES[name]))


def path_of(data: Path, name: str) -> Path:
    hexadecimal = LAYERS[name].digest.partition(":")[2]
    return data / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal


def get(cache: Threaded, name: str, headers: dict[str, str] | None = None) -> tuple[bytes, str]:
    with cache.client() as client:
        reply = client.get(target(name), headers)
        return reply.body, reply.outcome


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def quarantined(data: Path) -> list[Path]:
    return list((data / "quarantine").glob("*"))


@pytest.fixture
def data(tmp_path: Path, upstream: LyingUpstream) -> Path:
    """A data directory with both blobs, of a service that has ended."""
    data = tmp_path / "data"
    with in_thread(data, upstream) as cache:
        for name in LAYERS:
            assert get(cache, name) == (content(name), "MISS")
    return data


@pytest.mark.parametrize("damage", ["a bit", "cut short", "longer", "empty"])
def test_a_small_one_is_fetched_again_at_once(data: Path, upstream: LyingUpstream, damage: str) -> None:
    """Within the same request: the client gets what is right, and the damaged file can be looked at."""
    path = path_of(data, "small")
    if damage == "a bit":
        flip(path, 12345)
    else:
        os.truncate(path, {"cut short": 1000, "longer": SIZES["small"] + 1, "empty": 0}[damage])
    with in_thread(data, upstream) as cache:
        assert get(cache, "small") == (content("small"), "MISS")
        assert get(cache, "small") == (content("small"), "HIT")
    assert len(quarantined(data)) == 1
    assert upstream.requests.count(kind="object", method="GET") == 3


@pytest.mark.parametrize("asked", [None, f"bytes=0-{SIZES['large'] - 1}", "bytes=100-199"])
def test_a_large_one_is_cut_before_its_end(data: Path, upstream: LyingUpstream, asked: str | None) -> None:
    """Delivered while it is hashed, and cut before the last byte of the answer; then it is fetched again."""
    flip(path_of(data, "large"), 150)
    with in_thread(data, upstream) as cache:
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            get(cache, "large", {"Range": asked} if asked else None)
        assert "damaged" in cache.log.wait(1)[0]["reason"]
        assert len(quarantined(data)) == 1
        assert get(cache, "large") == (content("large"), "MISS")
        assert get(cache, "large")[1] == "HIT"


@pytest.mark.parametrize("name", ["small", "large"])
def test_one_that_cannot_be_put_aside(data: Path, upstream: LyingUpstream, name: str) -> None:
    """As on a disk that takes nothing: who asks for it after it was found is given it past the disk."""
    flip(path_of(data, name), 150)
    (data / "quarantine").write_bytes(b"")
    with in_thread(data, upstream) as cache:
        if name == "large":
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                get(cache, name)
        for _ in range(2):
            assert get(cache, name) == (content(name), "MISS")


def test_damage_while_it_serves(data: Path, upstream: LyingUpstream) -> None:
    """A file of another size than the one that was proven is proven anew, at any time."""
    with in_thread(data, upstream) as cache:
        assert get(cache, "small") == (content("small"), "HIT")
        os.truncate(path_of(data, "small"), 1000)
        assert get(cache, "small") == (content("small"), "MISS")


def test_what_is_sound_is_served(data: Path, upstream: LyingUpstream) -> None:
    """Hashed at the first read after the start, and not again."""
    with in_thread(data, upstream) as cache:
        for name in LAYERS:
            for _ in range(2):
                assert get(cache, name) == (content(name), "HIT")
        blobs = cache.app.layout.blobs
        assert blobs.exists()
    assert quarantined(data) == []
    assert upstream.requests.count(kind="object", method="GET") == 2


def test_clients_at_once_share_one_proof(data: Path, upstream: LyingUpstream) -> None:
    """Two readers of one damaged blob are both cut, and it is put aside once."""
    flip(path_of(data, "large"), 150)
    with in_thread(data, upstream) as cache, cache.client() as one, cache.client() as other:
        for client in (one, other):
            client.send_request("GET", target("large"))
        for client in (one, other):
            try:
                assert client.getresponse().read() == content(
                    "large"
                )  # the second may have come after it was put aside
            except (http.client.IncompleteRead, ConnectionError):
                pass
        wait_until(lambda: len(quarantined(data)) == 1, "one file put aside", tick=0.02)


async def test_no_thread_is_left(tmp_path: Path) -> None:
    """A pool that gives none says RuntimeError; here it has been closed."""
    blobs = Blobs(tmp_path / "blobs")
    draft = tmp_path / "draft"
    draft.write_bytes(b"content")
    blobs.adopt(Digest.of(b"content"), draft)
    proofs = Proofs(blobs, Quarantine(tmp_path / "quarantine", blobs), stopped=lambda: False)
    proofs.close()
    blob = blobs.open(Digest.of(b"content"))
    assert blob is not None
    with pytest.raises(StoreError, match="cannot be proven now"):
        await proofs.admit(Digest.of(b"content"), blob)
    blob.close()


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """It is the disk that cannot be read, then, and the content comes past it: no error of the cache's own."""
    blobs = Blobs(tmp_path / "blobs")
    draft = tmp_path / "draft"
    draft.write_bytes(b"content")
    blobs.adopt(Digest.of(b"content"), draft)
    proofs = Proofs(blobs, Quarantine(tmp_path / "quarantine", blobs), stopped=lambda: False)
    blob = blobs.open(Digest.of(b"content"))
    assert blob is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (blob.fileno(), hard))
    try:
        with pytest.raises(StoreError, match="Too many open files"):
            await proofs.admit(Digest.of(b"content"), blob)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await proofs.admit(Digest.of(b"content"), blob)
    blob.close()
    proofs.close()
