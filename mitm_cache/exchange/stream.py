"""An archive that comes through a pipe: read once, from its beginning to its end.

What is named by its digest goes to the store as it comes: proven, and seen by nobody before all of the archive is known
to be sound. The rest, which is documents where an archive is an OCI image layout, goes to a file of the data directory
that has no name, and so is gone with this process, however that ends.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from mitm_cache.errors import ClientError, StoreError
from mitm_cache.exchange.incoming import Import
from mitm_cache.exchange.source import Members, read_at
from mitm_cache.exchange.stock import Piece
from mitm_cache.exchange.tar import Member, StreamTape, read_members
from mitm_cache.oci.digest import Digest

LABEL = "standard input"


class StreamSource:
    """What has come, as a source."""

    label = LABEL

    def __init__(self, file: BinaryIO, target: Import, tell: Callable[[int], None] = lambda _: None) -> None:
        """Read all of it. Raises MitmCacheError."""
        self._target = target
        self._members = Members()
        self._pieces: dict[str, Piece] = {}
        self._draft = target.draft()
        try:
            self._read(StreamTape(file, tell))
        except BaseException:
            self._draft.close()
            raise

    def _read(self, tape: StreamTape) -> None:
        try:
            for member in read_members(tape):
                if self._members.add(member):
                    self._pieces[member.name] = self._take(member, tape)
            tape.drain()
        except ClientError as error:
            raise ClientError(f"{LABEL}: {error.message}") from None
        except OSError as error:
            raise StoreError(f"{LABEL} cannot be read: {error.strerror}") from error

    def _take(self, member: Member, tape: StreamTape) -> Piece:
        digest = _digest_of(member.name)
        if digest is not None:
            self._target.keep(digest, Piece(member.size, partial(tape.content, member)), LABEL)
            return Piece(member.size, partial(self._target.read, digest))
        self._target.check_room(member.size)
        offset = self._draft.tell()
        for chunk in tape.content(member):
            self._write(chunk)
        return Piece(member.size, partial(read_at, self._draft.fileno(), offset, member.size, LABEL))

    def _write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[self._draft.write(view) :]
        except OSError as error:
            raise StoreError(f"{LABEL} cannot be kept: {error.strerror}") from error

    def _piece(self, name: str) -> Piece | None:
        member = self._members.find(name)
        return None if member is None else self._pieces[member.name]

    def size(self, name: str) -> int | None:
        piece = self._piece(name)
        return None if piece is None else piece.size

    def chunks(self, name: str) -> Iterator[bytes]:
        piece = self._piece(name)
        if piece is None:
            raise ClientError(f"{LABEL} has no {name}")
        return piece.chunks()

    def names(self) -> Iterator[str]:
        return self._members.names()

    def close(self) -> None:
        self._draft.close()


def _digest_of(name: str) -> Digest | None:
    """The digest by which a layout has a file; None of other files."""
    front, _, rest = name.partition("/")
    try:
        return Digest.parse(rest.replace("/", ":")) if front == "blobs" else None
    except ClientError:
        return None
