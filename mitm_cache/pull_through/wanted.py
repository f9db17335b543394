"""A tag as somebody wants it, and what the cache itself knows of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.freshness import Kept
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import Accept
from mitm_cache.oci.operation import Manifest
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.policy import Ruling
from mitm_cache.pull_through.knowledge import Knowledge
from mitm_cache.wire.message import Request


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request for a tag, by what matters about it."""

    request: Request
    repository: Repository
    tag: Tag
    accept: Accept
    ruling: Ruling
    at: float
    """When it was asked, in seconds of the epoch: what upstream says may be that old when it is heard."""

    @property
    def registry(self) -> str:
        return self.request.registry.name

    def by_digest(self, digest: Digest) -> Request:
        """The same request, once it is known what the tag is."""
        target = f"{self.request.target.partition('?')[0].rpartition('/')[0]}/{digest}"
        return replace(self.request, target=target, operation=Manifest(self.repository, digest))


class Memory:
    """What is known of tags: what they were, since when, and when upstream was last asked."""

    def __init__(self, known: Knowledge, clock: Callable[[], float] = time.time) -> None:
        self._blobs = known.blobs
        self._links = known.links
        self._confirmed = known.confirmed
        self._heard = known.heard
        self._pushed = known.pushed
        self._clock = clock

    def now(self) -> float:
        """The time, as everything here is counted from it."""
        return self._clock()

    def last(self, wanted: Wanted) -> Link | None:
        """What the tag was when content was last served for it, here or not."""
        return self._links.tagged(wanted.registry, wanted.repository, wanted.tag, wanted.accept)

    def kept(self, wanted: Wanted) -> Kept | None:
        """The latest that the tag is known to have been and whose bytes are here."""
        registry, repository, tag = wanted.registry, wanted.repository, wanted.tag
        said = self._confirmed.find(registry, repository, tag, wanted.accept)
        if (
            said is not None
            and self._blobs.has(said[0].digest)
            and not self._pushed.since(registry, repository, tag, said[1])
        ):
            return Kept(*said)
        link = self.last(wanted)
        if link is not None and self._blobs.has(link.digest):
            return Kept(link, None)
        # What other clients were given may do, if this one takes it: it matters only while upstream is away.
        others = self._links.told(registry, repository, tag)
        usable = (link for link in others if wanted.accept.takes(link.media_type) and self._blobs.has(link.digest))
        return next((Kept(link, None) for link in usable), None)

    def given(self, wanted: Wanted) -> Kept | None:
        """What the operator has put here of a tag (synced, imported), where this client takes it and its bytes are
        here. Blocks on the disk."""
        registry, repository, tag = wanted.registry, wanted.repository, wanted.tag
        for link in self._links.told(registry, repository, tag):
            held = self._links.holds(registry, repository, link.digest)
            given = held is not None and held.origin is not Origin.PULLED
            if given and wanted.accept.takes(link.media_type) and self._blobs.has(link.digest):
                at = self._links.given_at(registry, repository, tag)
                return Kept(link, None if at is None else max(0.0, self._clock() - at))
        return None

    def confirm(self, wanted: Wanted, link: Link, *, served: bool) -> None:
        """Record that upstream has just said what the tag is. Blocks on the disk; raises StoreError.

        The file that outlives the index goes on naming what is here, until what is new is served.
        """
        self._confirmed.keep(wanted.registry, wanted.repository, wanted.tag, wanted.accept, link, wanted.at)
        last = self.last(wanted)
        if link != last and (served or last is None or not self._blobs.has(last.digest)):
            self._links.tag(wanted.registry, wanted.repository, wanted.tag, wanted.accept, link)

    def youth(self, wanted: Wanted, link: Link) -> str:
        """From when on policy lets the tag be that digest; "" where it is old enough. Blocks on the disk."""
        registry, repository, tag = wanted.registry, wanted.repository, wanted.tag
        known = self._links.tagged_at(registry, repository, tag, wanted.accept) if link == self.last(wanted) else None
        age = self._heard.age(registry, repository, tag, link.digest, known)
        if age >= wanted.ruling.min_age:
            return ""
        return f"{datetime.fromtimestamp(self._clock() + wanted.ruling.min_age - age, UTC):%Y-%m-%d %H:%M:%S} UTC"
