"""What the local registry keeps: links in the tree of all links, and bytes among all blobs, durable before a yes.

Files alone count here: an index that lost its last rows would bring back what was deleted. A link is written before
its blob is put in place, so that no moment has a blob which nobody holds; what holds no blob is not there.
"""

import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.index import NoIndex
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.links import Links
from mitm_cache.cache.owned import held, let_go, linking, removing, repositories
from mitm_cache.cache.pins import FOLDER, read_pins
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.local.durable import make_folder, sync
from mitm_cache.local.manifests import MANIFESTS, Pushed
from mitm_cache.oci.contents import Contents
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import Accept, media_type_of
from mitm_cache.oci.reference import Reference, Repository, Tag
from mitm_cache.oci.referring import Referrer
from mitm_cache.registries import LOCAL

OCTETS = "application/octet-stream"
DELETED = "_deleted"
"""The folder of what a repository held and was told to delete, until its bytes have been looked at."""
REFERRERS = "_referrers"
type Told = Callable[[bool], object]
"""Told whether the registry held a content before it was linked, while nobody can remove any; raises nothing."""
PUT_ASIDE = "m-"
"""How the name of a manifest begins that is being written among the uploads."""


class Store:
    """Its methods block on the disk and raise StoreError, but for those that say otherwise."""

    def __init__(self, layout: Layout, blobs: Blobs) -> None:
        self.layout = layout
        self.blobs = blobs
        self.links = Links(layout.links, NoIndex())
        try:
            layout.uploads.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{layout.uploads} cannot be made: {error.strerror}") from error

    def folder(self, repository: Repository) -> Path:
        """A repository's, there or not."""
        return self.layout.links / LOCAL / str(repository)

    def held(self, repository: Repository, digest: Digest) -> Link | None:
        """The link by which a repository holds a content that is here. Reads one small file."""
        link = self.links.holds(LOCAL, repository, digest)
        return link if link is not None and self.blobs.has(digest) else None

    def was_deleted(self, repository: Repository, digest: Digest) -> bool:
        """Whether a repository was told to delete a content not long ago. Looks at one file."""
        return (self.folder(repository) / DELETED / digest.filename).exists()

    def manifest(self, repository: Repository, digest: Digest) -> Link | None:
        """The link by which a repository holds a manifest or an index that is here."""
        link = self.held(repository, digest)
        return link if link is not None and is_manifest(link) else None

    def tagged(self, repository: Repository, tag: Tag) -> Digest | None:
        """What a tag is. Reads one small file."""
        link = self.links.tagged(LOCAL, repository, tag, Accept())
        return None if link is None else link.digest

    def repositories(self) -> list[Repository]:
        """Those that hold something."""
        found = repositories(self.layout, LOCAL)
        return sorted(each for each in found if next(held(self.layout, LOCAL, each), None) is not None)

    def is_there(self, repository: Repository) -> bool:
        """Whether a repository holds anything."""
        return next(self.links.held(LOCAL, repository), None) is not None

    def adopt(
        self,
        repository: Repository,
        digest: Digest,
        path: Path,
        inode: int,
        size: int,
        told: Told = lambda _: None,
    ) -> None:
        """Make a proven file of our file system a blob that a repository holds."""
        try:
            with linking(self.layout):
                told(self._take_over(repository, Link(digest, OCTETS, size, Origin.LOCAL), path))
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be kept: {error.strerror}") from error
        self.blobs.vouch(inode, size)

    def link(self, repository: Repository, digest: Digest, told: Told = lambda _: None, *, owned: bool = False) -> bool:
        """Have a repository hold a blob that is here already; whether it does. `owned`: only what a repository holds,
        so that it takes no room."""
        try:
            with linking(self.layout):
                before = self._is_owned(digest)
                if not self.blobs.renew(digest) or (owned and not before):
                    return False
                size = self.blobs.path(digest).stat().st_size
                self._hold(repository, Link(digest, OCTETS, size, Origin.LOCAL))
                told(before)
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be linked: {error.strerror}") from error
        return True

    def renew(self, repository: Repository, digest: Digest) -> None:
        """Somebody counts on a content: it is not collected within the next hour."""
        with suppress(OSError):  # it has been deleted meanwhile, or the disk takes nothing
            self.blobs.renew(digest)
            os.utime(self._link(repository, digest))

    def put_manifest(
        self, repository: Repository, reference: Reference, manifest: Pushed, told: Told = lambda _: None
    ) -> None:
        """Keep a manifest, and give it its tag.

        Raises ClientError (MANIFEST_BLOB_UNKNOWN) where something is not there that it needs.
        """
        link, content = manifest.link, manifest.content
        try:
            with linking(self.layout):
                for digest in (*manifest.manifests, *manifest.blobs):
                    held = self.held(repository, digest)
                    if held is None or (digest in manifest.manifests and not is_manifest(held)):
                        raise ClientError(
                            f"{LOCAL}/{repository} holds no {digest}, which the manifest refers to: push it first",
                            status=404,
                            code="MANIFEST_BLOB_UNKNOWN",
                        )
                    self.renew(repository, digest)
                told(self._keep(repository, link, content))
                if manifest.subject is not None:
                    self._refer(repository, manifest.subject, link.digest)
                if isinstance(reference, Tag):
                    folder = self.folder(repository) / "_tags" / str(reference)
                    before = folder.exists()
                    make_folder(folder)
                    self.links.give(LOCAL, repository, reference, link)
                    sync(folder)
                    if before:
                        let_go(self.layout)  # what it was may leave now
        except OSError as error:
            raise StoreError(f"manifest {link.digest} cannot be kept: {error.strerror}") from error

    def _keep(self, repository: Repository, link: Link, content: bytes) -> bool:
        path = self.layout.uploads / f"{PUT_ASIDE}{secrets.token_hex(16)}"
        try:
            with path.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                inode = os.fstat(file.fileno()).st_ino
            before = self._take_over(repository, link, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self.blobs.vouch(inode, len(content))
        return before

    def _take_over(self, repository: Repository, link: Link, path: Path) -> bool:
        """Make a file a blob that a repository holds; whether some repository held that before."""
        before = self._is_owned(link.digest)
        if not before and self.blobs.has(link.digest):
            # It is the cache's, or was deleted: held before the file is gone it would take its room twice after a kill.
            self._place(link.digest, path)
            self._hold(repository, link)
        else:
            self._hold(repository, link)
            self._place(link.digest, path)
        return before

    def _is_owned(self, digest: Digest) -> bool:
        """Whether a content is here that some repository holds."""
        if not self.blobs.has(digest):
            return False
        return any(self._link(each, digest).exists() for each in repositories(self.layout, LOCAL))

    def _hold(self, repository: Repository, link: Link) -> None:
        known = self.links.holds(LOCAL, repository, link.digest)
        path = self._link(repository, link.digest)
        if known is not None and (known == link or (is_manifest(known) and not is_manifest(link))):
            os.utime(path)
            return
        make_folder(path.parent)
        self.links.hold(LOCAL, repository, link)
        sync(path.parent)

    def _place(self, digest: Digest, path: Path) -> None:
        """Put a file in a blob's place: what may be there has the same name, and may be damaged."""
        target = self.blobs.path(digest).parent
        make_folder(target)
        self.blobs.adopt(digest, path)
        sync(target)

    def _refer(self, repository: Repository, subject: Digest, digest: Digest) -> None:
        path = self.folder(repository) / REFERRERS / subject.filename / digest.filename
        make_folder(path.parent)
        path.touch(mode=0o600)
        sync(path.parent)

    def referring(self, repository: Repository, subject: Digest) -> list[Digest]:
        """The manifests that said at their push that they are about another, which need not be there."""
        try:
            names = os.listdir(self.folder(repository) / REFERRERS / subject.filename)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"referrers of {subject} cannot be read: {error.strerror}") from error
        return [Digest.parse(name.replace("-", ":", 1)) for name in sorted(names)]

    def content(self, digest: Digest) -> bytes | None:
        """A manifest's bytes, None where it is not here."""
        try:
            return self.blobs.path(digest).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be read: {error.strerror}") from error

    def untag(self, repository: Repository, tag: Tag) -> None:
        """Forget a tag. Raises ClientError where it is pinned."""
        self._check_pins(repository, tag)
        self.links.untag(LOCAL, repository, tag)
        with suppress(OSError):  # it has never been there
            sync(self.folder(repository) / "_tags" / str(tag))
        let_go(self.layout)

    def delete(self, repository: Repository, link: Link) -> None:
        """Have a repository hold a content no more; a manifest loses its tags. Raises ClientError where it is pinned.

        The bytes are for the collection: others may hold them.
        """
        path, aside = self._link(repository, link.digest), self.folder(repository) / DELETED
        content = self.content(link.digest) if is_manifest(link) else None
        referrer = None if content is None else Referrer.of(content, link.digest, link.media_type)
        try:
            # A push that gives it a tag meanwhile would be left with that alone.
            with removing(self.layout):
                tags = self._tags_of(repository, link.digest) if is_manifest(link) else []
                self._check_pins(repository, link.digest, *tags)
                for tag in tags:
                    self.untag(repository, tag)
                if referrer is not None:
                    folder = self.folder(repository) / REFERRERS / referrer.subject.filename
                    (folder / link.digest.filename).unlink(missing_ok=True)
                make_folder(aside)
                path.replace(aside / path.name)
                sync(path.parent)
                sync(aside)
            let_go(self.layout)
        except FileNotFoundError:
            return  # somebody else has deleted it
        except OSError as error:
            raise StoreError(f"{path} cannot be deleted: {error.strerror}") from error

    def leading_to(self, repository: Repository, digest: Digest, tags: Iterable[Tag]) -> Tag | None:
        """The first of these tags whose image needs a content, or is it."""
        for tag in tags:
            top = self.tagged(repository, tag)
            waiting, seen = [top] if top is not None else [], set[Digest]()
            while waiting:
                each = waiting.pop()
                if each == digest:
                    return tag
                if each not in seen and self.manifest(repository, each) is not None:
                    found = Contents.of(self.content(each) or b"")
                    waiting += [one.digest for one in found.manifests]
                    if digest in {one.digest for one in found.blobs}:
                        return tag
                seen.add(each)
        return None

    def _tags_of(self, repository: Repository, digest: Digest) -> list[Tag]:
        tags = [Tag.parse(name) for name in self.links.tags(LOCAL, repository)]
        return [tag for tag in tags if self.tagged(repository, tag) == digest]

    def _check_pins(self, repository: Repository, *references: Reference) -> None:
        pins = read_pins(self.folder(repository) / FOLDER)
        if pinned := [each for each in references if each in pins]:
            raise ClientError(
                f"{pinned[0]} of {LOCAL}/{repository} is pinned; 'mitm-cache unpin' comes first",
                status=403,
                code="DENIED",
            )

    def _link(self, repository: Repository, digest: Digest) -> Path:
        return self.folder(repository) / "_digests" / digest.filename


def is_manifest(link: Link) -> bool:
    """Whether it was pushed as a manifest or an index."""
    return media_type_of(link.media_type) in MANIFESTS
