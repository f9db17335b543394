"""What is kept free on the disk, and what is told of one that refuses."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head
from mitm_cache.cache.evict import Swept
from mitm_cache.cache.room import PATIENCE, SWEEP_SECONDS, Room
from mitm_cache.cache.spool import Part, Spool, State, Writing
from mitm_cache.cache.trouble import SAY_SECONDS, Trouble
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest

CONTENT = b"some content"
DIGEST = Digest.of(CONTENT)


class Disk:
    """A room over a real file system, of which so much is said to be needed that a sweep decides."""

    def __init__(self, folder: Path, *, freed_by_sweep: bool) -> None:
        self.now = 0.0
        self.swept: list[int] = []
        self.least = 1 << 62
        self.others = 0
        self.stopped = False
        self._freed = freed_by_sweep
        self.room = Room(
            folder,
            least=lambda _: self.least,
            sweep=self._sweep,
            stopped=lambda: self.stopped,
            clock=lambda: self.now,
        )

    def _sweep(self, missing: int) -> Swept | None:
        if self.others:
            self.others -= 1
            self.now += 1
            return None
        self.swept.append(missing)
        if self._freed:
            self.least = 0
        return Swept(missing, missing, 1)


def test_enough_room(tmp_path: Path) -> None:
    """Nothing is swept where there is room."""
    disk = Disk(tmp_path, freed_by_sweep=True)
    disk.least = 0
    disk.room.check(1)
    assert disk.swept == []


def test_room_is_made(tmp_path: Path) -> None:
    """What is missing is asked of a sweep, whose account is kept for whoever counts."""
    disk = Disk(tmp_path, freed_by_sweep=True)
    disk.room.check(1000)
    [missing] = disk.swept
    assert missing > 1 << 61
    assert list(disk.room.swept) == [Swept(missing, missing, 1)]


def test_no_room_is_told_and_not_swept_for_again_and_again(tmp_path: Path) -> None:
    """A sweep that frees nothing is not repeated for each of a dozen downloads."""
    disk = Disk(tmp_path, freed_by_sweep=False)
    for _ in range(12):
        with pytest.raises(StoreError, match=r"cache\.min_free"):
            disk.room.check(1)
    assert len(disk.swept) == 1
    disk.now += SWEEP_SECONDS
    with pytest.raises(StoreError):
        disk.room.check(1)
    assert len(disk.swept) == 2


def test_who_else_sweeps_is_waited_for(tmp_path: Path) -> None:
    """The service's own regular sweep, or another process's: what it leaves to be done is done then."""
    disk = Disk(tmp_path, freed_by_sweep=True)
    disk.others = 3
    disk.room.check(1)
    assert len(disk.swept) == 1


def test_who_else_sweeps_for_long_is_not_waited_for(tmp_path: Path) -> None:
    """There is no room then, and for some time nobody waits again."""
    disk = Disk(tmp_path, freed_by_sweep=True)
    disk.others = int(PATIENCE)
    with pytest.raises(StoreError, match=r"cache\.min_free"):
        disk.room.check(1)
    with pytest.raises(StoreError):
        disk.room.check(1)
    assert (disk.swept, disk.others) == ([], 0)
    disk.now += SWEEP_SECONDS
    disk.room.check(1)
    assert len(disk.swept) == 1


def test_who_ends_waits_for_nobody(tmp_path: Path) -> None:
    """A service that ends has a second, and somebody else's sweep may take ten."""
    disk = Disk(tmp_path, freed_by_sweep=True)
    disk.others, disk.stopped = 2, True
    with pytest.raises(StoreError):
        disk.room.check(1)
    assert (disk.swept, disk.others) == ([], 1)


def test_trouble_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Each refusal counts, and one a minute is logged with the count."""
    now = 0.0
    trouble = Trouble(lambda: now)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            trouble.report(StoreError("the disk is full"))
        now += SAY_SECONDS
        trouble.report(StoreError("the disk is full"))
    assert trouble.count == 6
    assert ["(1 so far" in caplog.messages[0], "(6 so far" in caplog.messages[1], len(caplog.messages)] == [
        True,
        True,
        2,
    ]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    for name in ("spool", "blobs"):
        (tmp_path / name).mkdir()
    return Spool(tmp_path / "spool", Blobs(tmp_path / "blobs"))


def full_disk(monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
    """The kernel's write says that the disk is full, so many times, after half of each."""
    plain: Callable[..., int] = os.write
    left = [times]

    def write(fd: int, data: memoryview) -> int:
        if left[0] and len(data) > 1:
            return plain(fd, data[: len(data) // 2])
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(fd, data)

    monkeypatch.setattr("mitm_cache.cache.spool.os.write", write)


def test_an_append_goes_on_where_room_was_made(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte is written twice, and none is left out."""
    role = spool.join(DIGEST)
    assert isinstance(role, Writing)
    full_disk(monkeypatch, times=1)
    role.part.append(CONTENT, lambda _: True)
    assert role.part.read(0, 100) == CONTENT
    role.part.close()


def test_an_append_is_tried_twice_at_most(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says that there is room and there is none is not asked for ever."""
    role = spool.join(DIGEST)
    assert isinstance(role, Writing)
    full_disk(monkeypatch, times=100)
    with pytest.raises(StoreError, match="No space left"):
        role.part.append(CONTENT, lambda _: True)
    assert CONTENT.startswith(role.part.read(0, 100))
    role.part.close()


def test_what_is_abandoned_is_told_and_gone(spool: Spool, tmp_path: Path) -> None:
    """Readers see by their own descriptors that it goes no further; who comes later begins anew."""
    role = spool.join(DIGEST)
    assert isinstance(role, Writing)
    spool.write_note(role.part, Head(len(CONTENT), "a/b"))
    role.part.append(CONTENT[:5])
    reader: Part = role.part.reopen()
    spool.abandon(role.part)
    assert reader.stat() == (State.ABANDONED, 5)
    assert reader.read(0, 100) == CONTENT[:5]
    assert spool.join(DIGEST) is not None
    role.part.close()
    reader.close()


def test_what_is_at_hand_is_kept_or_not(spool: Spool, tmp_path: Path) -> None:
    """Content that is proven becomes a blob; where the disk refuses, that is reported and is no error."""
    spool.keep(DIGEST, Head(len(CONTENT), "a/b"), CONTENT)
    assert Blobs(tmp_path / "blobs").path(DIGEST).read_bytes() == CONTENT
    (tmp_path / "spool").rmdir()
    spool.keep(Digest.of(b"other"), Head(5, "a/b"), b"other")
    assert spool.trouble.count == 1
