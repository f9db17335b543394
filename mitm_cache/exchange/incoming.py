"""Imports: content is spooled and proven as downloads are, and named last, so that nothing is seen half imported."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head, Link, Origin
from mitm_cache.cache.links import Links
from mitm_cache.cache.pushed import Pushed
from mitm_cache.cache.spool import Reading, Spool, Writing
from mitm_cache.errors import IntegrityError, StoreError
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

    def __init__(self, *, blobs: Blobs, links: Links, spool: Spool, pushed: Pushed) -> None:
        self._blobs = blobs
        self._links = links
        self._spool = spool
        self._pushed = pushed

    def own(self, image: Image, digest: Digest) -> Piece | None:
        """Content that is here and may be counted to an image that is imported without it.

        It may where its repository holds it already, or an earlier import has brought it; what clients have pulled
        into other repositories may be private, and an archive that names it proves nothing.
        """
        if self._links.holds(image.registry, image.repository, digest) is None and digest not in self._brought:
            return None
        blob = self._blobs.open(digest)
        if blob is None:
            return None
        size = blob.size
        blob.close()
        return Piece(size, lambda: self._read(digest))

    @cached_property
    def _brought(self) -> set[Digest]:
        """All that was imported or synced before."""
        return {
            link.digest
            for registry, repository in self._links.repositories()
            for link in self._links.held(registry, repository)
            if link.origin is not Origin.PULLED
        }

    def _read(self, digest: Digest) -> Iterator[bytes]:
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
        """What has to be written, each content once."""
        pieces = {digest: piece for arrival in arrivals for digest, piece in arrival.sources.items()}
        return {digest: piece for digest, piece in pieces.items() if not self._blobs.renew(digest)}

    def take(self, pieces: dict[Digest, Piece], label: str, tell: Callable[[int], None] = lambda _: None) -> None:
        """Write contents, each proven before it counts. Raises IntegrityError and StoreError."""
        self._spool.check_room(sum(piece.size for piece in pieces.values()))
        for digest, piece in pieces.items():
            if not self._keep(digest, piece) and not self._keep(digest, piece):
                raise IntegrityError(f"{label}: what is there as {digest} is something else, or damaged")
            tell(piece.size)

    def _keep(self, digest: Digest, piece: Piece) -> bool:
        """Whether a content is here now; not where its bytes, or those that somebody has left of it, are wrong."""
        role = self._join(digest)
        if role is None:
            return True
        part = role.part
        try:
            state, have = hashlib.new(digest.algorithm), part.stat()[1]
            position = 0
            while position < have:
                state.update(chunk := part.read(position, min(CHUNK, have - position)))
                position += len(chunk)
            self._spool.write_note(part, Head(piece.size, OCTETS))
            position = 0
            for chunk in piece.chunks():
                fresh = chunk[max(have - position, 0) :]
                position += len(chunk)
                if fresh:
                    state.update(fresh)
                    self._spool.append(part, fresh)
            if position != piece.size or have > piece.size or state.hexdigest() != digest.hex:
                self._spool.abandon(part)
                return False
            self._spool.seal(part)
        except StoreError:
            self._spool.abandon(part)
            raise
        finally:
            part.close()
        return True

    def _join(self, digest: Digest) -> Writing | None:
        """The right to write a content; None once it is here. Waits for who is writing it already."""
        while True:
            role = self._spool.join(digest)
            if isinstance(role, Writing):
                return role
            if isinstance(role, Reading):
                role.part.close()
            if self._blobs.renew(digest):
                return None
            time.sleep(WAIT_SECONDS)

    def publish(self, arrivals: Iterable[Arrival]) -> None:
        """Record who holds what, and the tags after all of that. Raises StoreError."""
        arrivals = list(arrivals)
        for digest in {digest for arrival in arrivals for digest in arrival.sources}:
            blob = self._blobs.open(digest)
            if blob is None:
                raise StoreError(
                    f"{digest} was evicted while the rest was imported: cache.max_size is too small for it, or the disk"
                )
            blob.close()
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
