"""What the cache has of an image, for an export: read from the files alone, whether the service runs or not."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mitm_cache.cache.entry import Link
from mitm_cache.cache.survey import Survey
from mitm_cache.errors import ClientError, IntegrityError, StoreError
from mitm_cache.exchange.inventory import Missing
from mitm_cache.oci.contents import Contents
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.image import Image
from mitm_cache.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, is_foreign, media_type_of
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.oci.referring import Referrer

MANIFESTS = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST})
MAX_DEPTH = 4
"""Indexes within indexes."""
CHUNK = 1 << 20
_OF_DIGEST = re.compile(r"(sha256|sha512)-([0-9a-f]+)(?:\.[a-z]+)?")


@dataclass(slots=True)
class Walked:
    """What belongs to a manifest: `pieces` that are here, with their sizes in bytes, and what is `missing`.

    `whole`: whether somebody could run it: all of an image is here, or of one of an index's images.
    """

    whole: bool
    pieces: dict[Digest, int] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)


class Shelf:
    """A data directory. Its methods raise StoreError."""

    def __init__(self, data_dir: Path) -> None:
        self._survey = Survey(data_dir)
        self._root = data_dir
        self._referring: dict[tuple[str, Repository], dict[Digest, list[Referrer]]] = {}
        self._tagging: dict[tuple[str, Repository], dict[tuple[str, str], list[Tag]]] = {}

    def repositories(self) -> Iterator[tuple[str, Repository]]:
        """Each registry and repository of which something is known."""
        links = self._root / "links"
        for root, folders, _ in os.walk(links):
            if "_digests" in folders:
                registry, _, name = str(Path(root).relative_to(links)).partition("/")
                yield registry, Repository.parse(name)
            folders[:] = sorted(folder for folder in folders if not folder.startswith(("_", ".")))

    def tags(self, registry: str, repository: Repository) -> list[Tag]:
        """The tags that are known of a repository."""
        found = []
        for path in sorted(_listed(self._root / "links" / registry / str(repository) / "_tags")):
            try:
                found.append(Tag.parse(path.name))
            except ClientError:
                continue
        return found

    def resolve(self, image: Image) -> Link | None:
        """What an image is by its name: of a tag the latest whose manifest is here; None where it is not here."""
        if isinstance(image.reference, Digest):
            link = self._survey.holds(image.registry, image.repository, image.reference)
            kept = self._survey.kept(image.reference) if link is not None else None
            return Link(link.digest, link.media_type, kept.size) if link is not None and kept is not None else None
        for tagged in self._survey.tagged(image.registry, image.repository, image.reference):
            kept = self._survey.kept(tagged.digest)
            if kept is not None and tagged.media_type:
                return Link(tagged.digest, tagged.media_type, kept.size)
        return None

    def images(self) -> Iterator[Image]:
        """Every image that is here: by its tags, and by its digest where no tag leads to it."""
        for registry, repository in self.repositories():
            reached: set[Digest] = set()
            for tag in self.tags(registry, repository):
                image = Image(registry, repository, tag)
                if (link := self.resolve(image)) is not None:
                    reached |= self.walk(image, link.digest).pieces.keys()
                    yield image
            held = list(self.manifests(registry, repository))
            walked = {link.digest: self.walk(Image(registry, repository, link.digest), link.digest) for link in held}
            reached |= {one for digest, each in walked.items() for one in each.pieces if one != digest}
            reached |= {one.digest for found in self._subjects(registry, repository).values() for one in found}
            for link in held:
                if link.digest not in reached:
                    yield Image(registry, repository, link.digest)

    def manifests(self, registry: str, repository: Repository) -> Iterator[Link]:
        """The manifests and indexes that a repository holds and that are here."""
        for path in sorted(_listed(self._root / "links" / registry / str(repository) / "_digests")):
            try:
                digest = Digest.parse(path.name.replace("-", ":", 1))
            except ClientError:
                continue
            link = self._survey.holds(registry, repository, digest)
            kept = self._survey.kept(digest) if link is not None else None
            if link is not None and kept is not None and media_type_of(link.media_type) in MANIFESTS:
                yield Link(digest, link.media_type, kept.size)

    def walk(self, image: Image, digest: Digest, *, platform: str = "", depth: int = MAX_DEPTH) -> Walked:
        """All that belongs to a manifest of an image. Of an index's images, those that are whole."""
        content, kept = self._survey.manifest(digest), self._survey.kept(digest)
        if content is None or kept is None:
            return Walked(False, missing=[Missing(str(image), digest, platform)])
        found = Contents.of(content)
        result = Walked(True, {digest: kept.size})
        for blob in found.blobs:
            here = self._survey.kept(blob.digest)
            if here is not None:
                result.pieces[blob.digest] = here.size
            elif not is_foreign(blob.media_type):
                result.missing.append(Missing(str(image), blob.digest, platform))
        result.whole = not result.missing
        if found.manifests and depth:
            children = [self.walk(image, one.digest, platform=one.platform, depth=depth - 1) for one in found.manifests]
            result.whole = any(child.whole for child in children)
            for child in children:
                result.missing += child.missing
                result.pieces |= child.pieces if child.whole else {}
        return result

    def referrers(self, registry: str, repository: Repository, about: set[Digest]) -> Iterator[Referrer]:
        """What refers to these manifests, and to what refers to them."""
        waiting, seen = sorted(about), set(about)
        while waiting:
            for one in self._subjects(registry, repository).get(waiting.pop(), ()):
                if one.digest not in seen:
                    seen.add(one.digest)
                    waiting.append(one.digest)
                    yield one

    def tags_about(self, registry: str, repository: Repository, about: set[Digest]) -> Iterator[Tag]:
        """Tags by which older tools refer to these manifests, as in sha256-….sig."""
        key = registry, repository
        if key not in self._tagging:  # of ten thousand images one repository may have all
            self._tagging[key] = {}
            for tag in self.tags(registry, repository):
                if found := _OF_DIGEST.fullmatch(tag.name):
                    self._tagging[key].setdefault((found[1], found[2]), []).append(tag)
        for one in sorted(about):
            yield from self._tagging[key].get((one.algorithm, one.hex), ())

    def _subjects(self, registry: str, repository: Repository) -> dict[Digest, list[Referrer]]:
        key = registry, repository
        if key not in self._referring:
            self._referring[key] = {}
            for link in self.manifests(registry, repository):
                content = self._survey.manifest(link.digest)
                one = Referrer.of(content, link.digest, link.media_type) if content is not None else None
                if one is not None:
                    self._referring[key].setdefault(one.subject, []).append(one)
        return self._referring[key]

    def content(self, digest: Digest, size: int) -> Iterator[bytes]:
        """A blob's bytes, a MiB at a time, hashed on the way. Raises IntegrityError at its end where it is damaged."""
        path = self._root / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex
        state, seen = hashlib.new(digest.algorithm), 0
        try:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    seen += len(chunk)
                    state.update(chunk)
                    if seen > size:
                        break
                    yield chunk
        except FileNotFoundError:
            raise StoreError(f"{digest} was evicted while it was exported; export it again") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
        if seen != size or state.hexdigest() != digest.hex:
            raise IntegrityError(f"the cached {digest} is damaged: run mitm-cache verify --repair, and pull it again")


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from error
