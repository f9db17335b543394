"""The protocol of the spool, step by step, on real files and real locks."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head
from mitm_cache.cache.spool import Note, Outcome, Part, Reading, Spool, State, Writing
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest

NOBODY = 65534
CONTENT = b"some content"
DIGEST = Digest.of(CONTENT)
HEAD = Head(len(CONTENT), "text/plain")
OUTCOME = Outcome(429, "TOOMANYREQUESTS", "too many", shared=True, retry_after="7")


class Room:
    """A spool and its blobs; what is opened through it is closed with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "spool"
        self.folder.mkdir()
        (folder / "blobs").mkdir()
        self.blobs = Blobs(folder / "blobs")
        self.spool = Spool(self.folder, self.blobs)
        self.parts: list[Part] = []

    def join(self) -> Writing | Reading | None:
        role = self.spool.join(DIGEST)
        if role is not None:
            self.parts.append(role.part)
        return role

    def write(self) -> Part:
        role = self.join()
        assert isinstance(role, Writing)
        return role.part

    def read(self) -> Part:
        role = self.join()
        assert isinstance(role, Reading)
        return role.part

    @property
    def path(self) -> Path:
        return self.folder / f"{DIGEST.filename}.part"

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def blob(self) -> bytes | None:
        path = self.blobs.path(DIGEST)
        return path.read_bytes() if path.exists() else None


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    for part in room.parts:
        part.close()


def mode(part: Part) -> int:
    return stat.S_IMODE(os.fstat(part.fileno()).st_mode)


def test_the_first_writes_and_the_others_read(room: Room) -> None:
    """One descriptor gets the lock; every other open of the file reads, in the same process too."""
    writer = room.write()
    readers = [room.read(), room.read()]
    assert {writer.inode} == {reader.inode for reader in readers}
    writer.append(CONTENT)
    assert readers[0].stat() == (State.GROWING, len(CONTENT))
    assert readers[1].read(5, 100) == CONTENT[5:]


def test_a_download_becomes_the_blob(room: Room) -> None:
    """Sealed: the bytes are the blob's, readers see it by their own descriptors, and nothing is left."""
    writer = room.write()
    reader = room.read()
    room.spool.write_note(writer, HEAD)
    writer.append(CONTENT)
    assert room.spool.note(reader) == Note(writer.inode, HEAD, None)
    room.spool.seal(writer)
    assert room.blob() == CONTENT
    assert reader.stat() == (State.VERIFIED, len(CONTENT))
    assert reader.read(0, 100) == CONTENT
    assert room.files == set()
    writer.close()
    assert room.blobs.has(DIGEST)


def test_joining_after_the_end_finds_the_blob(room: Room) -> None:
    """Who comes just after the rename makes a new file, finds the blob, and takes the file away again."""
    writer = room.write()
    writer.append(CONTENT)
    room.spool.seal(writer)
    writer.close()
    assert room.join() is None
    assert room.files == set()
    assert room.blob() == CONTENT


