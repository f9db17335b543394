"""What an image is made of, and seeing to it that all of that is here."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from mitm_cache import parsing
from mitm_cache.cache.entry import Link
from mitm_cache.errors import MitmCacheError
from mitm_cache.filling.asking import Asking, Denied, refused
from mitm_cache.filling.contents import BLOBS, MANIFESTS, Contents, Place
from mitm_cache.filling.once import Once
from mitm_cache.filling.report import Progress
from mitm_cache.oci import contents as oci
from mitm_cache.oci.contents import Descriptor
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import is_foreign, is_schema_1
from mitm_cache.oci.reference import Tag

DEPTH = 4
"""How deep an index may hold indexes."""
UNKNOWN = "unknown/unknown"
"""The platform of what is no image but is said of one (BuildKit's attestations)."""
_FIRST = ("/arm64/v8", "/amd64/v1")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is wanted: these platforms, none named for all; `referrers`: what refers to an image too; `dry`: only
    tell what would be fetched; `parallel`: contents at a time."""

    platforms: frozenset[str] = frozenset()
    referrers: bool = True
    dry: bool = False
    parallel: int = 6

    def takes(self, child: Descriptor) -> bool:
        """Whether a manifest of an index is wanted."""
        if not self.platforms or not child.platform:
            return True
        if child.platform == UNKNOWN:
            return self.referrers
        return self.names(child.platform)

    def names(self, platform: str) -> bool:
        """Whether a platform is one of those that are wanted, or a variant of one."""
        return any(f"{_plain(platform)}/".startswith(f"{_plain(one)}/") for one in self.platforms)


def _plain(platform: str) -> str:
    """Without the variant that a platform has where none is told."""
    return next((platform[:-3] for first in _FIRST if platform.endswith(first)), platform)


def parse_platforms(text: str) -> frozenset[str]:
    """Platforms as in `linux/amd64,linux/arm/v7`; none for "". Raises ConfigError."""
    return parsing.platforms("--platform", [part.strip() for part in text.split(",") if part.strip()])


@dataclass(slots=True)
class Tree:
    """The manifests of an image, its index first, and its blobs; `bytes` came for it in this run."""

    manifests: list[Descriptor] = field(default_factory=list)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    bytes: int = 0
    is_new: bool = False
    """Whether a manifest of it was not here before."""
    platforms: set[str] = field(default_factory=set)
    """Those that its indexes have, wanted or not."""


class Trees:
    """Each content of a run is looked for once."""

    def __init__(self, contents: Contents, asking: Asking, extent: Extent, progress: Progress) -> None:
        self._contents = contents
        self._asking = asking
        self._extent = extent
        self._progress = progress
        self._manifests: Once[tuple[str, Digest], bytes] = Once()
        self._blobs: Once[tuple[str, Digest], None] = Once()
        self._slots = asyncio.Semaphore(extent.parallel)
        self._counted: set[Digest] = set()
        self._arrived: dict[Digest, int] = {}

    async def resolve(self, place: Place, tag: Tag) -> Descriptor | None:
        """What a tag is now; None where there is no such tag. Raises MitmCacheError."""
        call = self._asking.call(place.registry, place.repository, f"manifests/{tag}", method="HEAD")
        answer = await self._asking.exchange(call)
        if answer.status == 404:
            return None
        if answer.status in (401, 403):
            raise refused(call, answer, f"{place}:{tag}")
        named = answer.headers.get("docker-content-digest")
        if answer.ok and named and answer.length is not None:
            media_type = answer.headers.get("content-type") or ""
            if is_schema_1(media_type):
                raise Denied(f"{place}:{tag} is a manifest of schema 1, which is not cached")
            return Descriptor(Digest.parse(named), answer.length, media_type)
        # It names no digest, or takes no HEAD.
        call = self._asking.call(place.registry, place.repository, f"manifests/{tag}")
        answer = await self._asking.exchange(call)
        if not answer.ok:
            raise refused(call, answer, f"{place}:{tag}")
        media_type = answer.headers.get("content-type") or ""
        if is_schema_1(media_type):
            raise Denied(f"{place}:{tag} is a manifest of schema 1, which is not cached")
        link = Link(Digest.of(answer.body), media_type, len(answer.body))
        if not self._extent.dry:
            await self._contents.keep(place, media_type, answer.body)
        return Descriptor(link.digest, link.size, media_type)

    async def plan(self, place: Place, root: Descriptor) -> Tree:
        """All that belongs to a manifest; its manifests are here then. Raises MitmCacheError."""
        tree = Tree()
        await self._walk(place, [root], tree, DEPTH)
        there = tree.platforms - {"", UNKNOWN}
        if self._extent.platforms and there and not any(map(self._extent.names, there)):
            wanted = ", ".join(sorted(self._extent.platforms))
            raise Denied(f"{root.digest} has no manifest for {wanted}; it has {', '.join(sorted(there))}")
        for blob in tree.blobs.values():
            self._expect(blob)
        return tree

    async def _walk(self, place: Place, wanted: Iterable[Descriptor], tree: Tree, depth: int) -> None:
        for one in wanted:
            if any(one.digest == known.digest for known in tree.manifests):
                continue
            content = await self._manifest(place, one, tree)
            tree.manifests.append(one)
            found = oci.Contents.of(content)
            if found.manifests and not depth:
                raise Denied(f"{one.digest} is an index in an index, {DEPTH} times")
            tree.platforms |= {child.platform for child in found.manifests}
            children = [child for child in found.manifests if self._extent.takes(child)]
            tree.blobs |= {blob.digest: blob for blob in found.blobs if not is_foreign(blob.media_type)}
            await self._walk(place, children, tree, depth - 1)

    async def _manifest(self, place: Place, one: Descriptor, tree: Tree) -> bytes:
        async def work() -> bytes:
            self._expect(one)
            if self._extent.dry and not self._contents.has(one.digest):
                tree.is_new = True
                return await self._look(place, one)
            if self._extent.dry:
                return await self._contents.read(one.digest)
            if await self._contents.bring(place, one, MANIFESTS, self._note(tree, one.digest)):
                tree.is_new = True
            return await self._contents.read(one.digest)

        return await self._manifests.do((str(place), one.digest), work)

    async def _look(self, place: Place, one: Descriptor) -> bytes:
        call = self._asking.call(place.registry, place.repository, f"manifests/{one.digest}")
        answer = await self._asking.exchange(call)
        if not answer.ok:
            raise refused(call, answer, f"{place}@{one.digest}")
        return answer.body

    async def complete(self, place: Place, tree: Tree) -> None:
        """See to it that all blobs are here. Raises the first MitmCacheError after all were tried."""
        if self._extent.dry:
            return

        async def bring(blob: Descriptor) -> None:
            async with self._slots:
                await self._contents.bring(place, blob, BLOBS, self._note(tree, blob.digest))

        def once(blob: Descriptor) -> Awaitable[None]:
            return self._blobs.do((str(place), blob.digest), lambda: bring(blob))

        results = await asyncio.gather(*map(once, tree.blobs.values()), return_exceptions=True)
        if failed := [result for result in results if result is not None]:
            raise min(failed, key=lambda error: not isinstance(error, MitmCacheError))

    def _expect(self, one: Descriptor) -> None:
        """Count a content, once."""
        if one.digest in self._counted:
            return
        self._counted.add(one.digest)
        if self._contents.has(one.digest):
            self._progress.reused += 1
        else:
            self._progress.contents += 1
            self._progress.expected += one.size

    def _note(self, tree: Tree, digest: Digest) -> Callable[[int], None]:
        """Counts the bytes of a content once, though several repositories wait for it, or it is asked for again."""

        def note(reached: int) -> None:
            before = self._arrived.get(digest, 0)
            self._arrived[digest] = max(before, reached)
            count = self._arrived[digest] - before
            tree.bytes += count
            self._progress.arrived += count

        return note
