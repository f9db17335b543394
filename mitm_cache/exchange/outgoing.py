"""Exports: images out of the cache, as an OCI image layout or as skopeo's folders, every byte hashed on its way."""

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mitm_cache.errors import ClientError, ConfigError
from mitm_cache.exchange import inventory
from mitm_cache.exchange.inventory import Inventory, Missing, Named
from mitm_cache.exchange.shelf import Shelf, Walked
from mitm_cache.exchange.source import Source, open_source, read
from mitm_cache.exchange.target import Target
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.image import Image
from mitm_cache.oci.manifest import OCI_INDEX
from mitm_cache.oci.reference import Repository
from mitm_cache.oci.referring import Referrer

REF_NAME = "org.opencontainers.image.ref.name"
"""By which skopeo and podman choose an image of a layout; podman names it so."""
CONTAINERD_NAME = "io.containerd.image.name"
"""By which containerd and Docker name an image that they load."""
MAX_TOLD = 20


class Form(StrEnum):
    """`oci`: one image layout; `dir`: a folder for each image, as skopeo's dir: has them."""

    OCI = "oci"
    DIR = "dir"


@dataclass(slots=True)
class Export:
    """What is to be written."""

    images: list[Named] = field(default_factory=list)
    referrers: dict[Digest, Referrer] = field(default_factory=dict)
    pieces: dict[str, dict[Digest, int]] = field(default_factory=dict)
    """By the image's name: its own blobs with their sizes in bytes."""
    missing: list[Missing] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    before: dict[Digest, int] = field(default_factory=dict)
    """What an earlier export holds."""
    known: dict[str, Digest] = field(default_factory=dict)
    held: set[tuple[str, Digest]] = field(default_factory=set)
    """The images of an earlier export, by registry and repository."""
    roots: set[Digest] = field(default_factory=set)

    @property
    def all_pieces(self) -> dict[Digest, int]:
        """Every blob of every image once."""
        return {digest: size for pieces in self.pieces.values() for digest, size in pieces.items()}

    def written(self, digest: Digest) -> bool:
        """Whether a blob is in this export; manifests that it lists always are."""
        return digest not in self.before or digest in self.roots

    @property
    def inventory(self) -> Inventory:
        """The document that goes with it."""
        found = self.all_pieces
        return Inventory(
            tuple(self.images),
            self.known | {one.name: one.digest for one in self.images},
            {digest: size for digest, size in found.items() if self.written(digest)},
            self.before | {digest: size for digest, size in found.items() if not self.written(digest)},
            tuple(self.missing),
        )


def gather(
    shelf: Shelf,
    images: Iterable[Image],
    *,
    everything: bool = False,
    partial: bool = False,
    referrers: bool = True,
    since: Inventory | None = None,
) -> Export:
    """What an export of these images holds. With `everything` images of which nothing is whole are left out.

    Raises ClientError naming what is missing, unless what is here is asked for by `partial`.
    """
    export = Export()
    if since is not None:
        export.before = dict(since.blobs) | dict(since.needs)
        export.known = dict(since.known)
        places = (name.partition("@")[0] if "@" in name else name.rpartition(":")[0] for name in since.known)
        export.held = set(zip(places, since.known.values(), strict=True))
    refused: list[Missing] = []
    waiting, seen = list(images), set[str]()
    wanted = frozenset() if everything else frozenset(waiting)
    while waiting:
        image = waiting.pop(0)
        if str(image) in seen:
            continue
        seen.add(str(image))
        link = shelf.resolve(image)
        if link is None:
            if image in wanted:
                raise ClientError(f"{image} is not cached", status=404)
            continue  # it has left meanwhile, or nothing but its tag is known
        walked = shelf.walk(image, link.digest)
        export.missing += walked.missing
        if not walked.whole:
            refused += walked.missing
            continue
        about = set(walked.pieces)
        if referrers:
            tags = shelf.tags_about(image.registry, image.repository, about)
            waiting += [Image(image.registry, image.repository, tag) for tag in tags]
        found = list(shelf.referrers(image.registry, image.repository, about)) if referrers else []
        added = _add_referrers(export, shelf, image, found)
        named = Named(str(image), link.digest, link.media_type, link.size)
        if _is_known(export, image, link.digest) and not added and not walked.pieces.keys() - export.before:
            export.unchanged.append(named.name)
            export.known[named.name] = named.digest  # a tag moves on, and what it was goes on being known
            continue
        export.images.append(named)
        export.roots.add(link.digest)
        export.pieces[named.name] = walked.pieces
    _judge(export, refused, everything=everything, partial=partial)
    return export


def _is_known(export: Export, image: Image, digest: Digest) -> bool:
    """Whether an earlier export has an image by this name; a digest is known by any tag that it had."""
    if isinstance(image.reference, Digest):
        return (f"{image.registry}/{image.repository}", digest) in export.held
    return export.known.get(str(image)) == digest


