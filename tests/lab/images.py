"""Test images with the same digests everywhere, made by the standard library; the amd64 ones run (busybox).

A layer is one pseudo-random file in a gzip of stored blocks, so it is as large as it is said to be and quick to make.
"""

import gzip
import hashlib
import io
import json
import random
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

_OCI = {
    "manifest": "application/vnd.oci.image.manifest.v1+json",
    "index": "application/vnd.oci.image.index.v1+json",
    "config": "application/vnd.oci.image.config.v1+json",
    "layer": "application/vnd.oci.image.layer.v1.tar+gzip",
}
_DOCKER = {
    "manifest": "application/vnd.docker.distribution.manifest.v2+json",
    "index": "application/vnd.docker.distribution.manifest.list.v2+json",
    "config": "application/vnd.docker.container.image.v1+json",
    "layer": "application/vnd.docker.image.rootfs.diff.tar.gzip",
}
KIB, MIB = 1 << 10, 1 << 20
ALL = ("linux/amd64", "linux/arm64", "linux/arm/v7")
_DATE = "2024-01-01T00:00:00Z"
BUSYBOX = Path("/bin/busybox")

Descriptor = dict[str, object]


@dataclass(frozen=True)
class Recipe:
    """What an image is made of."""

    name: str
    layers: tuple[int, ...]
    platforms: tuple[str, ...] = ("linux/amd64",)
    docker: bool = False


TINY = Recipe("tiny:1", (KIB, 10 * KIB, 100 * KIB), ALL)
TINY_DOCKER = Recipe("tiny:docker", (KIB, 10 * KIB, 100 * KIB), ALL, docker=True)
MANY = Recipe("many:1", (64 * KIB,) * 12)
APP = Recipe("app:1", (5 * MIB, 20 * MIB, 40 * MIB))


@dataclass(frozen=True)
class Image:
    """An image on disk, as skopeo reads it."""

    recipe: Recipe
    source: str
    digest: str
    manifests: dict[str, str] = field(default_factory=dict)  # platform to digest
    configs: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, frozenset[str]] = field(default_factory=dict)


class _Hashed(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, under: io.RawIOBase | gzip.GzipFile | io.BufferedIOBase) -> None:
        self._under, self.hash, self.size = under, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._under.write(data)
        self.hash.update(data)
        self.size += len(data)
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self.hash.hexdigest()}"


class _Random(io.RawIOBase):
    """A number of bytes that depend on the seed alone."""

    def __init__(self, seed: str, size: int) -> None:
        self._random, self._left = random.Random(seed), size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        self._left -= size
        return self._random.randbytes(size)


class _Kitchen:
    """Makes one image in a folder of blobs."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder, self.types = recipe, folder, _DOCKER if recipe.docker else _OCI
        self.blobs = folder / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)

    def put(self, kind: str, document: object) -> Descriptor:
        body = json.dumps(document, indent=2).encode()
        digest = hashlib.sha256(body).hexdigest()
        (self.blobs / digest).write_bytes(body)
        return {"mediaType": self.types[kind], "digest": f"sha256:{digest}", "size": len(body)}

    def layer(self, index: int, platform: str) -> tuple[Descriptor, str]:
        """One layer and its uncompressed digest. The first is a platform's own, the others are shared, as is usual."""
        size = self.recipe.layers[index]
        seed = f"{self.recipe.name}/{'' if index else platform}/{index}/{size}"
        path = self.folder / "layer"
        with path.open("wb") as file:
            packed = _Hashed(file)
            with gzip.GzipFile(filename="", mode="wb", compresslevel=0, fileobj=packed, mtime=0) as zipped:
                unpacked = _Hashed(zipped)
                with tarfile.open(fileobj=unpacked, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
                    if index == 0 and platform == "linux/amd64" and BUSYBOX.exists():
                        self._busybox(tar)
                    entry = tarfile.TarInfo(f"data-{index:03d}.bin")
                    entry.size = size
                    tar.addfile(entry, _Random(seed, size))
        path.rename(self.blobs / packed.hash.hexdigest())
        return {"mediaType": self.types["layer"], "digest": packed.digest, "size": packed.size}, unpacked.digest

    @staticmethod
    def _busybox(tar: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, BUSYBOX.stat().st_size
        with BUSYBOX.open("rb") as file:
            tar.addfile(entry, file)

    def platform(self, platform: str) -> tuple[Descriptor, Descriptor, list[Descriptor]]:
        """The manifest of one platform, its config and its layers."""
        system, architecture, *variant = platform.split("/")
        where = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        made = [self.layer(index, platform) for index in range(len(self.recipe.layers))]
        document = {
            **where,
            "created": _DATE,
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/busybox", "echo", f"{self.recipe.name} runs"]},
            "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in made]},
            "history": [{"created": _DATE, "created_by": f"layer {index}"} for index in range(len(made))],
        }
        config = self.put("config", document)
        layers = [layer for layer, _ in made]
        body = {"schemaVersion": 2, "mediaType": self.types["manifest"], "config": config, "layers": layers}
        return {**self.put("manifest", body), "platform": where}, config, layers

    def cook(self) -> Image:
        made = {platform: self.platform(platform) for platform in self.recipe.platforms}
        manifests = [manifest for manifest, _, _ in made.values()]
        top = {key: manifests[0][key] for key in ("mediaType", "digest", "size")}
        if len(manifests) > 1:
            top = self.put("index", {"schemaVersion": 2, "mediaType": self.types["index"], "manifests": manifests})
        source = self._folder_of_files(top, manifests) if self.recipe.docker else self._layout(top)
        return Image(
            self.recipe,
            source,
            str(top["digest"]),
            {platform: str(manifest["digest"]) for platform, (manifest, _, _) in made.items()},
            {platform: str(config["digest"]) for platform, (_, config, _) in made.items()},
            {
                platform: frozenset(str(one["digest"]) for one in (config, *layers))
                for platform, (_, config, layers) in made.items()
            },
        )

    def _layout(self, top: Descriptor) -> str:
        named = {**top, "annotations": {"org.opencontainers.image.ref.name": "it"}}
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return f"oci:{self.folder}:it"

    def _folder_of_files(self, top: Descriptor, manifests: list[Descriptor]) -> str:
        # skopeo takes Docker's media types from its own `dir:` form only.
        for path in self.blobs.iterdir():
            (self.folder / path.name).hardlink_to(path)
        for manifest in manifests:
            name = str(manifest["digest"]).removeprefix("sha256:")
            (self.folder / f"{name}.manifest.json").hardlink_to(self.blobs / name)
        (self.folder / "manifest.json").hardlink_to(self.blobs / str(top["digest"]).removeprefix("sha256:"))
        (self.folder / "version").write_text("Directory Transport Version: 1.1\n")
        return f"dir:{self.folder}"


def make(recipe: Recipe, folder: Path) -> Image:
    """Make an image in a new folder."""
    return _Kitchen(recipe, folder).cook()
