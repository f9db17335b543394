"""What an import would bring: every image of an archive looked through, before anything is written."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.errors import ClientError, IntegrityError
from mitm_cache.exchange import inventory
from mitm_cache.exchange.docker_archive import MARK as ARCHIVE_MARK
from mitm_cache.exchange.docker_archive import ArchiveStock
from mitm_cache.exchange.folders import FolderStock, find_folders, is_folder
from mitm_cache.exchange.inventory import Inventory, Missing
from mitm_cache.exchange.layout import MARK as LAYOUT_MARK
from mitm_cache.exchange.layout import LayoutStock
from mitm_cache.exchange.shelf import MAX_DEPTH
from mitm_cache.exchange.source import Source, open_source, read
from mitm_cache.exchange.stock import Found, Piece, Stock, manifest_of, prove, type_of
from mitm_cache.oci.contents import Contents, Descriptor
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.image import Image
from mitm_cache.oci.manifest import is_foreign
from mitm_cache.oci.referring import Referrer
from mitm_cache.registries import Known

MAX_TOLD = 5

type Own = Callable[[Image, Digest], Piece | None]
"""What is in the cache already and may be counted to an image without being in the archive."""


@dataclass(slots=True)
class Arrival:
    """An image that can be taken in: its `root`, all `manifests` with it, its `blobs` with their sizes in bytes.

    `sources`: where the bytes of what is not here yet are; `absent`: parts of an index that nobody has brought.
    """

    image: Image
    root: Digest
    manifests: dict[Digest, Link] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    sources: dict[Digest, Piece] = field(default_factory=dict)
    absent: list[Missing] = field(default_factory=list)

    def add(self, other: "Arrival") -> None:
        """Count what belongs to a part to the whole."""
        self.manifests |= other.manifests
        self.blobs |= other.blobs
        self.sources |= other.sources
        self.absent += other.absent


class Lading:
    """Everything that was given to one import; to be closed. Raises MitmCacheError."""

    def __init__(self, paths: Iterable[Path], open_: Callable[[Path], Source] = open_source) -> None:
        self.sources: list[Source] = []
        self.stocks: list[Stock] = []
        self._needs: list[Collection[Digest]] = []
        """For each stock what exports before it have brought."""
        try:
            for path in paths:
                self._open(open_(path))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files."""
        for source in self.sources:
            source.close()

    def _open(self, source: Source) -> None:
        self.sources.append(source)
        stocks: list[Stock] = []
        if source.size(LAYOUT_MARK) is not None:
            stocks.append(LayoutStock(source))
        elif is_folder(source):
            stocks.append(FolderStock(source))
        elif source.size(ARCHIVE_MARK) is not None:
            stocks.append(ArchiveStock(source))
        else:
            stocks += [FolderStock(folder, name) for folder, name in find_folders(source)]
        content = read(source, inventory.NAME, inventory.MAX_SIZE)
        said = Inventory() if content is None else Inventory.from_json(content)
        if not stocks and (content is None or said.blobs):
            raise ClientError(
                f"{source.label} holds no images: known are OCI image layouts, folders of skopeo's dir:, and archives "
                "of docker save, podman save and ctr images export"
            )
        _check(stocks, said, source.label)
        self.stocks += stocks
        self._needs += [said.needs.keys()] * len(stocks)

    def arrivals(self, known: Known, own: Own, name: str = "") -> list[Arrival]:
        """Every image, by its whole name; `name` is for the one that has none. Raises MitmCacheError."""
        arrivals: list[Arrival] = []
        needs: list[Collection[Digest]] = []
        nameless = self._nameless()
        lone = sum(len(stock.images) for stock in self.stocks) == 1
        if name and not (lone or len(nameless) == 1):
            raise ClientError(f"--name is for one image, and {len(nameless)} have no name: import them one by one")
        for stock, needed in zip(self.stocks, self._needs, strict=True):
            walk = _Walk(stock, own, needed, self.stocks)
            rest = []
            for found in stock.images:
                text = name if name and (lone or not found.name) else found.name
                if not text:
                    rest.append(found)
                    continue
                image = _image(text, found, known)
                arrivals.append(walk.arrival(image, found))
            arrivals += _attached(walk, rest, arrivals)
            needs += [needed] * (len(arrivals) - len(needs))
        _settle_names(arrivals, needs)
        return arrivals

    def _nameless(self) -> list[Found]:
        found = []
        for stock in self.stocks:
            for one in stock.images:
                content = manifest_of(stock, one.digest) if not one.name else None
                if not one.name and (content is None or Referrer.of(content, one.digest, "") is None):
                    found.append(one)
        return found


def _image(text: str, found: Found, known: Known) -> Image:
    image = Image.parse(text)
    registry = known.find(image.registry)
    if isinstance(image.reference, Digest) and image.reference != found.digest:
        raise IntegrityError(f"{image} is not that: what is there is {found.digest}")
    return Image(registry.name if registry else image.registry, image.repository, image.reference)


def _attached(walk: "_Walk", rest: list[Found], arrivals: list[Arrival]) -> list[Arrival]:
    """Manifests without a name that refer to another one belong to its repository."""
    attached: list[Arrival] = []
    while rest:
        holding: dict[Digest | None, list[Arrival]] = {}
        for one in (*arrivals, *attached):
            for digest in one.manifests:
                holding.setdefault(digest, []).append(one)
        about = [holding.get(walk.subject(found), []) for found in rest]
        if not any(about):
            shown = ", ".join(str(found.digest) for found in rest[:MAX_TOLD])
            raise ClientError(
                f"{walk.stock.label}: nothing says the name of {shown}; --name REGISTRY/REPOSITORY:TAG does, of one"
            )
        for found, of in zip(rest, about, strict=True):
            for registry, repository in dict.fromkeys((one.image.registry, one.image.repository) for one in of):
                attached.append(walk.arrival(Image(registry, repository, found.digest), found))
        rest = [found for found, of in zip(rest, about, strict=True) if not of]
    return attached


