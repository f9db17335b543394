"""Removing images and what only they needed: planned on a catalog, then done beside a service that runs.

The catalog is read while others may sweep and pin. Only then nobody else may, and what could have changed the plan is
read again: the repositories that images leave from, and all in which something is held that was not before.

Names leave first, manifests next, then configurations and layers, so that a removal that is broken off leaves no image
by halves. A blob that was used within the last minutes stays: it may be part of a pull. Whoever reads one that leaves
keeps the file, and who asks for it later fetches it anew.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import batched

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.catalog import Cached, Catalog
from mitm_cache.cache.entry import Link
from mitm_cache.cache.evict import alone, is_old
from mitm_cache.cache.index import Index, NoIndex
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.links import Links
from mitm_cache.cache.owned import let_go, owned, removing
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.registries import LOCAL

BATCH = 500
"""So many keys at most leave the index at once: others that write to it wait."""
COARSE = 0.02
"""Seconds that the clock of files may be behind."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to leave: images, links by their place in the tree, keys of the index, and blobs with their bytes.

    `moved` are links of tags that stay, which are another image by now.
    """

    images: tuple[Cached, ...] = ()
    moved: dict[str, Link] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    blobs: dict[Digest, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(self.blobs.values())


@dataclass(slots=True)
class Removed:
    """What has left, and what was too young to leave, in numbers of blobs and bytes."""

    images: tuple[Cached, ...] = ()
    blobs: int = 0
    freed: int = 0
    young: int = 0
    young_bytes: int = 0


def plan(catalog: Catalog, leaving: Collection[Cached], *, strays: bool = False) -> Plan:
    """What leaves with these images; `strays`: blobs that no image needs leave too."""
    gone = set(leaving)
    staying = [image for image in catalog.images if image not in gone]
    needed = catalog.needed_by(staying)
    # In the order of leaving: what refers before what is referred to.
    candidates = [each for image in leaving for each in catalog.needs(image.digest)]
    candidates += [digest for digest in catalog.blobs if strays]
    needed |= _local(catalog, gone)
    blobs = {d: kept.size for d in candidates if d not in needed and (kept := catalog.blobs.get(d)) is not None}
    leaving_from, staying_in = _by_place(leaving), _by_place(staying)
    links: list[str] = []
    keys: list[str] = []
    moved: dict[str, Link] = {}
    for name, images in leaving_from.items():
        tagged = {(image.tag, image.digest) for image in images}
        current = catalog.current(catalog.places[name])
        for each in catalog.places[name].taggings:
            link, now = f"{name}/_tags/{each.tag}/{each.accept}", current.get((each.tag, each.accept))
            if now is not None and (each.tag, now.digest) in tagged:
                links.append(link)
                keys.append(f"tag:{name}:{each.tag} {each.accept}")
            elif (None, each.link.digest) in tagged and not each.confirmed:
                # The file still has what the tag was, as long as nobody has been given by tag what it is.
                if now is None:
                    links.append(link)
                else:
                    moved[link] = now
    for name, place in catalog.places.items():
        left = catalog.needed_by(leaving_from.get(name, ()))
        if left:
            left -= catalog.needed_by(staying_in.get(name, ()))
        links += [f"{name}/_digests/{d.filename}" for d in sorted({d for d in place.held if d in left or d in blobs})]
    return Plan(tuple(leaving), moved, tuple(dict.fromkeys(links)), tuple(dict.fromkeys(keys)), blobs)


def _by_place(images: Iterable[Cached]) -> dict[str, list[Cached]]:
    found: dict[str, list[Cached]] = {}
    for image in images:
        found.setdefault(image.place, []).append(image)
    return found


def _local(catalog: Catalog, gone: Collection[Cached]) -> set[Digest]:
    """What the local registry holds, needed or not: it looks after that itself, but for images that leave by name."""
    left = catalog.needed_by(image for image in gone if image.registry == LOCAL)
    return {d for place in catalog.places.values() if place.registry == LOCAL for d in place.held} - left


class Remover:
    """Removes from a data directory, which must be there. Its methods block on the disk and raise StoreError."""

    def __init__(self, layout: Layout, clock: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._blobs = Blobs(layout.blobs)
        self._clock = clock

    def remove(self, choose: Callable[[Catalog], Collection[Cached]], *, strays: bool = False) -> Removed:
        """Remove the images that `choose` picks from the catalog, and what only they needed.

        It picks twice: from the catalog as it is read, and from what that has become when nobody else may change it.
        """
        began = self._clock() - COARSE
        catalog = Catalog(self._layout.root)
        catalog.save()
        names = {image.place for image in choose(catalog)}
        with alone(self._layout.evicting, wait=True):
            catalog.renew(names)
            what = plan(catalog, choose(catalog), strays=strays)
            keys = self._forget(what, began) if what.links or what.keys or what.moved else []
            told, removed = self._drop(keys), Removed(what.images)
            if what.blobs:
                self._unlink_all(what, catalog, removed)
            if not told and not self._drop(keys):
                raise StoreError(f"it has left, but {self._layout.index} cannot be told: remove that, it is rebuilt")
            return removed

    def _unlink_all(self, what: Plan, catalog: Catalog, removed: Removed) -> None:
        """Remove the blobs, but for those that what has been pulled meanwhile needs."""
        catalog.forget(what.images, what.links)
        needed = catalog.needed_by(catalog.images)
        with removing(self._layout):
            needed |= owned(self._layout)
            for digest in what.blobs:
                if digest not in needed:
                    self._unlink(digest, removed)

    def preview(self, choose: Callable[[Catalog], Collection[Cached]], *, strays: bool = False) -> Removed:
        """What `remove` would do. Nothing is changed."""
        catalog = Catalog(self._layout.root)
        what = plan(catalog, choose(catalog), strays=strays)
        removed, now = Removed(what.images), self._clock()
        for digest, size in what.blobs.items():
            _count(removed, size, old=is_old(catalog.blobs[digest].used, now))
        return removed

    def _forget(self, what: Plan, began: float) -> list[str]:
        """Remove the names of what leaves. The keys that the index is to forget; where it is broken off, it has."""
        links, keys = Links(self._layout.links, NoIndex()), list(what.keys)
        try:
            with removing(self._layout):
                for name, link in what.moved.items():
                    keys.append(f"link:{name}")
                    links.replace(name, link)
                for name in what.links:
                    if not self._is_wanted(name, began):
                        keys.append(f"link:{name}")
                        links.remove(name)
        except BaseException:  # an interrupt too
            self._drop(keys)
            raise
        let_go(self._layout)
        return keys

    def _drop(self, keys: list[str]) -> bool:
        """Whether the index could be opened, which a full disk may not allow, or there was nothing to forget."""
        if not keys:
            return True
        try:
            index = Index(self._layout.index)
        except StoreError:
            return False
        try:
            for batch in batched(keys, BATCH):
                index.drop_all(batch)
        finally:
            index.close()
        return True

    def _is_wanted(self, name: str, began: float) -> bool:
        """Whether a push to the local registry has counted on a link since then."""
        try:
            return name.startswith(f"{LOCAL}/") and (self._layout.links / name).stat().st_mtime >= began
        except FileNotFoundError:
            return False

    def _unlink(self, digest: Digest, removed: Removed) -> None:
        path = self._blobs.path(digest)
        try:
            status = path.stat()
            old = is_old(status.st_mtime, self._clock())
            if old:
                path.unlink()
        except FileNotFoundError:
            return  # it has left by another way
        except OSError as error:
            raise StoreError(f"{path} cannot be removed: {error.strerror}") from error
        _count(removed, status.st_size, old=old)


def _count(removed: Removed, size: int, *, old: bool) -> None:
    if old:
        removed.blobs, removed.freed = removed.blobs + 1, removed.freed + size
    else:
        removed.young, removed.young_bytes = removed.young + 1, removed.young_bytes + size
