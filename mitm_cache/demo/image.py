"""A generated image of several platforms and layers: the same arguments always give the same digests."""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mitm_cache.demo.content import Content, Memory

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

KIB, MIB = 1024, 1024 * 1024
PLATFORMS = ("linux/amd64", "linux/arm64")
SIZES = (256 * KIB, MIB, 4 * MIB, 8 * MIB)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or index: its exact bytes and their type."""

    media_type: str
    body: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.body).hexdigest()}"

    def descriptor(self, **more: object) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.body), **more}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as it is stored, and the digest of what it unpacks to."""

    content: Content
    diff_id: str


@dataclass(frozen=True, slots=True)
class Image:
    """All that a registry holds of one image; `index` is what its tag points to, `platforms` what the index lists."""

    index: Manifest
    platforms: Mapping[str, Manifest]
    blobs: Mapping[str, Content]

    def __repr__(self) -> str:
        return f"Image({self.index.digest[:19]}, {', '.join(self.platforms)}, {len(self.blobs)} blobs)"

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Every manifest by digest, the index included."""
        return {each.digest: each for each in (self.index, *self.platforms.values())}

    @property
    def size(self) -> int:
        """The bytes of all blobs together."""
        return sum(blob.size for blob in self.blobs.values())


def generate(*, sizes: Sequence[int] = SIZES, platforms: Iterable[str] = PLATFORMS, seed: str = "demo") -> Image:
    """An image with one layer of about each size in `sizes` for every platform; no two platforms share a layer."""
    return assemble(
        {
            platform: [layer(f"{seed} {platform} {number}", size) for number, size in enumerate(sizes, 1)]
            for platform in platforms
        }
    )


def layer(seed: str, size: int) -> Layer:
    """A tar.gz of one file with `size` bytes that do not compress."""
    data = random.Random(seed).randbytes(size)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(f"demo/{hashlib.sha256(seed.encode()).hexdigest()[:12]}.bin")
        member.size = size
        tar.addfile(member, io.BytesIO(data))
    # Level 0 stores: nothing is gained on random bytes, and the digests do not depend on a version of zlib.
    packed = gzip.compress(archive.getvalue(), compresslevel=0, mtime=0)
    return Layer(Memory(packed), f"sha256:{hashlib.sha256(archive.getvalue()).hexdigest()}")


def assemble(layers: Mapping[str, Sequence[Layer]]) -> Image:
    """The image whose platforms have these layers."""
    blobs: dict[str, Content] = {}
    platforms: dict[str, Manifest] = {}
    for platform, stack in layers.items():
        config = Memory(_json(_config(platform, stack)))
        described = []
        for media_type, content in [(CONFIG, config), *((LAYER, each.content) for each in stack)]:
            digest = content.digest
            blobs[digest] = content
            described.append({"mediaType": media_type, "digest": digest, "size": content.size})
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        platforms[platform] = Manifest(MANIFEST, _json(document))
    listed = [each.descriptor(platform=_platform(name)) for name, each in platforms.items()]
    index = Manifest(INDEX, _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}))
    return Image(index, platforms, blobs)


def _config(platform: str, stack: Sequence[Layer]) -> dict[str, object]:
    created = "1970-01-01T00:00:00Z"
    return {
        "created": created,
        **_platform(platform),
        "config": {"Cmd": ["/demo"]},
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in stack]},
        "history": [{"created": created, "created_by": "mitm-cache demo"} for _ in stack],
    }


def _platform(name: str) -> dict[str, str]:
    system, architecture, *variant = name.split("/")
    return {"os": system, "architecture": architecture} | ({"variant": variant[0]} if variant else {})


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
