"""Collecting what nobody needs: content of a repository that no manifest there refers to, what was deleted, uploads
that were given up. Where room is wanted, manifests without a name leave too, the longest unused first.

It is planned beside the pushes, on what the files say. What is to leave is looked at once more while nobody links
anything, and has to be as old as it was: whoever counts on a content renews its link first.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mitm_cache.cache.evict import ABANDONED_SECONDS, alone, is_old
from mitm_cache.cache.owned import held, let_go, owned, registries, removing, repositories
from mitm_cache.cache.tree import Place, read_link, read_place
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.local.manifests import MANIFESTS
from mitm_cache.local.store import DELETED, PUT_ASIDE, REFERRERS, Store
from mitm_cache.local.uploads import drop
from mitm_cache.oci.contents import Contents
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import media_type_of
from mitm_cache.oci.referring import Referrer
from mitm_cache.registries import LOCAL

GRACE_SECONDS = 3600.0
"""A content that no manifest needs stays for so long: the manifest may be on its way."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Collected:
    """What has left, in numbers and bytes."""

    links: int = 0
    blobs: int = 0
    freed: int = 0
    uploads: int = 0


@dataclass(slots=True)
class _Repository:
    """What one repository holds, and what each of its manifests needs there; `whole`: all of these can be read."""

    place: Place
    needs: dict[Digest, frozenset[Digest]] = field(default_factory=dict)
    subjects: dict[Digest, Digest] = field(default_factory=dict)
    whole: bool = True

    def named(self) -> set[Digest]:
        """The manifests that a tag or a pin is, those they list, and those that are about any of them."""
        found: set[Digest] = set()
        waiting = [each.link.digest for each in self.place.taggings]
        waiting += [digest for digest in self.place.pins.values() if digest is not None]
        about: dict[Digest, list[Digest]] = {}
        for digest, subject in self.subjects.items():
            about.setdefault(subject, []).append(digest)
        while waiting:
            digest = waiting.pop()
            if digest not in found and digest in self.needs:
                found.add(digest)
                waiting += [*self.needs[digest], *about.get(digest, ())]
        return found

    def unneeded(self) -> set[Digest]:
        """What it holds that is no manifest, and that no manifest needs."""
        if not self.whole:
            return set()  # nobody can say what the damaged one needs
        return self.place.held - self.needs.keys() - {each for needs in self.needs.values() for each in needs}


