"""Downloads in progress, shared by every process on this host through the file system alone.

A download is an append-only part file named by its digest. Who holds its exclusive flock is the writer; everyone
else, in this process or another, reads along. The inode is the generation and its mode bits are its state, which an
open descriptor sees across rename and unlink. When a writer dies the lock is free and a reader takes over. A bad
generation is marked, unlinked and never reused or truncated. Local file systems only: NFS locks differ.
"""

import contextlib
import enum
import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head
from mitm_cache.cache.room import Room
from mitm_cache.cache.trouble import Trouble
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC


class State(enum.IntEnum):
    """Mode bits of a part file. Its owner can always reopen it, so an unprivileged cache works too."""

    GROWING = 0o600
    VERIFIED = 0o640
    FAILED = 0o601
    ABANDONED = 0o611
    """The disk takes no more of it; what there is of it is good so far."""


_ENDED = (State.VERIFIED, State.FAILED, State.ABANDONED)
_NOTED = 0o620
"""A growing part about which its writer has left a note."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why a generation failed, for readers in other processes. `shared` ones hold for every client."""

    status: int
    code: str
    message: str
    shared: bool
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """What is written beside a part file: readers need the size before the first byte."""

    inode: int
    head: Head
    outcome: Outcome | None


class Part:
    """One open descriptor of a part file."""

    __slots__ = ("_fd", "digest", "inode", "path")

    def __init__(self, digest: Digest, path: Path, fd: int) -> None:
        self.digest = digest
        self.path = path
        self._fd = fd
        self.inode = os.fstat(fd).st_ino

    def fileno(self) -> int:
        return self._fd

    def stat(self) -> tuple[State, int]:
        """The generation's state and its size in bytes so far."""
        status = os.fstat(self._fd)
        mode = status.st_mode & 0o777
        # Neither mark means growing, whatever an administrator's chmod -R did to it.
        return State(mode) if mode in _ENDED else State.GROWING, status.st_size

    def has_note(self) -> bool:
        """Whether a note with this inode's number is about this generation: numbers are used again."""
        return os.fstat(self._fd).st_mode & 0o777 in (_NOTED, *_ENDED)

    def is_current(self) -> bool:
        """Whether the path still leads to this generation."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except FileNotFoundError:
            return False

    def lock(self) -> bool:
        """Try to become the writer."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def reopen(self) -> Self:
        """A descriptor of its own on the same generation: a dup would share the writer's lock and position."""
        fd = os.open(f"/proc/self/fd/{self._fd}", _FLAGS)
        return type(self)(self.digest, self.path, fd)

    def share(self) -> Self:
        """Another descriptor of a reader's open file: nothing is opened, which a broken disk might not allow."""
        return type(self)(self.digest, self.path, os.dup(self._fd))

    def append(self, data: bytes, make_room: Callable[[int], bool] = lambda _: False) -> None:
        """Write at the end; `make_room` is asked once where the disk is full. Raises StoreError.

        What was written before an error stays, and is right.
        """
        view = memoryview(data)
        asked = False
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                if full and not asked and make_room(len(view)):
                    asked = True
                    continue
                raise StoreError(f"the cache cannot be written: {error.strerror}") from error

    def read(self, position: int, size: int) -> bytes:
        """At most `size` bytes from a position that has been written. Raises StoreError."""
        try:
            chunk = os.pread(self._fd, size, position)
        except OSError as error:
            raise StoreError(f"the spool cannot be read: {error.strerror}") from error
        if not chunk:
            raise StoreError("a spool file is shorter than it was")
        return chunk

    def close(self) -> None:
        """Let go; for a writer this releases the lock. Closing twice does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Writing:
    """This caller holds the lock; `part` may already hold bytes of a writer that died."""

    part: Part


@dataclass(frozen=True, slots=True)
class Reading:
    """Somebody else is writing."""

    part: Part


class Spool:
    """The folder of part files."""

    def __init__(self, folder: Path, blobs: Blobs, room: Room | None = None) -> None:
        """`room`: what keeps some of the disk free; without it a download may fill it."""
        self._folder = folder
        self._blobs = blobs
        self._room = room
        self.trouble = Trouble()

    def join(self, digest: Digest) -> Writing | Reading | None:
        """Become the writer or a reader of a digest's download; None: the blob is there by now, or look again.

        Raises StoreError where the disk refuses.
        """
        path = self._folder / f"{digest.filename}.part"
        try:
            fd = os.open(path, _FLAGS | os.O_CREAT, State.GROWING)
        except OSError as error:
            raise StoreError(f"the spool cannot be written: {error.strerror}") from error
        part = Part(digest, path, fd)
        role = None
        try:
            role = self._role(part)
        except OSError as error:
            raise StoreError(f"the spool cannot be written: {error.strerror}") from error
        finally:
            if role is None:
                part.close()
        return role

    def _role(self, part: Part) -> Writing | Reading | None:
        if not part.lock():
            return None if part.stat()[0] in (State.FAILED, State.ABANDONED) else Reading(part)
        # The path may lead elsewhere since the open: writing on would change an adopted blob.
        if not part.is_current():
            return None
        if self._blobs.has(part.digest):
            part.path.unlink(missing_ok=True)
            return None
        match part.stat()[0]:
            case State.VERIFIED:  # its writer died between the mark and the rename
                self._blobs.adopt(part.digest, part.path)
                self.forget(part.digest)
                return None
            case State.FAILED | State.ABANDONED:
                part.path.unlink(missing_ok=True)
                return None
            case State.GROWING:
                if part.stat()[1] == 0:
                    # Without a byte there is nothing to carry on, and what was said was said to another client.
                    os.fchmod(part.fileno(), State.GROWING)
                return Writing(part)

    def take_over(self, part: Part) -> Part | None:
        """The writer's descriptor of a generation whose writer is gone; None while it lives or has ended.

        Raises StoreError.
        """
        taken = False
        try:
            fresh = part.reopen()
            try:
                taken = _is_left_alone(fresh)
            finally:
                if not taken:
                    fresh.close()
        except OSError as error:
            raise StoreError(f"the spool cannot be read: {error.strerror}") from error
        return fresh if taken else None

    def seal(self, part: Part) -> None:
        """Make a proven part the blob. Raises StoreError; the caller still closes the part."""
        try:
            if not part.is_current():
                raise StoreError("a file of the spool was removed while it was written")
            os.fdatasync(part.fileno())
            os.fchmod(part.fileno(), State.VERIFIED)
            self._blobs.adopt(part.digest, part.path)
            self._blobs.vouch(part.inode, part.stat()[1])
        except OSError as error:
            raise StoreError(f"the cache cannot be written: {error.strerror}") from error
        self.forget(part.digest)

    def check_room(self, missing: int) -> None:
        """Make room for the rest of a download. Raises StoreError where there is none."""
        if self._room is not None:
            self._room.check(missing)

    def append(self, part: Part, data: bytes) -> None:
        """Write at the end of a part, evicting where the disk is full. Raises StoreError."""
        part.append(data, self._room.make if self._room is not None else lambda _: False)

    def keep(self, digest: Digest, head: Head, content: bytes) -> None:
        """Make content that is at hand and proven a blob, unless somebody else does, or the disk takes nothing."""
        try:
            role = self.join(digest)
        except StoreError as error:
            self.trouble.report(error)
            return
        if role is None:
            return
        try:
            if isinstance(role, Writing) and role.part.stat()[1] == 0:
                self.check_room(len(content))
                self.write_note(role.part, head)
                self.append(role.part, content)
                self.seal(role.part)
        except StoreError as error:
            self.abandon(role.part)
            self.trouble.report(error)
        finally:
            role.part.close()

    def abandon(self, part: Part) -> None:
        """The disk takes no more of a part: free what it holds. Its readers go on without it."""
        with contextlib.suppress(OSError):
            os.fchmod(part.fileno(), State.ABANDONED)
        with contextlib.suppress(OSError):
            if part.is_current():
                part.path.unlink(missing_ok=True)
        self.forget(part.digest)

    def discard(self, part: Part, outcome: Outcome) -> None:
        """Mark a generation as bad, tell its readers why, and unlink it; the caller still closes the part."""
        try:
            note = self.note(part)
            self.write_note(part, note.head if note else Head(-1, ""), outcome)
        except StoreError:  # on a full disk the readers see the mark without the reason
            self.forget(part.digest)
        os.fchmod(part.fileno(), State.FAILED)
        if part.is_current():
            part.path.unlink(missing_ok=True)

    def _note_path(self, digest: Digest) -> Path:
        return self._folder / f"{digest.filename}.json"

    def forget(self, digest: Digest) -> None:
        """Remove the note of a download that has ended; where the disk refuses, a sweep does."""
        with contextlib.suppress(OSError):
            self._note_path(digest).unlink(missing_ok=True)

    def forget_failure(self, part_inode: int, digest: Digest) -> None:
        """Remove the note of a failed generation, unless a newer one has written its own."""
        try:
            note = self._read_note(digest)
        except StoreError:
            return  # the next sweep removes it
        if note is not None and note.inode == part_inode and note.outcome is not None:
            self.forget(digest)

    def write_note(self, part: Part, head: Head, outcome: Outcome | None = None) -> None:
        """Say what is known of a generation. Raises StoreError."""
        fields = {
            "inode": part.inode,
            "size": head.size,
            "type": head.media_type,
            "outcome": None if outcome is None else astuple(outcome),
        }
        path = self._note_path(part.digest)
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            draft.write_text(json.dumps(fields))
            draft.replace(path)
            if outcome is None:
                os.fchmod(part.fileno(), _NOTED)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise StoreError(f"the spool cannot be written: {error.strerror}") from error

    def note(self, part: Part) -> Note | None:
        """What its writer has said of this generation so far."""
        note = self._read_note(part.digest) if part.has_note() else None
        return note if note is not None and note.inode == part.inode else None

    def _read_note(self, digest: Digest) -> Note | None:
        try:
            fields = json.loads(self._note_path(digest).read_text())
            outcome = fields["outcome"]
            return Note(
                int(fields["inode"]),
                Head(int(fields["size"]), str(fields["type"])),
                None if outcome is None else Outcome(*outcome),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None  # a note that a power failure has torn says nothing
        except OSError as error:
            raise StoreError(f"the spool's note on {digest} cannot be read: {error.strerror}") from error


def _is_left_alone(part: Part) -> bool:
    """Whether who has this descriptor is the writer now, of what another writer has left."""
    if not part.lock() or part.stat()[0] is not State.GROWING:
        return False
    if part.is_current():
        return True
    os.fchmod(part.fileno(), State.FAILED)  # its file was removed: nobody could finish it
    return False
