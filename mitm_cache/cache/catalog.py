"""Every image that is kept, and what each of them needs: read from the files alone, whether the service runs or not.

An image is a manifest or an index under a name: a tag, or its digest where no tag of the repository is it and no
index there lists it. What a manifest needs is itself, the manifests it lists, and their configurations and layers.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.outlines import Outline, Outlines
from mitm_cache.cache.presence import Presence
from mitm_cache.cache.survey import Survey
from mitm_cache.cache.tree import Place, Tagging, read_link, read_place, read_places, read_tags
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.contents import Descriptor
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, media_type_of
from mitm_cache.oci.reference import Reference, Repository, Tag

MANIFESTS = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST})
MAX_DEPTH = 3
"""An index may list indexes, which clients follow no further than this."""
FEW = 16
"""Repositories that are looked up in the index one by one; of more all of it is read at once."""
UNTOLD = "unknown/unknown"
"""The platform that builders give to what is no image, such as an attestation."""


@dataclass(frozen=True, slots=True)
class Cached:
    """One image; `tag` is None where no tag of its repository is it."""

    registry: str
    repository: Repository
    tag: Tag | None
    digest: Digest
    origin: Origin
    pinned: bool

    @property
    def place(self) -> str:
        """Its registry and repository."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return f"{self.place}@{self.digest}" if self.tag is None else f"{self.place}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Part:
    """One platform's image: how many of the blobs that its manifest refers to are here; None of how many where the
    manifest is not here itself."""

    manifest: Descriptor
    here: int = 0
    blobs: int | None = None

    @property
    def complete(self) -> bool:
        return self.here == self.blobs


