"""Imports: content is spooled and proven as downloads are, and named last, so that nothing is seen half imported."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from io import FileIO
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head, Link, Origin
from mitm_cache.cache.links import Links
from mitm_cache.cache.pushed import Pushed
from mitm_cache.cache.spool import Part, Reading, Spool, Writing
from mitm_cache.errors import IntegrityError, MitmCacheError, StoreError
from mitm_cache.exchange.arriving import Arrival
from mitm_cache.exchange.stock import Piece
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.image import Image
from mitm_cache.oci.reference import Repository

WAIT_SECONDS = 0.1
"""Between looks at a download of the same content by the service."""
CHUNK = 1 << 20
OCTETS = "application/octet-stream"


class Import:
    """Takes images into a data directory, beside a service that may run."""

    def __init__(self, *, blobs: Blobs, links: Links, spool: Spool, pushed: Pushed, drafts: Path) -> None:
        """`drafts`: a folder for files that have no name."""
        self._blobs = blobs
        self._links = links
        self._spool = spool
        self._pushed = pushed
        self._drafts = drafts
        self._proven: set[Digest] = set()
        """What has been read of an archive by now, and was right."""
        self.written: dict[Digest, int] = {}
        """What was not here before, with its size in bytes."""

    def own(self, image: Image, digest: Digest) -> Piece | None:
        """Content that is here and may be counted to an image that is imported without it.

        It may where its repository holds it already, or an earlier import has brought it; what clients have pulled
        into other repositories may be private, and an archive that names it proves nothing.
        """
        blob = self._blobs.open(digest) if self._may_count(image, digest) else None
        if blob is None:
            return None
        size = blob.size
        blob.close()
        return Piece(size, lambda: self.read(digest))

    def _may_count(self, image: Image, digest: Digest) -> bool:
        return self._links.holds(image.registry, image.repository, digest) is not None or digest in self._brought

    @cached_property
    def _brought(self) -> set[Digest]:
        """All that was imported or synced before."""
        return {
            link.digest
            for registry, repository in self._links.repositories()
            for link in self._links.held(registry, repository)
            if link.origin is not Origin.PULLED
        }

    def read(self, digest: Digest) -> Iterator[bytes]:
        """The bytes of a content that is here, a MiB at a time. Raises StoreError, and IntegrityError at their end."""
        state = hashlib.new(digest.algorithm)
        try:
            with self._blobs.path(digest).open("rb") as file:
                while chunk := file.read(CHUNK):
                    state.update(chunk)
                    yield chunk
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be read: {error.strerror}") from error
        if state.hexdigest() != digest.hex:
            raise IntegrityError(f"the cached {digest} is damaged: run mitm-cache verify --repair")

    def missing(self, arrivals: Iterable[Arrival]) -> dict[Digest, Piece]:
        """What has to be read from an archive, each content once: what is not here yet, and what is here for others
        only. An archive that holds no more of that than its name is not to open it."""
        pieces: dict[Digest, Piece] = {}
        for arrival in arrivals:
            for digest, piece in arrival.sources.items():
                if digest in pieces:
                    continue
                known = digest in self._proven or self._may_count(arrival.image, digest)
                if not (self._blobs.renew(digest) and known):
                    pieces[digest] = piece
        return pieces

    def take(self, pieces: dict[Digest, Piece], label: str, tell: Callable[[int], None] = lambda _: None) -> None:
        """Have contents here, each proven before it counts. Raises MitmCacheError."""
        self.check_room(sum(piece.size for digest, piece in pieces.items() if not self._blobs.has(digest)))
        for digest, piece in pieces.items():
            self.keep(digest, piece, label)
            tell(piece.size)

    def draft(self) -> FileIO:
        """A file without a name, which is gone when it is closed, however that comes. Raises StoreError."""
        try:
            return tempfile.TemporaryFile(dir=self._drafts, buffering=0)
        except OSError as error:
            raise StoreError(f"{self._drafts} cannot be written: {error.strerror}") from error

    def check_room(self, size: int) -> None:
        """Make room for so many bytes. Raises StoreError where there is none."""
        self._spool.check_room(size)

    def keep(self, digest: Digest, piece: Piece, label: str) -> None:
        """Have a content here, which is read once; what is here already is only proven. Raises MitmCacheError."""
        state, size, part = hashlib.new(digest.algorithm), 0, self._join(digest)
        try:
            if part is not None:
                self.check_room(piece.size)
                self._spool.write_note(part, Head(piece.size, OCTETS))
            for chunk in piece.chunks():
                state.update(chunk)
                size += len(chunk)
                if part is not None:
                    self._spool.append(part, chunk)
            if size != piece.size or state.hexdigest() != digest.hex:
                raise IntegrityError(f"{label}: what is there as {digest} is something else, or damaged")
            if part is not None:
                self._spool.seal(part)
                self.written[digest] = size
            self._proven.add(digest)
        except MitmCacheError:
            if part is not None:
                self._spool.abandon(part)
            raise
        finally:
            if part is not None:
                part.close()

    def _join(self, digest: Digest) -> Part | None:
        """An empty part to write a content to; None once it is here. Waits for who is writing it already."""
        while not self._blobs.renew(digest):
            role = self._spool.join(digest)
            if isinstance(role, Writing) and role.part.stat()[1] == 0:
                return role.part
            if isinstance(role, Writing):  # what a writer has left that is gone: here is all of it
                self._spool.abandon(role.part)
                role.part.close()
                continue
            if isinstance(role, Reading):
                role.part.close()
            time.sleep(WAIT_SECONDS)
        return None

    def publish(self, arrivals: Iterable[Arrival]) -> None:
        """Record who holds what, and the tags after all of that. Raises StoreError."""
        arrivals = list(arrivals)
        for digest in {digest for arrival in arrivals for digest in arrival.sources}:
            if not self._blobs.renew(digest):  # so that no sweep takes it before it is linked
                raise StoreError(
                    f"{digest} was evicted while the rest was imported: cache.max_size is too small for it, or the disk"
                )
        held: dict[tuple[str, Repository], dict[Digest, Link]] = {}
        for arrival in arrivals:
            found = held.setdefault((arrival.image.registry, arrival.image.repository), {})
            found |= {digest: Link(digest, OCTETS, size, Origin.IMPORTED) for digest, size in arrival.blobs.items()}
            found |= arrival.manifests
        for where, found in held.items():
            self._links.hold_all(*where, found.values())
        for arrival in arrivals:
            image = arrival.image
            if not isinstance(image.reference, Digest):
                self._links.give(image.registry, image.repository, image.reference, arrival.manifests[arrival.root])
            # What this cache has heard of the tag before does not hold any more.
            self._pushed.keep(image.registry, image.repository, image.reference)