def _add_referrers(export: Export, shelf: Shelf, image: Image, found: list[Referrer]) -> bool:
    """Take along what refers to an image; whether any of it is new."""
    added = False
    for one in found:
        about = Image(image.registry, image.repository, one.digest)
        walked: Walked = shelf.walk(about, one.digest)
        export.missing += walked.missing
        if walked.whole and walked.pieces.keys() - export.before.keys():
            added = True
            export.referrers[one.digest] = one
            export.pieces[str(about)] = walked.pieces
            export.roots.add(one.digest)
    return added


def _judge(export: Export, refused: list[Missing], *, everything: bool, partial: bool) -> None:
    if export.missing and not partial:
        cure = "pull it whole first, or take what is here with --partial"
        raise ClientError(f"not all of it is cached; {cure}:\n{_told(export.missing)}")
    if refused and not everything:
        raise ClientError(f"nothing of it is whole, so that nobody could run it; pull it first:\n{_told(refused)}")


def _told(missing: list[Missing]) -> str:
    lines = [f"  {one}" for one in dict.fromkeys(missing)]
    more = [f"  and {len(lines) - MAX_TOLD:,} more"] if len(lines) > MAX_TOLD else []
    return "\n".join(lines[:MAX_TOLD] + more)


def write(
    export: Export, shelf: Shelf, target: Target, form: Form, tell: Callable[[int], None] = lambda _: None
) -> None:
    """Write it; `tell` is given the bytes of each piece that is done. Raises MitmCacheError and OSError."""
    _add(target, inventory.NAME, export.inventory.to_json())
    if form is Form.OCI:
        _add(target, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(target, "index.json", _index(export))
        for digest, size in export.all_pieces.items():
            if export.written(digest):
                target.add(f"blobs/{digest.algorithm}/{digest.hex}", size, shelf.content(digest, size))
                tell(size)
        return
    roots = {one.name: one.digest for one in export.images}
    known: dict[tuple[str, Repository], set[Digest]] = {}
    for name, pieces in export.pieces.items():
        root = roots.get(name) or Digest.parse(name.partition("@")[2])
        _add(target, f"{name}/version", b"Directory Transport Version: 1.1\n")
        image = Image.parse(name)
        place = image.registry, image.repository
        if place not in known:
            known[place] = {link.digest for link in shelf.manifests(*place)}
        for digest, size in pieces.items():
            if export.written(digest):
                file = "manifest.json" if digest == root else digest.hex
                file += ".manifest.json" if digest in known[place] and digest != root else ""
                target.add(f"{name}/{file}", size, shelf.content(digest, size))
                tell(size)


def _index(export: Export) -> bytes:
    def described() -> Iterator[dict[str, object]]:
        for one in export.images:
            annotations = {REF_NAME: one.name, CONTAINERD_NAME: one.name}
            fields = {"mediaType": one.media_type, "digest": str(one.digest), "size": one.size}
            yield fields | {"annotations": annotations}
        images = {one.digest for one in export.images}
        for digest, referrer in export.referrers.items():
            if digest not in images:
                yield referrer.descriptor()

    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(described())}
    return json.dumps(document, separators=(",", ":")).encode()


def _add(target: Target, name: str, content: bytes) -> None:
    target.add(name, len(content), [content])


def read_since(path: Path) -> Inventory:
    """What an earlier export holds: its inventory by itself, its folder, or its archive. Raises ConfigError.

    Of a layout that somebody else wrote, the blobs.
    """
    try:
        if not path.is_dir() and not (path.is_file() and tarfile.is_tarfile(path)):
            with path.open("rb") as file:  # a pipe too
                return Inventory.from_json(file.read(inventory.MAX_SIZE))
        source = open_source(path)
        try:
            content = read(source, inventory.NAME, inventory.MAX_SIZE)
            return Inventory.from_json(content) if content is not None else Inventory(blobs=dict(_blobs(source)))
        finally:
            source.close()
    except OSError as error:
        raise ConfigError(f"--since: {path} cannot be read: {error.strerror or error}") from error
    except ClientError as error:
        raise ConfigError(f"--since: {path}: {error.message}") from error


def _blobs(source: Source) -> Iterator[tuple[Digest, int]]:
    if read(source, "oci-layout", 4096) is None:
        raise ClientError(f"it holds neither {inventory.NAME} nor an OCI image layout")
    for name in source.names():
        folder, _, rest = name.partition("/")
        try:
            digest = Digest.parse(rest.replace("/", ":")) if folder == "blobs" else None
        except ClientError:
            continue
        if digest is not None:
            yield digest, source.size(name) or 0