class Collection:
    """Collects in a data directory, one at a time; blocks on the disk. Raises StoreError and OSError."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._layout = store.layout
        self._clock = clock

    def collect(self) -> Collected | None:
        """Remove what no manifest needs, and what was deleted or given up. None while another process removes."""
        with alone(self._layout.evicting) as free:
            collected = self._collect() if free else None
        if collected is not None and (collected.links or collected.uploads):
            let_go(self._layout)
        return collected

    def make_room(self, wanted: int) -> Collected:
        """The same, uploads of the last hour excepted, and manifests without a name, until `wanted` bytes are free or
        none is left."""
        with alone(self._layout.evicting, wait=True):
            collected = self._collect(abandoned=GRACE_SECONDS)
            for repository, digest in self._nameless():
                if collected.freed >= wanted:
                    break
                # One that is being pulled stays, and its layers with it.
                self._remove(repository.place, {digest}, collected)
                if digest not in repository.place.held:
                    needs = repository.needs.pop(digest)
                    self._remove(repository.place, repository.unneeded() & needs, collected)
            return collected

    def nameless(self) -> set[tuple[str, Digest]]:
        """The manifests that no tag leads to, each with its repository's place; those of the last hour may get one."""
        found = self._nameless()
        return {(each.place.name, digest) for each, digest in found if self._is_old(each.place, digest)}

    def _collect(self, *, abandoned: float = ABANDONED_SECONDS) -> Collected:
        """`abandoned`: seconds after which an upload is given up."""
        collected = Collected()
        self._drop_uploads(collected, abandoned)
        for repository in self._repositories():
            leaving = repository.unneeded()
            # A manifest whose writer was killed before its bytes were in place.
            leaving |= {each for each in repository.needs.keys() - repository.named() if not self._is_here(each)}
            self._remove(repository.place, leaving, collected)
            self._tidy(repository.place, collected)
        if collected.links or collected.uploads:
            logger.info(
                "collected %d links, %d blobs of %d bytes and %d uploads of the local registry",
                collected.links, collected.blobs, collected.freed, collected.uploads,
            )  # fmt: skip
        return collected

    def _is_here(self, digest: Digest) -> bool:
        return self._store.blobs.has(digest)

    def _repositories(self) -> Iterator[_Repository]:
        for name in sorted(repositories(self._layout, LOCAL)):
            place = read_place(self._layout.links, f"{LOCAL}/{name}")
            if place is None:
                continue  # gone meanwhile
            repository = _Repository(place)
            for digest in place.held:
                link = read_link(self._layout.links, place, digest)
                if link is None:
                    repository.whole = False  # damaged, or just deleted
                elif media_type_of(link.media_type) in MANIFESTS:
                    self._read(repository, digest, link.media_type)
            lost = [digest for digest in repository.needs if not self._is_here(digest)]
            if any(digest in repository.named() or not self._is_old(place, digest) for digest in lost):
                repository.whole = False
            yield repository

    def _read(self, repository: _Repository, digest: Digest, media_type: str) -> None:
        content = self._store.content(digest) or b""
        found = Contents.of(content)
        # Of what is not held here, such as foreign layers, a manifest may name thousands.
        needs = (each.digest for each in (*found.manifests, *found.blobs))
        repository.needs[digest] = frozenset(each for each in needs if each in repository.place.held)
        about = Referrer.of(content, digest, media_type)
        if about is not None:
            repository.subjects[digest] = about.subject

    def _nameless(self) -> list[tuple[_Repository, Digest]]:
        """Manifests that no tag leads to, the longest unused first."""
        found = [
            (self._used(repository.place, digest), digest, repository)
            for repository in self._repositories()
            for digest in repository.needs.keys() - repository.named()
        ]
        return [(repository, digest) for _, digest, repository in sorted(found, key=lambda each: each[:2])]

    def _used(self, place: Place, digest: Digest) -> float:
        times = [0.0]
        for path in (self._store.blobs.path(digest), self._link(place, digest)):
            with suppress(OSError):
                times.append(path.stat().st_mtime)
        return max(times)

    def _is_old(self, place: Place, digest: Digest) -> bool:
        """Whether a link is there on which nobody has counted for some time."""
        try:
            return abs(self._clock() - self._link(place, digest).stat().st_mtime) > GRACE_SECONDS
        except FileNotFoundError:
            return False

    def _link(self, place: Place, digest: Digest) -> Path:
        return self._layout.links / place.name / "_digests" / digest.filename

    def _remove(self, place: Place, leaving: set[Digest], collected: Collected) -> None:
        """Have a repository hold these no more where they are still old; blobs first, so that none is left behind."""
        old = [digest for digest in leaving if self._is_old(place, digest)]
        if not old:
            return
        elsewhere = self._held_elsewhere()
        with removing(self._layout):
            holders = self._holders()
            for digest in old:
                if not self._is_old(place, digest):
                    continue  # somebody has renewed it meanwhile
                if holders[digest] <= 1 and digest not in elsewhere and not self._unlink(digest, collected):
                    continue
                self._link(place, digest).unlink(missing_ok=True)
                place.held.discard(digest)
                holders[digest] -= 1
                collected.links += 1

    def _held_elsewhere(self) -> set[Digest]:
        """What other registries' repositories hold: it is the cache's."""
        layout = self._layout
        others = (registry for registry in registries(layout) if registry != LOCAL)
        places = ((registry, each) for registry in others for each in repositories(layout, registry))
        return {digest for registry, each in places for digest in held(layout, registry, each)}

    def _holders(self) -> Counter[Digest]:
        """How many local repositories hold each digest."""
        layout = self._layout
        return Counter(digest for each in repositories(layout, LOCAL) for digest in held(layout, LOCAL, each))

    def _unlink(self, digest: Digest, collected: Collected) -> bool:
        """Whether a blob is gone; one that somebody reads just now stays for the next time."""
        path = self._store.blobs.path(digest)
        try:
            status = path.stat()
            if not is_old(status.st_mtime, self._clock()):
                return False
            path.unlink()
        except FileNotFoundError:
            return True
        collected.blobs += 1
        collected.freed += status.st_size
        return True

    def _tidy(self, place: Place, collected: Collected) -> None:
        """What was deleted, what refers from nothing, and empty folders."""
        folder = self._layout.links / place.name
        deleted = list(_digests_in(folder / DELETED))
        stale = [path for path in folder.glob(f"{REFERRERS}/*/*") if self._is_stale(place, path)]
        empty = [path for path in folder.glob("_*/*/") if not any(path.iterdir())]
        if not (deleted or stale or empty or not place.held):
            return
        elsewhere = self._held_elsewhere() if deleted else set()
        with removing(self._layout):
            holders = owned(self._layout) if deleted else set()
            for digest in deleted:
                if digest not in holders and digest not in elsewhere and not self._unlink(digest, collected):
                    continue
                (folder / DELETED / digest.filename).unlink(missing_ok=True)
                collected.links += 1
            for path in stale:
                if self._is_stale(place, path):
                    path.unlink(missing_ok=True)
            for root, _, _ in os.walk(folder, topdown=False):
                with suppress(OSError):  # it is not empty
                    os.rmdir(root)

    def _is_stale(self, place: Place, path: Path) -> bool:
        """Whether nobody holds the manifest that is said to refer to another."""
        try:
            old = abs(self._clock() - path.stat().st_mtime) > GRACE_SECONDS
        except FileNotFoundError:
            return False
        return old and not (self._layout.links / place.name / "_digests" / path.name).exists()

    def _drop_uploads(self, collected: Collected, abandoned: float) -> None:
        for path in self._layout.uploads.iterdir():
            try:
                status = path.stat()
                age = abs(self._clock() - status.st_mtime)
                if age > (GRACE_SECONDS if path.name.startswith(PUT_ASIDE) else abandoned) and drop(path):
                    collected.uploads += 1
                    collected.freed += status.st_size
            except FileNotFoundError:
                continue  # it is a blob by now


def _digests_in(folder: Path) -> Iterator[Digest]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from error
    for name in names:
        with suppress(ClientError):
            yield Digest.parse(name.replace("-", ":", 1))
