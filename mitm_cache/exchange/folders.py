"""Folders as skopeo's `dir:` writes them: one image each, in the names of its digests; and trees of them."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mitm_cache.errors import ClientError, StoreError
from mitm_cache.exchange.source import FolderSource, Source, open_source, read
from mitm_cache.exchange.stock import Found, Piece, piece
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE

MANIFEST, VERSION = "manifest.json", "version"
MAX_FOLDERS = 100_000
MAX_DEPTH = 16
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

    def find(self, digest: Digest) -> Piece | None:
        if digest == self._top:
            return piece(self._source, MANIFEST)
        return piece(self._source, digest.hex) or piece(self._source, f"{digest.hex}.{MANIFEST}")


def find_folders(root: FolderSource) -> Iterator[tuple[FolderSource, str]]:
    """Every such folder below one, and its name as far as its place tells. No link is followed. Raises StoreError."""
    for count, (here, folders, files) in enumerate(os.walk(root.path, onerror=_raise)):
        relative = Path(here).relative_to(root.path)
        if count >= MAX_FOLDERS:
            raise ClientError(f"{root.label} has more than {MAX_FOLDERS:,} folders")
        folders[:] = sorted(folders) if len(relative.parts) < MAX_DEPTH else []
        if VERSION in files and MANIFEST in files:
            folders.clear()
            source = open_source(Path(here))
            assert isinstance(source, FolderSource)
            yield source, str(relative) if _HOST.match(f"{relative}") else ""


def _raise(error: OSError) -> None:
    raise StoreError(f"{error.filename} cannot be read: {error.strerror}") from error