def _settle_names(arrivals: list[Arrival], needs: list[Collection[Digest]]) -> None:
    """A name is one image: where an export was made since another one, which is then among its `needs`, the later
    one's. What the name was before keeps its digest. Raises ClientError."""
    last: dict[str, int] = {}
    for place, arrival in enumerate(arrivals):
        name = str(arrival.image)
        before = last.setdefault(name, place)
        if arrivals[before].root == arrival.root:
            continue
        if arrivals[before].root in needs[place]:
            older, last[name] = arrivals[before], place
        elif arrival.root in needs[before]:
            older = arrival
        else:
            raise ClientError(f"{name} is there twice, as {arrivals[before].root} and as {arrival.root}")
        older.image = Image(older.image.registry, older.image.repository, older.root)


def _check(stocks: list[Stock], said: Inventory, label: str) -> None:
    """What an export of ours says that it holds is in it. Raises IntegrityError."""
    folders = {hex_: stock for stock in stocks if isinstance(stock, FolderStock) for hex_ in stock.hexes}
    for digest, size in said.blobs.items():
        stock = folders.get(digest.hex) if folders else stocks[0]
        found = stock.find(digest) if stock is not None else None
        if found is None or found.size != size:
            what = "is missing" if found is None else f"has {found.size:,} bytes instead of {size:,}"
            raise IntegrityError(f"{label} is not whole: {digest} of its inventory {what}")


class _Walk:
    """Looks through one stock, each manifest once."""

    def __init__(self, stock: Stock, own: Own, needed: Collection[Digest], stocks: Iterable[Stock]) -> None:
        """What is `needed` may be in any of the `stocks`."""
        self.stock = stock
        self._own = own
        self._needed = needed
        self._others = [each for each in stocks if each is not stock]
        self._seen: dict[tuple[str, str, Digest], Arrival | Missing] = {}

    def subject(self, found: Found) -> Digest | None:
        """What a manifest refers to."""
        content = manifest_of(self.stock, found.digest)
        referrer = Referrer.of(content, found.digest, found.media_type) if content is not None else None
        return referrer.subject if referrer is not None else None

    def arrival(self, image: Image, found: Found) -> Arrival:
        """All of an image. Raises MitmCacheError where nobody could run it."""
        arrival = self._manifest(image, found.digest, found.media_type, "", MAX_DEPTH)
        if isinstance(arrival, Missing):
            raise ClientError(f"{self.stock.label} is not whole: {arrival} is not in it{self._cure(arrival.digest)}")
        # What was looked through before was perhaps under another name of the same content.
        return replace(arrival, image=image)

    def _cure(self, digest: Digest) -> str:
        words = "it holds what was new since an earlier export: import that one first"
        return f"; {words}" if digest in self._needed else ""

    def _holding(self, digest: Digest) -> Iterable[Stock]:
        """Where a content may be that counts to the images of this stock."""
        return [self.stock, *(self._others if digest in self._needed else ())]

    def _manifest(self, image: Image, digest: Digest, said: str, platform: str, depth: int) -> Arrival | Missing:
        """A manifest and what belongs to it, or the first thing that is missing."""
        key = image.registry, str(image.repository), digest
        if key not in self._seen:
            self._seen[key] = self._look(image, digest, said, platform, depth)
        return self._seen[key]

    def _look(self, image: Image, digest: Digest, said: str, platform: str, depth: int) -> Arrival | Missing:
        texts = (manifest_of(each, digest) for each in self._holding(digest))
        content = next((text for text in texts if text is not None), None)
        own = self._own(image, digest) if content is None else None
        if own is not None:
            content = prove(own, digest, "the cache")
        if content is None:
            return Missing(str(image), digest, platform)
        kind = type_of(content, said, f"{self.stock.label}: {digest}")
        arrival = Arrival(image, digest)
        arrival.manifests[digest] = Link(digest, kind, len(content), Origin.IMPORTED)
        arrival.sources[digest] = Piece.of(content)
        found = Contents.of(content)
        for blob in found.blobs:
            pieces = (each.find(blob.digest) for each in self._holding(blob.digest))
            piece = next((each for each in pieces if each is not None), None) or self._own(image, blob.digest)
            if piece is not None and blob.size and piece.size != blob.size:
                sizes = f"{piece.size:,} bytes, and its manifest says {blob.size:,}"
                raise IntegrityError(f"{self.stock.label}: {blob.digest} has {sizes}")
            if piece is not None:
                arrival.blobs[blob.digest] = piece.size
                arrival.sources[blob.digest] = piece
            elif not is_foreign(blob.media_type):
                return Missing(str(image), blob.digest, platform)
        absent = [self._child(arrival, image, one, depth) for one in found.manifests]
        if absent and all(absent):
            return absent[0] or Missing(str(image), digest, platform)
        arrival.absent += [one for one in absent if one is not None]
        return arrival

    def _child(self, arrival: Arrival, image: Image, child: Descriptor, depth: int) -> Missing | None:
        if not depth:
            raise ClientError(f"{self.stock.label}: indexes within indexes, more than {MAX_DEPTH} of them")
        part = self._manifest(image, child.digest, child.media_type, child.platform, depth - 1)
        if isinstance(part, Missing):
            return Missing(part.image, part.digest, child.platform or part.platform)
        arrival.add(part)
        return None