class Catalog:
    """A data directory at one moment; reading it raises StoreError where it may not be read."""

    def __init__(self, root: Path, *, only: Collection[str] | None = None) -> None:
        """`only`: the repositories that are read, each by its name with the registry; None for all. What others need
        is not known then."""
        layout = Layout(root, "")
        self._links = layout.links
        self._only = only
        self._survey = Survey(root)
        self._outlines = Outlines(layout.index, self._survey)
        self._needs: dict[Digest, tuple[Digest, ...]] = {}
        self._parts: dict[Digest, tuple[Part, ...]] = {}
        # Blobs come last: of an image that arrives meanwhile its manifest comes before its layers.
        if only is None:
            places = list(read_places(self._links))
            self._confirm({place.name: place for place in places}, "tag:")
            self.blobs = Presence(self._survey, list(Blobs(layout.blobs).names()))
        else:
            places = list(self._places(only))
            self.blobs = Presence(self._survey, None)
        self.places = {place.name: place for place in places}
        self._of = {name: list(self._images(place)) for name, place in self.places.items()}
        self.images = self._sorted()

    def renew(self, names: Collection[str]) -> None:
        """Bring it up to date where that matters to who removes something from these repositories: they are read
        again, with their blobs, and so are others where what they hold is not what it was."""
        self._renew(lambda place: None if place.name in names else place.names)

    def forget(self, images: Collection[Cached], links: Iterable[str]) -> None:
        """Bring it up to date after these images have left it, and these links their repositories: those that hold
        anything else than what that leaves, or have a tag more, are read again, with their blobs."""
        gone, left, tagged = set(images), defaultdict[str, set[str]](set), set[str]()
        for link in links:
            name, _, file = link.partition("/_digests/")
            left[name].add(file)
        for name in {image.place for image in gone}:
            self._of[name] = [image for image in self._of[name] if image not in gone]
            if not read_tags(self._links, name) <= {str(each.tag) for each in self.places[name].taggings}:
                tagged.add(name)  # maybe with what leaves by another name
        self._renew(lambda place: None if place.name in tagged else place.names - left.get(place.name, set()))

    def _renew(self, expected: Callable[[Place], frozenset[str] | None]) -> None:
        """Read those repositories again that do not hold what is expected of them, by the names of files."""
        old = self.places

        def known(name: str, held: frozenset[str]) -> Place | None:
            place = old.get(name)
            return place if place is not None and expected(place) == held else None

        if self._only is None:
            places = {place.name: place for place in read_places(self._links, known)}
            again = {name: place for name, place in places.items() if old.get(name) is not place}
            for prefix in ["tag:"] if len(again) > FEW else [f"tag:{name}:" for name in again]:
                self._confirm(again, prefix)
        else:
            places = again = {place.name: place for place in self._places(self._only)}
        for place in again.values():
            self._look_again(place)
        self.places = places
        self._of = {
            name: list(self._images(place)) if name in again else self._of[name] for name, place in places.items()
        }
        self.images = self._sorted()
        self.__dict__.pop("_sharers", None)

    def _places(self, names: Collection[str]) -> Iterator[Place]:
        for name in names:
            place = read_place(self._links, name)
            if place is not None:
                self._confirm({name: place}, f"tag:{name}:")
                yield place

    def _look_again(self, place: Place) -> None:
        """What a repository holds, and what its images need, may have come or left: manifests above all, and when
        they were last used. That others have left is seen when they are to be removed."""
        needed = self.needed_by(self._of.get(place.name, ()))
        for digest in {*place.held, *needed, *(each.link.digest for each in place.taggings)}:
            was = digest in self.blobs
            if (not was or digest in self._outlines) and was is not self.blobs.look(digest):
                self._needs, self._parts = {}, {}  # it may be a manifest

    def save(self) -> None:
        """Keep what has been read of manifests for the next one who wants a catalog, where this process may."""
        if self._only is None:
            self._outlines.save(self.blobs)

    def _sorted(self) -> list[Cached]:
        images = [image for images in self._of.values() for image in images]
        return sorted(images, key=lambda image: (image.place, str(image.tag or ""), image.digest))

    def _confirm(self, places: Mapping[str, Place], prefix: str) -> None:
        """What upstream said last is nearer than what was served last; the index may have it, and may be lost."""
        for key, text in self._survey.rows(prefix):
            name, _, accept = key.removeprefix("tag:").partition(" ")
            repository, _, tag = name.rpartition(":")
            place = places.get(repository)
            if place is not None:
                try:
                    link = Link.from_json(text.partition(" ")[2])
                    place.taggings.append(Tagging(Tag.parse(tag), accept, link, confirmed=True))
                except (ClientError, StoreError):
                    continue  # damaged

    def _images(self, place: Place) -> Iterator[Cached]:
        tagged = {(tag, link.digest): link for (tag, _), link in self.current(place).items()}
        for (tag, digest), link in tagged.items():
            yield self._image(place, tag, link, pins=(tag, digest))
        named = {digest for _, digest in tagged}
        for pin, known in place.pins.items():
            if known is not None and known not in named and not (isinstance(pin, Tag) and self._has(tagged, pin)):
                held = read_link(self._links, place, known)
                origin = held.origin if held is not None else Origin.PULLED
                name = pin if isinstance(pin, Tag) else None
                yield Cached(place.registry, place.repository, name, known, origin, pinned=True)
                named.add(known)
        below = {digest for each in named for digest in self.needs(each)}
        others: dict[Digest, Link] = {}
        for digest in place.held - below:
            if digest in self.blobs:
                held = read_link(self._links, place, digest)
                if held is not None and media_type_of(held.media_type) in MANIFESTS:
                    others[digest] = held
        listed = {digest for each in others for digest in self.needs(each) if digest != each}
        for digest, link in others.items():
            if digest not in listed:
                yield self._image(place, None, link, pins=(digest,))

    def current(self, place: Place) -> dict[tuple[Tag, str], Link]:
        """What each tag is for each kind of clients: the last of what is here."""
        return {(each.tag, each.accept): each.link for each in place.taggings if each.link.digest in self.blobs}

    @staticmethod
    def _has(tagged: Iterable[tuple[Tag, Digest]], tag: Tag) -> bool:
        return any(each == tag for each, _ in tagged)

    def _image(self, place: Place, tag: Tag | None, link: Link, *, pins: tuple[Reference, ...]) -> Cached:
        origin = link.origin
        if origin is Origin.PULLED and tag is not None:
            # A tag that upstream has confirmed since does not say any more how its content came.
            held = read_link(self._links, place, link.digest)
            origin = held.origin if held is not None else origin
        pinned = any(pin in place.pins for pin in pins)
        return Cached(place.registry, place.repository, tag, link.digest, origin, pinned)

    def outline(self, digest: Digest) -> Outline | None:
        """What a manifest refers to; None where it is not here."""
        return None if digest not in self.blobs else self._outlines.of(digest)

    def needs(self, digest: Digest) -> tuple[Digest, ...]:
        """All that an image needs, here or not, what refers before what is referred to."""
        found = self._needs.get(digest)
        if found is None:
            levels = list(self._levels(digest))
            found = self._needs[digest] = tuple(dict.fromkeys(each for level in levels for each in level))
        return found

    def _levels(self, digest: Digest) -> Iterator[list[Digest]]:
        level, blobs = [digest], []
        for _ in range(MAX_DEPTH + 1):
            yield level
            outlines = [found for each in level if (found := self.outline(each)) is not None]
            blobs += [blob for found in outlines for blob in found.blobs]
            level = [child for found in outlines for child, _ in found.children]
            if not level:
                break
        yield blobs

    def manifests(self) -> list[Digest]:
        """Every manifest and index that is here and that an image is, or lists."""
        found: dict[Digest, None] = {}
        waiting = [image.digest for image in self.images]
        for _ in range(MAX_DEPTH + 1):
            here = {each: outline for each in waiting if each not in found and (outline := self.outline(each))}
            found |= dict.fromkeys(here)
            waiting = [child for outline in here.values() for child, _ in outline.children]
        return list(found)

    def needed_by(self, images: Iterable[Cached]) -> set[Digest]:
        """All that these images need, here or not."""
        return {each for digest in {image.digest for image in images} for each in self.needs(digest)}

    def parts(self, image: Cached) -> tuple[Part, ...]:
        """The platforms of an image."""
        found = self._parts.get(image.digest)
        if found is None:
            found = self._parts[image.digest] = tuple(self._parts_of(Descriptor(image.digest, 0), MAX_DEPTH))
        return found

    def _parts_of(self, manifest: Descriptor, depth: int) -> Iterator[Part]:
        outline = self.outline(manifest.digest)
        if outline is not None and outline.children and depth:
            for child, platform in outline.children:
                yield from self._parts_of(Descriptor(child, 0, platform=platform), depth - 1)
        elif outline is None:
            yield Part(manifest)
        else:
            here = sum(blob in self.blobs for blob in outline.blobs)
            elsewhere = sum(blob not in self.blobs for blob in outline.foreign)
            yield Part(manifest, here, len(outline.blobs) - elsewhere)

    def platform(self, part: Part) -> str:
        """Such as linux/arm64; what is told by no index is told by the configuration, if that is here; else ""."""
        if part.manifest.platform:
            return "" if part.manifest.platform == UNTOLD else part.manifest.platform
        outline = self.outline(part.manifest.digest)
        if outline is None or outline.config is None or outline.config not in self.blobs:
            return ""
        return self._outlines.platform(outline)

    def is_complete(self, image: Cached) -> bool:
        """Whether at least one platform of an image is here, and every one whose manifest is here is here whole."""
        known = [part for part in self.parts(image) if part.blobs is not None]
        return bool(known) and all(part.complete for part in known)

    def used(self, image: Cached) -> float | None:
        """When it was last pulled, in seconds of the epoch and good to an hour; None where nothing of it is here."""
        manifests = (image.digest, *(part.manifest.digest for part in self.parts(image)))
        return max((kept.used for digest in manifests if (kept := self.blobs.get(digest)) is not None), default=None)

    @cached_property
    def _sharers(self) -> Counter[Digest]:
        return Counter(each for image in self.images for each in self.needs(image.digest))

    def sizes(self, image: Cached) -> tuple[int, int]:
        """Bytes of it that are here: those that no other image needs, and those that it shares."""
        own = shared = 0
        for digest in self.needs(image.digest):
            kept = self.blobs.get(digest)
            if kept is not None and self._sharers[digest] > 1:
                shared += kept.size
            elif kept is not None:
                own += kept.size
        return own, shared
