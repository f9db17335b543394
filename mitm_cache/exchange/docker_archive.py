"""Archives of `docker save` before Docker 25, `podman save` and skopeo's `docker-archive:`.

They hold the configuration, whose digest is the image's ID, and the layers as they unpack, but no manifest of a
registry: one is made, always the same for the same archive. Its layers are the archive's own bytes, uncompressed, so
that their digests are the diff IDs; layers that were compressed already, as some builders write them, stay so.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mitm_cache.errors import ClientError, IntegrityError
from mitm_cache.exchange.source import Source, read
from mitm_cache.exchange.stock import Found, Piece, parse, piece, read_json
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE, OCI_MANIFEST

MARK = "manifest.json"
MAX_MARK = 16 << 20
MAX_IMAGES = 10_000
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
_GZIP = b"\x1f\x8b"
_STEP = 1 << 20
MAX_UNPACKED = 1 << 30
MAX_RATIO = 100
"""A layer may unpack to MAX_UNPACKED bytes, or to so many times its own size."""


@dataclass(frozen=True, slots=True)
class _Layer:
    digest: Digest
    size: int
    media_type: str

    def describe(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}


class ArchiveStock:
    """One archive."""

    def __init__(self, source: Source) -> None:
        self.label = source.label
        self._source = source
        self._pieces: dict[Digest, Piece] = {}
        self._layers: dict[tuple[str, Digest], _Layer] = {}
        self.images: list[Found] = []
        entries = read_json(source, MARK, MAX_MARK)
        if not isinstance(entries, list):
            raise ClientError(f"{self.label}: {MARK} is no list of images")
        if len(entries) > MAX_IMAGES:
            raise ClientError(f"{self.label}: {MARK} lists {len(entries):,} images; {MAX_IMAGES:,} are allowed")
        for entry in entries:
            names, config, layers = self._entry(entry)
            digest = self._made(config, layers)
            self.images += [Found(name, digest, OCI_MANIFEST) for name in names or [""]]

    def find(self, digest: Digest) -> Piece | None:
        return self._pieces.get(digest)

    def _entry(self, entry: Any) -> tuple[list[str], str, list[str]]:
        fields = entry if isinstance(entry, dict) else {}
        names, config, layers = fields.get("RepoTags") or [], fields.get("Config"), fields.get("Layers") or []
        lists = isinstance(names, list) and isinstance(layers, list)
        if not lists or not all(isinstance(text, str) for text in (*names, config, *layers)):
            raise ClientError(f"{self.label}: {MARK} has an image without proper Config, RepoTags and Layers")
        return names, str(config), layers

    def _made(self, name: str, files: list[str]) -> Digest:
        """The digest of the manifest that is made of an image."""
        content = read(self._source, name, MAX_SIZE)
        if content is None:
            raise ClientError(f"{self.label}: the configuration {name[:100]!r} is not in it")
        rootfs = parse(content, f"{self.label}: {name[:100]}").get("rootfs")
        diff_ids = (rootfs.get("diff_ids") or []) if isinstance(rootfs, dict) else None  # docker writes no empty one
        if not isinstance(diff_ids, list) or len(diff_ids) != len(files):
            raise ClientError(f"{self.label}: {name[:100]!r} has not as many diff_ids as there are layers")
        digest = Digest.of(content)
        stem = name.rpartition("/")[2].removesuffix(".json")
        if len(stem) == len(digest.hex) and stem != digest.hex:
            raise IntegrityError(f"{self.label}: the configuration {stem} is something else, or damaged")
        self._pieces[digest] = Piece.of(content)
        layers = [self._layer(file, Digest.parse(str(one))) for file, one in zip(files, diff_ids, strict=True)]
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": CONFIG, "digest": str(digest), "size": len(content)},
            "layers": [layer.describe() for layer in layers],
        }
        manifest = json.dumps(document, separators=(",", ":")).encode()
        self._pieces[Digest.of(manifest)] = Piece.of(manifest)
        return Digest.of(manifest)

    def _layer(self, file: str, diff_id: Digest) -> _Layer:
        key = file, diff_id
        if key not in self._layers:
            self._layers[key] = self._read_layer(file, diff_id)
        return self._layers[key]

    def _read_layer(self, file: str, diff_id: Digest) -> _Layer:
        found = piece(self._source, file)
        if found is None:
            raise ClientError(f"{self.label}: the layer {file[:100]!r} is not in it")
        if next(found.chunks(), b"").startswith(_GZIP):
            digest, unpacked = _unpack(found, f"{self.label}: {file[:100]}", diff_id.algorithm)
            if unpacked != diff_id.hex:
                raise IntegrityError(f"{self.label}: the layer {file[:100]!r} is not {diff_id}, or damaged")
            layer = _Layer(digest, found.size, f"{LAYER}+gzip")
        else:
            layer = _Layer(diff_id, found.size, LAYER)  # proven when it is taken in
        self._pieces[layer.digest] = found
        return layer


def _unpack(found: Piece, label: str, algorithm: str) -> tuple[Digest, str]:
    """The digest of a compressed layer, and the hash of what it unpacks to. Raises ClientError."""
    packed, unpacked = hashlib.sha256(), hashlib.new(algorithm)
    allowed = max(MAX_UNPACKED, found.size * MAX_RATIO)
    try:
        for chunk in _inflate(found, packed):
            unpacked.update(chunk)
            allowed -= len(chunk)
            if allowed < 0:
                raise ClientError(f"{label} unpacks to more than {MAX_RATIO} times its size: it is refused")
    except zlib.error as error:
        raise ClientError(f"{label} is damaged: {error}") from None
    return Digest("sha256", packed.hexdigest()), unpacked.hexdigest()


def _inflate(found: Piece, packed: Any) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    for chunk in found.chunks():
        packed.update(chunk)
        rest = chunk
        while rest:
            if unpacker.eof:  # gzip files may follow one another
                unpacker = zlib.decompressobj(wbits=31)
            yield unpacker.decompress(rest, _STEP)
            rest = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    while not unpacker.eof and (last := unpacker.decompress(b"", _STEP)):
        yield last
    if not unpacker.eof:
        raise zlib.error("it is cut off")
