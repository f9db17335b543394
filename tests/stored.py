"""A data directory with images in it, as pulls would have left it; ages are set, which pulls cannot.

with Stored(tmp_path / "data") as stored:
    stored.put("team/app", "1", generate(sizes=[KIB]), age=9 * DAY)
"""

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Self

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.catalog import Cached, Catalog
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.index import Index
from mitm_cache.cache.layout import open_layout
from mitm_cache.cache.links import Links
from mitm_cache.demo.image import Image
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST, Accept
from mitm_cache.oci.reference import Repository, Tag

HOUR, DAY = 3600.0, 86400.0
REGISTRY = "quay.io"
ACCEPT = Accept(OCI_INDEX, OCI_MANIFEST)


class Stored:
    """The directory, while it is being filled; a context manager."""

    def __init__(self, root: Path) -> None:
        self.layout = open_layout(root)
        self.root = root
        self.index = Index(self.layout.index)
        self.links = Links(self.layout.links, self.index)
        self.blobs = Blobs(self.layout.blobs)

    def put(
        self,
        name: str,
        tag: str | None,
        image: Image,
        *,
        age: float = HOUR,
        platforms: Collection[str] | None = None,
        origin: Origin = Origin.PULLED,
        registry: str = REGISTRY,
    ) -> Digest:
        """An image, last used `age` seconds ago, of these platforms or of all; without a tag it is held only."""
        repository = Repository(name)
        top = Digest.parse(image.index.digest)
        manifests = [image.index, *(each for key, each in image.platforms.items() if key in (platforms or key))]
        for manifest in manifests:
            link = Link(Digest.parse(manifest.digest), manifest.media_type, len(manifest.body), origin)
            self._keep(registry, repository, link, manifest.body, age)
        for digest, content in image.blobs.items():
            if any(digest.encode() in manifest.body for manifest in manifests):
                link = Link(Digest.parse(digest), "application/octet-stream", content.size, origin)
                self._keep(registry, repository, link, b"".join(content.chunks(0, content.size)), age)
        if tag is not None:
            link = Link(top, image.index.media_type, len(image.index.body), origin)
            self.links.tag(registry, repository, Tag(tag), ACCEPT, link)
        return top

    def _keep(self, registry: str, repository: Repository, link: Link, content: bytes, age: float) -> None:
        self.links.hold(registry, repository, link)
        if not self.blobs.path(link.digest).exists():
            self.keep(content)
        self.use(link.digest, age)

    def keep(self, content: bytes) -> Digest:
        """A blob, without a link."""
        digest = Digest.of(content)
        draft = self.root / "draft"
        draft.write_bytes(content)
        self.blobs.adopt(digest, draft)
        return digest

    def use(self, digest: Digest, age: float) -> None:
        """A blob was last used so many seconds ago."""
        at = time.time() - age
        os.utime(self.blobs.path(digest), (at, at))

    def find(self, name: str) -> Cached:
        """The one image of a name, such as `quay.io/team/app:1`."""
        (image,) = [each for each in Catalog(self.root).images if str(each) == name]
        return image

    def names(self) -> list[str]:
        """Every image's."""
        return [str(image) for image in Catalog(self.root).images]

    def size(self) -> int:
        """Bytes of all blobs, by the disk."""
        return sum(path.stat().st_size for path in self.layout.blobs.glob("*/*/*"))

    def lose_index(self) -> None:
        """Throw the index away, and begin another one."""
        self.index.close()
        shutil.rmtree(self.layout.index)
        self.index = Index(self.layout.index)
        self.links = Links(self.layout.links, self.index)

    def close(self) -> None:
        """Let go of the index."""
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