def between_open_and_lock(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen after the next open of a part file, before its lock."""
    plain_lock = Part.lock

    def late(part: Part) -> bool:
        monkeypatch.setattr(Part, "lock", plain_lock)
        happens()
        return part.lock()

    monkeypatch.setattr(Part, "lock", late)


def test_a_lock_on_a_file_that_was_renamed_is_worth_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a joiner's open and its lock the file becomes the blob: the joiner is sent back, the blob left alone."""
    writer = room.write()
    writer.append(CONTENT)

    def end() -> None:
        room.spool.seal(writer)
        writer.close()

    between_open_and_lock(monkeypatch, end)
    assert room.join() is None
    assert room.blob() == CONTENT
    assert stat.S_IMODE(room.blobs.path(DIGEST).stat().st_mode) == State.VERIFIED


def test_a_lock_on_an_older_generation_is_worth_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed, evicted and begun anew meanwhile: the mark of the old inode says nothing about the file at the path."""
    writer = room.write()
    writer.append(CONTENT)
    newer: list[Part] = []

    def end_and_begin_anew() -> None:
        room.spool.seal(writer)
        writer.close()
        room.blobs.remove(DIGEST)
        newer.append(room.write())
        newer[0].append(b"not proven")

    between_open_and_lock(monkeypatch, end_and_begin_anew)
    assert room.join() is None
    assert room.blob() is None
    assert newer[0].is_current()


def test_a_failed_file_is_never_written_again(room: Room) -> None:
    """A discarded generation is marked and unlinked; the next one has another inode and starts at nothing."""
    writer = room.write()
    reader = room.read()
    room.spool.write_note(writer, HEAD)
    writer.append(b"wrong")
    room.spool.discard(writer, OUTCOME)
    assert reader.stat()[0] is State.FAILED
    assert room.spool.note(reader) == Note(writer.inode, HEAD, OUTCOME)
    writer.close()
    fresh = room.write()
    assert fresh.inode != reader.inode
    assert fresh.stat() == (State.GROWING, 0)
    assert reader.stat() == (State.FAILED, 5)


def test_a_mark_without_an_unlink_is_swept_up(room: Room) -> None:
    """The writer died between the mark and the unlink: the next to join removes the file, and does not use it."""
    writer = room.write()
    writer.append(b"wrong")
    os.fchmod(writer.fileno(), State.FAILED)
    assert room.join() is None  # still locked: neither to be read nor written
    assert room.path.exists()
    writer.close()
    assert room.join() is None
    assert not room.path.exists()
    assert room.write().stat()[1] == 0


def test_verified_but_not_renamed_is_adopted(room: Room) -> None:
    """The writer died between the mark and the rename: the next to join does the rename, and the note goes too."""
    writer = room.write()
    room.spool.write_note(writer, HEAD)
    writer.append(CONTENT)
    os.fchmod(writer.fileno(), State.VERIFIED)
    writer.close()
    assert room.join() is None
    assert room.blob() == CONTENT
    assert room.files == set()


def test_adopting_twice_keeps_the_blob(room: Room) -> None:
    """The same content once more, by another file, replaces the blob by itself; who reads the first one reads on."""
    paths = [room.folder / name for name in ("one", "two")]
    for path in paths:
        path.write_bytes(CONTENT)
    room.blobs.adopt(DIGEST, paths[0])
    blob = room.blobs.open(DIGEST)
    assert blob is not None
    try:
        room.blobs.adopt(DIGEST, paths[1])
        assert os.pread(blob.fileno(), 100, 0) == CONTENT
    finally:
        blob.close()
    assert room.blob() == CONTENT
    assert room.files == set()


def test_a_writer_that_died_is_followed(room: Room) -> None:
    """While the writer lives nobody takes over; after it a reader's generation goes on where it stopped."""
    writer = room.write()
    reader = room.read()
    room.spool.write_note(writer, HEAD)
    writer.append(CONTENT[:5])
    assert room.spool.take_over(reader) is None
    writer.close()
    heir = room.spool.take_over(reader)
    assert heir is not None
    room.parts.append(heir)
    assert heir.inode == reader.inode
    assert room.spool.take_over(reader) is None
    assert isinstance(room.join(), Reading)
    heir.append(CONTENT[5:])
    room.spool.seal(heir)
    assert room.blob() == CONTENT


def test_a_writer_that_died_is_followed_by_who_joins(room: Room) -> None:
    """Without a reader the bytes stay: the next request finds them, and what was known of them."""
    writer = room.write()
    room.spool.write_note(writer, HEAD)
    writer.append(CONTENT[:5])
    writer.close()
    heir = room.write()
    assert heir.stat() == (State.GROWING, 5)
    assert room.spool.note(heir) == Note(heir.inode, HEAD, None)


def test_nobody_takes_over_what_has_ended(room: Room) -> None:
    """Neither a verified nor a failed generation has a next writer."""
    writer = room.write()
    reader = room.read()
    os.fchmod(writer.fileno(), State.VERIFIED)
    writer.close()
    assert room.spool.take_over(reader) is None
    os.fchmod(reader.fileno(), State.FAILED)
    assert room.spool.take_over(reader) is None


def test_a_file_that_was_removed_by_hand_ends(room: Room) -> None:
    """Somebody emptied the spool: the readers are told that this generation has failed, not left to wait for ever."""
    writer = room.write()
    reader = room.read()
    writer.append(CONTENT[:5])
    room.path.unlink()
    writer.close()
    assert room.spool.take_over(reader) is None
    assert reader.stat()[0] is State.FAILED


def test_only_its_own_file_is_sealed(room: Room) -> None:
    """The path leads to another generation by now: that one is not proven, and does not become the blob."""
    writer = room.write()
    writer.append(CONTENT)
    room.path.unlink()
    other = room.write()
    other.append(b"not proven")
    with pytest.raises(StoreError):
        room.spool.seal(writer)
    assert room.blob() is None
    assert other.is_current()


def test_reopened_descriptors_have_locks_of_their_own(room: Room) -> None:
    """A dup shares the writer's lock and would keep it; what `reopen` gives does neither."""
    writer = room.write()
    reader = writer.reopen()
    room.parts.append(reader)
    assert not reader.lock()
    copy = os.dup(writer.fileno())
    writer.close()
    assert not reader.lock()
    os.close(copy)
    assert reader.lock()


def test_a_note_speaks_for_one_generation(room: Room) -> None:
    """Inode numbers are used again: what was said of an earlier generation is not believed of a new one."""
    room.write().close()
    first = room.write()
    room.spool.write_note(first, Head(3, "text/old"))
    first.append(b"old")
    room.spool.discard(first, OUTCOME)
    first.close()
    second = room.write()
    text = (room.folder / f"{DIGEST.filename}.json").read_text()
    (room.folder / f"{DIGEST.filename}.json").write_text(
        text.replace(f'"inode": {first.inode}', f'"inode": {second.inode}')
    )
    assert room.spool.note(second) is None
    room.spool.write_note(second, HEAD)
    assert room.spool.note(second) == Note(second.inode, HEAD, None)


def test_what_was_said_before_the_first_byte_is_forgotten(room: Room) -> None:
    """A writer died after it had told the size: the next one's client has not been told yes by upstream."""
    writer = room.write()
    room.spool.write_note(writer, HEAD)
    writer.close()
    heir = room.write()
    assert room.spool.note(heir) is None


def test_a_torn_note_says_nothing(room: Room) -> None:
    """After a power failure the note may be empty: that is no error, and does not stand in the way of a new start."""
    writer = room.write()
    room.spool.write_note(writer, HEAD)
    for text in ("", "[]", "{", '{"inode": 1}', '{"inode": "x", "size": 1, "type": "", "outcome": null}'):
        (room.folder / f"{DIGEST.filename}.json").write_text(text)
        assert room.spool.note(writer) is None
    room.spool.discard(writer, OUTCOME)
    assert room.spool.note(writer) == Note(writer.inode, Head(-1, ""), OUTCOME)


def test_the_reason_of_a_failure_goes_in_time(room: Room) -> None:
    """It is removed for the generation that failed, and not when the note is about a newer one that grows."""
    writer = room.write()
    room.spool.discard(writer, OUTCOME)
    writer.close()
    room.spool.forget_failure(writer.inode + 1, DIGEST)
    assert room.files == {f"{DIGEST.filename}.json"}
    room.spool.forget_failure(writer.inode, DIGEST)
    assert room.files == set()
    newer = room.write()
    room.spool.write_note(newer, HEAD)
    room.spool.forget_failure(newer.inode, DIGEST)
    assert room.spool.note(newer) is not None


def test_errors_of_the_disk_have_a_name(room: Room) -> None:
    """Without its folder the spool says StoreError, whatever was asked of it."""
    writer = room.write()
    writer.append(CONTENT)
    room.path.unlink()
    room.folder.rmdir()
    for step in (
        lambda: room.spool.join(DIGEST),
        lambda: room.spool.write_note(writer, HEAD),
        lambda: room.spool.seal(writer),
        lambda: writer.read(100, 1),
    ):
        with pytest.raises(StoreError):
            step()


def test_a_note_that_cannot_be_removed(room: Room) -> None:
    """What is proven is kept all the same: a sweep comes for the note."""
    writer = room.write()
    writer.append(CONTENT)
    (room.folder / f"{DIGEST.filename}.json").mkdir()
    room.spool.seal(writer)
    assert room.blob() == CONTENT


def test_a_disk_that_breaks_at_a_take_over(room: Room) -> None:
    """Who rides along is told that the disk fails, and no descriptor is left behind."""
    writer = room.write()
    writer.append(CONTENT[:5])
    reader = room.read()
    writer.close()
    room.folder.rename(room.folder.with_name("away"))
    room.folder.write_bytes(b"")  # no folder
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StoreError, match="the spool cannot be read: Not a directory"):
        room.spool.take_over(reader)
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of nobody's, and the rights of nobody: root could open a file whatever its mode."""
    folder = Path(tempfile.mkdtemp(prefix="spool-"))
    if os.geteuid() != 0:
        yield folder
    else:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)
    shutil.rmtree(folder)


