"""Blobs on disk."""

import os
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import RECENCY, Blobs
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest

CONTENT = b"content"
DIGEST = Digest.of(CONTENT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "blobs"
    folder.mkdir()
    return folder


@pytest.fixture
def blobs(folder: Path) -> Blobs:
    return Blobs(folder)


def put(blobs: Blobs, content: bytes, folder: Path) -> Digest:
    draft = folder.parent / "draft"
    draft.write_bytes(content)
    blobs.adopt(Digest.of(content), draft)
    return Digest.of(content)


def test_path(blobs: Blobs, folder: Path) -> None:
    """Algorithm, two hex digits, all hex digits."""
    assert blobs.path(DIGEST) == folder / "sha256" / DIGEST.hex[:2] / DIGEST.hex


async def test_adopt_and_open(blobs: Blobs, folder: Path) -> None:
    """A file becomes the blob by a rename, and is there to its last byte at once."""
    assert not blobs.has(DIGEST)
    assert blobs.open(DIGEST) is None
    put(blobs, CONTENT, folder)
    assert blobs.has(DIGEST)
    assert not (folder.parent / "draft").exists()
    blob = blobs.open(DIGEST)
    assert blob is not None
    assert blob.size == len(CONTENT)
    assert os.pread(blob.fileno(), 100, 0) == CONTENT
    assert await blob.readable(0, 7) == 7
    blob.close()


def test_adopt_again(blobs: Blobs, folder: Path) -> None:
    """The same content a second time replaces the first; who reads the first reads on."""
    put(blobs, CONTENT, folder)
    blob = blobs.open(DIGEST)
    assert blob is not None
    put(blobs, CONTENT, folder)
    assert os.pread(blob.fileno(), 100, 0) == CONTENT
    assert [digest for digest, _ in blobs.scan()] == [DIGEST]
    blob.close()


def test_remove(blobs: Blobs, folder: Path) -> None:
    """A blob that is removed is gone for who comes, not for who reads; removing it twice is no error."""
    put(blobs, CONTENT, folder)
    blob = blobs.open(DIGEST)
    assert blob is not None
    blobs.remove(DIGEST)
    blobs.remove(DIGEST)
    assert blobs.open(DIGEST) is None
    assert os.pread(blob.fileno(), 100, 0) == CONTENT
    blob.close()


def test_close_twice(blobs: Blobs, folder: Path) -> None:
    """A second close does not close a descriptor that is somebody else's by now."""
    put(blobs, CONTENT, folder)
    blob = blobs.open(DIGEST)
    assert blob is not None
    blob.close()
    other = os.open(folder, os.O_RDONLY)
    blob.close()
    os.fstat(other)
    os.close(other)


@pytest.mark.parametrize(("age", "touched"), [(RECENCY + 60, True), (RECENCY - 60, False), (-60, False)])
def test_recency(blobs: Blobs, folder: Path, age: float, touched: bool) -> None:
    """Opening marks a blob as used, but writes at most once an hour."""
    put(blobs, CONTENT, folder)
    path = blobs.path(DIGEST)
    before = path.stat().st_mtime - age
    os.utime(path, (before, before))
    blob = blobs.open(DIGEST)
    assert blob is not None
    blob.close()
    assert (path.stat().st_mtime > before) is touched


def test_unreadable(blobs: Blobs) -> None:
    """A blob that is there and cannot be read is an error of the store, not a miss."""
    path = blobs.path(DIGEST)
    path.parent.mkdir(parents=True)
    path.symlink_to(path.name)
    with pytest.raises(StoreError, match=f"blob {DIGEST} cannot be read"):
        blobs.open(DIGEST)


def test_what_cannot_be_looked_at(blobs: Blobs, folder: Path) -> None:
    """One that the disk does not give back stops nobody from counting the others, nor from removing them."""
    digest = put(blobs, CONTENT, folder)
    damaged = digest.hex[:2] + "0" * 62
    (folder / "sha256" / digest.hex[:2] / damaged).symlink_to(damaged)
    assert blobs.measure() == (1, len(CONTENT))


def test_scan(blobs: Blobs, folder: Path) -> None:
    """Every blob with its size; whatever else lies there is passed over."""
    digests = {put(blobs, bytes([number]) * number, folder): number for number in range(5)}
    long = Digest("sha512", "0" * 128)
    (folder.parent / "draft").write_bytes(b"x")
    blobs.adopt(long, folder.parent / "draft")
    shard = blobs.path(DIGEST).parent
    shard.mkdir(exist_ok=True)
    (shard / "notes.txt").touch()
    (folder / "stray").touch()
    (folder / "sha256" / "stray").touch()
    (folder / "lost+found").mkdir()
    assert {digest: status.st_size for digest, status in blobs.scan()} == digests | {long: 1}


def test_renewed(tmp_path: Path) -> None:
    """What is to be linked counts as new, however old it is; what is not here does not come about by it."""
    blobs = Blobs(tmp_path)
    digest = Digest.of(b"content")
    assert not blobs.renew(digest)
    blobs.path(digest).parent.mkdir(parents=True)
    blobs.path(digest).write_bytes(b"content")
    os.utime(blobs.path(digest), (1, 1))
    assert blobs.renew(digest)
    assert blobs.path(digest).stat().st_mtime > 1
