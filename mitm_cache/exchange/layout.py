"""OCI image layouts (OCI image-spec, "Image Layout"): skopeo, podman, ctr, Docker 25 and this cache write them."""

from typing import Any

from mitm_cache.errors import ClientError
from mitm_cache.exchange.outgoing import CONTAINERD_NAME, REF_NAME
from mitm_cache.exchange.source import Source
from mitm_cache.exchange.stock import Found, Piece, piece, read_json
from mitm_cache.oci.contents import Descriptor

MARK = "oci-layout"
MAX_INDEX = 64 << 20
"""Bytes of index.json: a hundred thousand images."""


class LayoutStock:
    """A layout; `blobs/<algorithm>/<hex>` has the content."""

    def __init__(self, source: Source) -> None:
        self.label = source.label
        self._source = source
        mark = read_json(source, MARK, 4096)
        version = mark.get("imageLayoutVersion") if isinstance(mark, dict) else None
        if not (isinstance(version, str) and version.startswith("1.")):
            raise ClientError(f"{self.label}: {MARK} says version {version!r}; 1.0.0 is known")
        index = read_json(source, "index.json", MAX_INDEX)
        entries = index.get("manifests") if isinstance(index, dict) else None
        if not isinstance(entries, list):
            raise ClientError(f"{self.label}: index.json has no list of manifests")
        self.images = [self._found(entry) for entry in entries]

    def _found(self, entry: Any) -> Found:
        described = Descriptor.of(entry)
        if described is None:
            raise ClientError(f"{self.label}: index.json has an entry without a digest that is known")
        notes = entry.get("annotations")
        return Found(_name(notes if isinstance(notes, dict) else {}), described.digest, described.media_type)

    def find(self, digest: Any) -> Piece | None:
        return piece(self._source, f"blobs/{digest.algorithm}/{digest.hex}")


def _name(notes: dict[str, Any]) -> str:
    """A whole name; many tools write a tag alone where it could stand, which says nothing here."""
    whole, short = notes.get(CONTAINERD_NAME), notes.get(REF_NAME)
    if isinstance(whole, str) and whole:
        return whole
    return short if isinstance(short, str) and not {":", "/", "@"}.isdisjoint(short) else ""