@pytest.mark.parametrize("good", [True, False], ids=["sealed", "discarded"])
def test_modes_need_no_root(unprivileged: Path, good: bool) -> None:
    """An unprivileged owner can write, and reopen its part file in every state."""
    room = Room(unprivileged)
    try:
        writer, reader = room.write(), room.read()
        room.spool.write_note(writer, HEAD)
        writer.append(CONTENT)
        room.parts.append(reader.reopen())
        if good:
            room.spool.seal(writer)
        else:
            room.spool.discard(writer, OUTCOME)
        again = reader.reopen()
        room.parts.append(again)
        assert again.stat() == (State.VERIFIED if good else State.FAILED, len(CONTENT))
        assert again.read(0, 100) == CONTENT
        blob = room.blobs.open(DIGEST)
        assert (blob is not None) is good
        if blob is not None:
            blob.close()
    finally:
        for part in room.parts:
            part.close()


def test_modes_of_the_states(room: Room) -> None:
    """The owner may read and write in each, no stranger may write, and every state is told by its mode alone."""
    writer = room.write()
    modes = [mode(writer)]
    room.spool.write_note(writer, HEAD)
    modes.append(mode(writer))
    assert writer.stat()[0] is State.GROWING
    for state in (State.VERIFIED, State.FAILED):
        os.fchmod(writer.fileno(), state)
        assert writer.stat()[0] is state
        modes.append(mode(writer))
    assert len(set(modes)) == 4
    assert all(each & 0o600 == 0o600 and not each & 0o002 for each in modes)
