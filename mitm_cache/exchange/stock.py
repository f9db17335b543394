"""Images in files, however they were written: which there are, and where each digest's bytes can be read."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from mitm_cache.errors import ClientError, IntegrityError
from mitm_cache.exchange.source import Source, read
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_SIZE,
    OCI_INDEX,
    OCI_MANIFEST,
    is_schema_1,
    media_type_of,
)

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
TYPES = frozenset({*INDEXES, OCI_MANIFEST, DOCKER_MANIFEST})


@dataclass(frozen=True, slots=True)
class Piece:
    """A content's size in bytes, and how it is read, from its start each time. It is not proven yet."""

    size: int
    chunks: Callable[[], Iterator[bytes]]

    @classmethod
    def of(cls, content: bytes) -> "Piece":
        """Bytes at hand."""
        return cls(len(content), lambda: iter((content,)))


@dataclass(frozen=True, slots=True)
class Found:
    """An image of a stock: its name as it is written there, "" where it has none, and its manifest or index."""

    name: str
    digest: Digest
    media_type: str = ""


class Stock(Protocol):
    """One archive or folder of images. Raises ClientError where it is not what it says."""

    label: str
    images: list[Found]

    def find(self, digest: Digest) -> Piece | None:
        """A content, None where it is not in here."""


def piece(source: Source, name: str) -> Piece | None:
    """A file of a source as a content."""
    size = source.size(name)
    return None if size is None else Piece(size, partial(source.chunks, name))


def manifest_of(stock: Stock, digest: Digest) -> bytes | None:
    """A manifest, proven; None where it is not in the stock. Raises ClientError and IntegrityError."""
    found = stock.find(digest)
    return None if found is None else prove(found, digest, stock.label)


def prove(manifest: Piece, digest: Digest, label: str) -> bytes:
    """All of a manifest. Raises IntegrityError unless it is what its digest says; ClientError where it is too large."""
    if manifest.size > MAX_SIZE:
        raise ClientError(f"{label}: manifest {digest} has {manifest.size:,} bytes; {MAX_SIZE:,} are allowed")
    content = b"".join(manifest.chunks())
    if hashlib.new(digest.algorithm, content).hexdigest() != digest.hex:
        raise IntegrityError(f"{label}: what is there as {digest} is something else, or damaged")
    return content


def type_of(content: bytes, said: str, label: str) -> str:
    """The media type of a manifest, by its own word, that of who refers to it, or what it looks like.

    Raises ClientError where these do not agree, or it is none that can be served.
    """
    document = parse(content, label)
    own = document.get("mediaType", "")
    if not isinstance(own, str) or ("manifests" in document and ("layers" in document or "config" in document)):
        raise ClientError(f"{label}: a manifest is an index and an image at once: it is refused")
    said = media_type_of(said)
    if own and said and media_type_of(own) != said:
        raise ClientError(f"{label}: a manifest of the type {own!r} is said to be {said!r}: it is refused")
    kind = media_type_of(own) or said or (OCI_INDEX if "manifests" in document else OCI_MANIFEST)
    if is_schema_1(kind) or document.get("schemaVersion") == 1:
        raise ClientError(f"{label}: a manifest is of schema 1, which no client takes any more")
    if kind not in TYPES or ("manifests" in document) != (kind in INDEXES):
        raise ClientError(f"{label}: {kind[:80]!r} is no manifest of an image; allowed: {', '.join(sorted(TYPES))}")
    return kind


def parse(content: bytes, label: str) -> Mapping[str, Any]:
    """A JSON object. Raises ClientError for anything else."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ClientError(f"{label} is no JSON document") from error
    if not isinstance(document, dict):
        raise ClientError(f"{label} is no JSON object")
    return document


def read_json(source: Source, name: str, limit: int) -> Any:
    """A small document, None where there is none. Raises ClientError."""
    content = read(source, name, limit)
    if content is None:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ClientError(f"{source.label}: {name} is no JSON document") from error
