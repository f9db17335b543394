"""The tree of links as it stands on the disk, read in one pass: names where they say enough, files where they do not.

Nothing is made or changed; what is damaged, or being written, is passed over.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.pins import FOLDER, read_pins
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Reference, Repository, Tag


@dataclass(frozen=True, slots=True)
class Tagging:
    """What a tag is for clients that take some types of manifests, those of the `accept` key."""

    tag: Tag
    accept: str
    link: Link


@dataclass(slots=True)
class Place:
    """What one repository of one registry has: its taggings, the digests it holds, and its pins."""

    registry: str
    repository: Repository
    taggings: list[Tagging] = field(default_factory=list)
    held: set[Digest] = field(default_factory=set)
    pins: dict[Reference, Digest | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`registry/repository`, which is also its folder."""
        return f"{self.registry}/{self.repository}"


def read_places(folder: Path) -> Iterator[Place]:
    """Every repository below the folder of links. Raises StoreError where it may not be read."""
    for registry in _folders(folder):
        for path, names in _walk(folder / registry):
            try:
                repository = Repository.parse(str(path.relative_to(folder / registry)))
            except ClientError:
                continue  # a stray folder
            place = Place(registry, repository)
            if "_digests" in names:
                place.held = set(_digests(path / "_digests"))
            if "_tags" in names:
                place.taggings = list(_taggings(path / "_tags"))
            if FOLDER in names:
                place.pins = read_pins(path / FOLDER)
            yield place


def read_link(folder: Path, place: Place, digest: Digest) -> Link | None:
    """The link by which a repository holds a digest."""
    return _link(f"{folder}/{place.name}/_digests/{digest.filename}")


def read_names(folder: Path, prefix: str) -> Iterator[str]:
    """The names `registry/repository:tag` that begin with `prefix`; files are not opened."""
    try:
        for registry in _folders(folder):
            for path, names in _walk(folder / registry):
                name = str(path.relative_to(folder))
                short = min(len(name), len(prefix))
                if "_tags" in names and name[:short] == prefix[:short]:
                    for tag in _folders(path / "_tags"):
                        if f"{name}:{tag}".startswith(prefix):
                            yield f"{name}:{tag}"
    except StoreError:
        return


def _walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders that are a repository's, with the names of what is in them that begins with an underscore."""
    waiting = [root]
    while waiting:
        path = waiting.pop()
        names = _folders(path)
        own = {name for name in names if name.startswith("_")}
        if own and path != root:
            yield path, own
        waiting += [path / name for name in reversed(names) if name not in own]


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _digests(folder: Path) -> Iterator[Digest]:
    try:
        names = os.listdir(folder)
    except OSError:
        return  # forgotten meanwhile
    for name in names:
        try:
            yield Digest.parse(name.replace("-", ":", 1))
        except ClientError:
            continue  # a draft, or a stray file


def _taggings(folder: Path) -> Iterator[Tagging]:
    for name in _folders(folder):
        yield from _taggings_of(folder, name)


def _taggings_of(folder: Path, name: str) -> Iterator[Tagging]:
    try:
        tag = Tag.parse(name)
        keys = os.listdir(folder / name)
    except (ClientError, OSError):
        return  # a stray folder, or forgotten meanwhile
    for key in keys:
        if not key.startswith(".") and (link := _link(f"{folder}/{name}/{key}")) is not None:
            yield Tagging(tag, key, link)


def _link(path: str) -> Link | None:
    try:
        with open(path, errors="replace") as file:
            return Link.from_json(file.read())
    except (FileNotFoundError, NotADirectoryError, StoreError):
        return None  # forgotten meanwhile, or damaged
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


@dataclass(slots=True)
class Tally:
    """How many tags have something here, by how it came, and how many pins there are."""

    origins: Counter[Origin] = field(default_factory=Counter)
    pinned: int = 0


def count_tags(root: Path, *, seconds: float) -> Tally | None:
    """Count what is in a data directory; None where that would take longer. Raises StoreError."""
    folder, blobs = root / "links", Blobs(root / "blobs")
    tally, end = Tally(), time.monotonic() + seconds
    for registry in _folders(folder):
        for path, names in _walk(folder / registry):
            if FOLDER in names:
                tally.pinned += len(read_pins(path / FOLDER))
            for tag in _folders(path / "_tags") if "_tags" in names else ():
                if time.monotonic() > end:
                    return None
                tally.origins.update(_origin(path, tag, blobs))
    return tally


def _origin(path: Path, tag: str, blobs: Blobs) -> Iterator[Origin]:
    """How what a tag is came here, once; nothing where it is not here."""
    for tagging in _taggings_of(path / "_tags", tag):
        if blobs.has(tagging.link.digest):
            held = _link(f"{path}/_digests/{tagging.link.digest.filename}")
            yield held.origin if held is not None and tagging.link.origin is Origin.PULLED else tagging.link.origin
            return
