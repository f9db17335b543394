"""Folders as skopeo's `dir:` writes them: one image each, in the names of its digests; and trees of them."""

import hashlib
import re
from collections.abc import Iterator

from mitm_cache.errors import ClientError
from mitm_cache.exchange.source import Below, Source, read
from mitm_cache.exchange.stock import Found, Piece, piece
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE

MANIFEST, VERSION = "manifest.json", "version"
_VERSION = re.compile(rb"Directory Transport Version: 1\.[01]\n?")
_HOST = re.compile(r"[^/]*[.:][^/]*/|localhost/")


def is_folder(source: Source) -> bool:
    """Whether a source looks like one that `dir:` has written."""
    return source.size(VERSION) is not None and source.size(MANIFEST) is not None


class FolderStock:
    """One such folder; `name` is the image's, as far as its place tells."""

    def __init__(self, source: Source, name: str = "") -> None:
        self.label = source.label
        self._source = source
        if not _VERSION.fullmatch(read(source, VERSION, 256) or b""):
            raise ClientError(f"{self.label}: {VERSION} is not that of a folder of images that is known, 1.0 or 1.1")
        content = read(source, MANIFEST, MAX_SIZE) or b""
        self._top = Digest.of(content)
        if name.partition("@")[2].startswith("sha512:"):
            self._top = Digest("sha512", hashlib.sha512(content).hexdigest())
        self.images = [Found(name, self._top)]
        # A tree may hold thousands of images, and each of them is asked for what all of them need.
        self._files = {file.removesuffix(f".{MANIFEST}"): file for file in source.names() if "/" not in file}
        self._files[self._top.hex] = MANIFEST

    @property
    def hexes(self) -> Iterator[str]:
        """The hex digits of every digest that is here."""
        return iter(self._files)

    def find(self, digest: Digest) -> Piece | None:
        file = self._files.get(digest.hex)
        return None if file is None else piece(self._source, file)


def find_folders(root: Source) -> Iterator[tuple[Below, str]]:
    """Every such folder below one, and its name as far as its place tells."""
    files: dict[str, list[str]] = {}
    for name in root.names():
        folder, _, file = name.rpartition("/")
        files.setdefault(folder, []).append(file)
    for folder, names in files.items():
        if VERSION in names and MANIFEST in names:
            yield Below(root, folder, names), folder if _HOST.match(folder) else ""
