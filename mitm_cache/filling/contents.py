"""One content at a time: here already, coming by somebody else's download, or fetched; `synced` from then on."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from mitm_cache.cache.entry import Head, Link, Origin
from mitm_cache.core import Core
from mitm_cache.errors import StoreError, UpstreamError
from mitm_cache.filling.asking import Asking, Denied, refused
from mitm_cache.oci.contents import Descriptor
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import Registry
from mitm_cache.upstream.bypass import Bypass
from mitm_cache.upstream.client import Call
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.upstream.fetching import Hopeless
from mitm_cache.upstream.flight import Landed
from mitm_cache.upstream.generation import Passenger
from mitm_cache.upstream.writer import Refused, Supply, Uncacheable
from mitm_cache.wire.headers import Headers

MANIFESTS, BLOBS = "manifests", "blobs"
OCTETS = "application/octet-stream"
RETRY_SECONDS = 0.005
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """A repository of a registry."""

    registry: Registry
    repository: Repository

    def __str__(self) -> str:
        return f"{self.registry.name}/{self.repository}"


class Contents:
    """Brings contents into the store, by the same downloads as clients' pulls."""

    def __init__(self, core: Core, asking: Asking) -> None:
        self._leg = core.leg
        self._blobs = core.blobs
        self._links = core.links
        self._spool = core.spool
        self._asking = asking

    def has(self, digest: Digest) -> bool:
        """Whether a content is here."""
        return self._blobs.has(digest)

    async def read(self, digest: Digest) -> bytes:
        """A manifest that is here. Raises StoreError."""
        return await self._leg.run(lambda: self._read(digest))

    def _read(self, digest: Digest) -> bytes:
        blob = self._blobs.open(digest)
        if blob is None:
            raise StoreError(f"{digest} was evicted while it was wanted")
        try:
            if blob.size > MAX_SIZE:
                raise StoreError(f"{digest} has {blob.size} bytes: that is no manifest")
            return os.pread(blob.fileno(), blob.size, 0)
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be read: {error.strerror}") from error
        finally:
            blob.close()

    async def hold(self, place: Place, link: Link) -> None:
        """Record that a repository holds a content, and that it is here by the operator's will. Raises StoreError."""
        link = replace(link, origin=Origin.SYNCED)
        await self._leg.run(lambda: self._links.hold(place.registry.name, place.repository, link))

    async def keep(self, place: Place, media_type: str, content: bytes) -> Link:
        """Take in a manifest that is at hand. Raises StoreError."""
        link = Link(Digest.of(content), media_type, len(content), Origin.SYNCED)
        await self._leg.run(lambda: self._spool.keep(link.digest, Head(link.size, media_type), content))
        await self.hold(place, link)
        return link

    async def bring(self, place: Place, what: Descriptor, room: str, note: Callable[[int], None]) -> bool:
        """See to it that a content is here and linked; whether it was not here before. `note` is told how many
        bytes of it are here while it comes.

        Raises MitmCacheError.
        """
        held = self._links.holds(place.registry.name, place.repository, what.digest)
        if self._blobs.renew(what.digest):
            if held is None:
                held = await self._prove(place, what, room)
            if held.origin is not Origin.SYNCED:
                await self.hold(place, held)
            return False
        call = self._asking.call(place.registry, place.repository, f"{room}/{what.digest}")
        return await self._asking.insist(place.registry, lambda: self._fetch(place, what, room, call, note))

    async def _prove(self, place: Place, what: Descriptor, room: str) -> Link:
        """What is here may be another repository's: that this one holds it too, upstream alone can say."""
        call = self._asking.call(place.registry, place.repository, f"{room}/{what.digest}", method="HEAD")
        answer = await self._asking.prove(call)
        if not 200 <= answer.status < 400:
            raise refused(call, answer, f"{place}@{what.digest}")
        told = answer.headers.get("content-type") if answer.ok else None
        media_type = (told or what.media_type) if room == MANIFESTS else OCTETS
        return Link(what.digest, media_type, what.size)

    async def _fetch(self, place: Place, what: Descriptor, room: str, call: Call, note: Callable[[int], None]) -> bool:
        known = self._links.holds(place.registry.name, place.repository, what.digest)

        async def ask() -> None:
            nonlocal known
            known = known or await self._prove(place, what, room)

        def landed(link: Link) -> None:
            self._links.hold(place.registry.name, place.repository, replace(link, origin=Origin.SYNCED))

        def fetch(start: int, sink: Sink) -> Answer:
            ranged = call.headers + Headers([("Range", f"bytes={start}-")]) if start else call.headers
            return self._leg.client.stream(replace(call, headers=ranged), sink)

        supply = Supply(fetch, landed, place.registry.name, MAX_SIZE if room == MANIFESTS else None)
        try:
            boarding = await self._leg.board(what.digest, supply, ask)
        except Refused as refusal:
            raise refused(call, refusal.answer, f"{place}@{what.digest}") from refusal
        except Uncacheable as error:
            raise Denied(f"{place}@{what.digest} is a manifest of schema 1, which is not cached") from error
        except Hopeless as error:
            raise Denied(error.message) from error
        if isinstance(boarding, Landed):
            size = boarding.blob.size
            boarding.blob.close()
            note(size)  # it was not here a moment ago: it came for another repository
            assert known is not None, "nothing is given that was not asked for"
            await self.hold(place, replace(known, size=size))
            return False
        passenger = boarding.passenger
        try:
            head = passenger.head
            await _ride(passenger, head.size, note)
        finally:
            passenger.close()
        await self._land(what.digest)
        held = self._links.holds(place.registry.name, place.repository, what.digest)
        if held is None or held.origin is not Origin.SYNCED:  # it came by somebody else's request
            media_type = (head.media_type or (known or held or what).media_type) if room == MANIFESTS else OCTETS
            await self.hold(place, Link(what.digest, media_type, head.size))
        return True

    async def _land(self, digest: Digest) -> None:
        """Content is proven a moment before it has its place, and its writer may be another process."""
        give_up = time.monotonic() + PATIENCE
        while not self.has(digest):
            if time.monotonic() > give_up:
                raise UpstreamError(f"{digest} was fetched, and did not come into the store")
            await asyncio.sleep(RETRY_SECONDS)


async def _ride(passenger: Passenger | Bypass, size: int, note: Callable[[int], None]) -> None:
    """Wait until all of it is here and proven. Raises StoreError where the disk does not take it."""
    position = -1
    while position < size:
        if passenger.reason:
            raise StoreError(f"the disk does not take it: {passenger.reason}")
        reached = await passenger.readable(max(position, 0), size)
        note(reached)
        position = reached
