"""The tree of links as it stands on the disk, read in one pass: names where they say enough, files where they do not.

Nothing is made or changed; what is damaged, or being written, is passed over.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.pins import FOLDER, read_pins
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Reference, Repository, Tag


def _nothing(name: str, names: frozenset[str]) -> None:
    """Nothing is known of a repository."""


@dataclass(frozen=True, slots=True)
class Tagging:
    """What a tag is for clients that take some types of manifests, those of the `accept` key, by its file; or as
    upstream said last, by the index, where it is `confirmed`."""

    tag: Tag
    accept: str
    link: Link
    confirmed: bool = False


READERS = 8
"""Threads that read repositories."""
MAX_LINK = 64 << 10
"""Bytes of a link, which has a digest and a media type."""


@dataclass(slots=True)
class Place:
    """What one repository of one registry has: its taggings, the digests it holds, and its pins; `names` are those of
    the files by which it holds them, and `links` what was read of those."""

    registry: str
    repository: Repository
    taggings: list[Tagging] = field(default_factory=list)
    held: set[Digest] = field(default_factory=set)
    pins: dict[Reference, Digest | None] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    links: dict[Digest, Link | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`registry/repository`, which is also its folder."""
        return f"{self.registry}/{self.repository}"


def read_places(folder: Path, known: Callable[[str, frozenset[str]], Place | None] = _nothing) -> Iterator[Place]:
    """Every repository below the folder of links. Raises StoreError where it may not be read.

    `known` may give what is known of one, by its name and the names of the files by which it holds digests.
    """

    def read(registry: str, path: Path) -> Place | None:
        names = _names(path / "_digests")
        place = known(str(path.relative_to(folder)), names)
        return place if place is not None else _read_place(folder, registry, path, names)

    # Reading is waiting for the disk where the files have not been read for some time.
    with ThreadPoolExecutor(READERS, thread_name_prefix="links") as pool:
        paths = [(registry, path) for registry in _folders(folder) for path, _ in _walk(folder / registry)]
        yield from (place for place in pool.map(lambda each: read(*each), paths) if place is not None)


def read_place(folder: Path, name: str) -> Place | None:
    """One repository, by its name with the registry; None where there is none. Raises StoreError."""
    path = folder / name
    if not any(each.startswith("_") for each in _folders(path)):
        return None
    return _read_place(folder, name.partition("/")[0], path, _names(path / "_digests"))


def _read_place(folder: Path, registry: str, path: Path, names: frozenset[str]) -> Place | None:
    try:
        repository = Repository.parse(str(path.relative_to(folder / registry)))
    except ClientError:
        return None  # a stray folder
    place = Place(registry, repository, names=names)
    place.held = set(_digests_of(names))
    place.taggings = list(_taggings(path / "_tags"))
    place.pins = read_pins(path / FOLDER)
    for tagging in place.taggings:
        read_link(folder, place, tagging.link.digest)
    return place


def read_link(folder: Path, place: Place, digest: Digest) -> Link | None:
    """The link by which a repository holds a digest."""
    if digest not in place.links:
        place.links[digest] = _link(f"{folder}/{place.name}/_digests/{digest.filename}")
    return place.links[digest]


def read_tags(folder: Path, name: str) -> set[str]:
    """The tags that one repository has folders for, by its name with the registry. Raises StoreError."""
    return set(_folders(folder / name / "_tags"))


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
    return _digests_of(_names(folder))


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()  # forgotten meanwhile, or never there
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from error


def _digests_of(names: Iterable[str]) -> Iterator[Digest]:
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
        # Less than half of the time that a text file takes, and there is one for each tag at least.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, MAX_LINK)
        finally:
            os.close(fd)
        return Link.from_json(text.decode(errors="replace"))
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
