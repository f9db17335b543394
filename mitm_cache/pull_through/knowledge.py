"""What the cache knows, in the parts that it is kept in."""

from dataclasses import dataclass

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.confirmed import Confirmed
from mitm_cache.cache.heard import Heard
from mitm_cache.cache.index import Index
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.links import Links
from mitm_cache.cache.lists import Lists
from mitm_cache.cache.pushed import Pushed
from mitm_cache.cache.readers import Readers
from mitm_cache.rights import Verdicts


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Content, and what was said of it."""

    blobs: Blobs
    links: Links
    verdicts: Verdicts
    lists: Lists
    readers: Readers
    heard: Heard
    confirmed: Confirmed
    pushed: Pushed

    @classmethod
    def open(cls, layout: Layout, index: Index, verdicts: Verdicts) -> "Knowledge":
        """What is in a data directory."""
        return cls(
            blobs=Blobs(layout.blobs),
            links=Links(layout.links, index),
            verdicts=verdicts,
            lists=Lists(layout.links),
            readers=Readers(layout.links),
            heard=Heard(layout.links),
            confirmed=Confirmed(index),
            pushed=Pushed(index),
        )
