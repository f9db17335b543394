"""One image: what its tag is, all that it is made of, and what refers to it."""

import asyncio
import json
import re
import time
from collections.abc import Iterator

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.core import Core
from mitm_cache.errors import MitmCacheError
from mitm_cache.filling.asking import ACCEPT, Asking, Denied, refused
from mitm_cache.filling.contents import Contents, Place
from mitm_cache.filling.once import Once
from mitm_cache.filling.report import MOVED, NEW, SAME, Failure, Filled, Progress
from mitm_cache.filling.trees import UNKNOWN, Extent, Tree, Trees
from mitm_cache.oci import contents as oci
from mitm_cache.oci.contents import Descriptor
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Reference, Tag
from mitm_cache.upstream.curl import Answer

LIST_SIZE = 8 << 20
"""Bytes of a list."""
MAX_PAGES = 1000
DEPTH = 3
"""How far signatures of signatures are followed."""
COSIGN = (".sig", ".att", ".sbom")
"""Tags of what cosign attaches are `sha256-<hex>` with one of these; without any it is the specification's own."""
_LINK = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')


class Images:
    """Fills the images of one run."""

    def __init__(self, core: Core, extent: Extent, progress: Progress) -> None:
        self._known = core.known
        self._leg = core.leg
        self._extent = extent
        self._progress = progress
        self._asking = Asking(core.leg)
        self._contents = Contents(core, self._asking)
        self._trees = Trees(self._contents, self._asking, extent, progress)
        self._planning = asyncio.Semaphore(max(4, extent.parallel))
        self._tags: Once[str, list[str]] = Once()
        self._referred: set[tuple[str, Digest]] = set()
        self._without_api: set[str] = set()

    async def fill(self, place: Place, reference: Reference, *, listed: bool) -> None:
        """See to it that an image is here; what fails is noted. `listed`: whether the tags of its repository are worth
        asking for, since many images of it are wanted."""
        name = f"{place}{'@' if isinstance(reference, Digest) else ':'}{reference}"
        try:
            asked = time.time()
            async with self._planning:
                root = await self._resolve(place, reference)
                tree = await self._trees.plan(place, root)
            before = self._tagged(place, reference) if isinstance(reference, Tag) else None
            await self._trees.complete(place, tree)
            if isinstance(reference, Tag):
                await self._tag(place, reference, tree.manifests[0], asked)
                state = NEW if before is None else SAME if before.digest == root.digest else MOVED
            else:
                state = NEW if tree.is_new or tree.bytes else SAME
            self._progress.filled.append(Filled(name, str(root.digest), state, tree.bytes))
            if self._extent.referrers:
                await self._refer(place, tree, listed=listed, depth=DEPTH)
        except MitmCacheError as error:
            self._progress.failures.append(Failure(name, error.message))

    async def _resolve(self, place: Place, reference: Reference) -> Descriptor:
        if isinstance(reference, Digest):
            held = self._known.links.holds(place.registry.name, place.repository, reference)
            return Descriptor(reference, held.size if held else 0, held.media_type if held else "")
        found = await self._trees.resolve(place, reference)
        if found is None:
            raise Denied(f"{place.registry.name} has no such tag, or none for this credential")
        return found

    def _tagged(self, place: Place, tag: Tag) -> Link | None:
        return self._known.links.tagged(place.registry.name, place.repository, tag, ACCEPT)

    async def _tag(self, place: Place, tag: Tag, root: Descriptor, asked: float) -> None:
        """Write down what a tag is, once all of it is here."""
        if self._extent.dry:
            return
        registry, repository = place.registry.name, place.repository
        held = self._known.links.holds(registry, repository, root.digest)
        link = Link(root.digest, held.media_type if held else root.media_type, root.size, Origin.SYNCED)

        def work() -> None:
            self._known.heard.age(registry, repository, tag, root.digest)
            self._known.links.give(registry, repository, tag, link)
            self._known.confirmed.keep(registry, repository, tag, ACCEPT, link, asked)

        await self._leg.run(work)

    async def tags(self, place: Place) -> list[str]:
        """All tags of a repository, asked for once. Raises MitmCacheError."""
        return await self._tags.do(str(place), lambda: self._list(place))

    async def _list(self, place: Place) -> list[str]:
        found: list[str] = []
        query = "n=1000"
        for _ in range(MAX_PAGES):
            call = self._asking.call(place.registry, place.repository, f"tags/list?{query}", limit=LIST_SIZE)
            answer = await self._asking.exchange(call)
            if not answer.ok:
                raise refused(call, answer, f"the tags of {place}")
            page = list(_names(answer.body))
            found += page
            query = _next(answer)
            if not query or not page:
                break
        return list(dict.fromkeys(found))

    async def _refer(self, place: Place, tree: Tree, *, listed: bool, depth: int) -> None:
        """See to it that what refers to these manifests is here. Raises MitmCacheError."""
        for one in tree.manifests:
            if depth and one.platform != UNKNOWN:
                key = (str(place), one.digest)
                # Nobody waits for what is looked at already: it may be waiting for us, since manifests may refer to
                # each other, and an image may have its own digest as a tag.
                if key not in self._referred:
                    self._referred.add(key)
                    await self._refer_to(place, one, listed, depth)

    async def _refer_to(self, place: Place, one: Descriptor, listed: bool, depth: int) -> None:
        schema = f"{one.digest.filename[:71]}"
        tags = [f"{schema}{suffix}" for suffix in COSIGN]
        if not await self._by_api(place, one, listed, depth):
            tags.append(schema)
        if listed:
            there = set(await self.tags(place))
            tags = [tag for tag in tags if tag in there]
        for tag in map(Tag, tags):
            asked = time.time()
            root = await self._trees.resolve(place, tag)
            if root is not None:
                tree = await self._bring(place, root, listed, depth)
                await self._tag(place, tag, tree.manifests[0], asked)

    async def _bring(self, place: Place, root: Descriptor, listed: bool, depth: int) -> Tree:
        tree = await self._trees.plan(place, root)
        await self._trees.complete(place, tree)
        await self._refer(place, tree, listed=listed, depth=depth - 1)
        return tree

    async def _by_api(self, place: Place, one: Descriptor, listed: bool, depth: int) -> bool:
        """What the registry lists as referrers; whether it has such lists (distribution-spec, "Listing Referrers")."""
        if place.registry.name in self._without_api:
            return False
        at = self._known.lists.now()
        answer = await self._referrers(place, one, "")
        if answer is None:
            return False
        pages = [answer]
        while (query := _next(pages[-1])) and len(pages) < MAX_PAGES:
            if (page := await self._referrers(place, one, f"?{query}")) is None:
                raise Denied(f"{place.registry.name} broke off its list of what refers to {place}@{one.digest}")
            pages.append(page)
        for page in pages:
            for found in oci.Contents.of(page.body).manifests:
                await self._bring(place, found, listed, depth)
        if not self._extent.dry and len(pages) == 1:
            registry, name = place.registry.name, f"referrers-{one.digest.filename}"
            body, media_type = answer.body, answer.headers.get("content-type") or ""
            await self._leg.run(lambda: self._known.lists.keep(registry, place.repository, name, body, media_type, at))
        return True

    async def _referrers(self, place: Place, one: Descriptor, query: str) -> Answer | None:
        """A page of such a list; None where the registry has none."""
        rest = f"referrers/{one.digest}{query}"
        answer = await self._asking.exchange(self._asking.call(place.registry, place.repository, rest, limit=LIST_SIZE))
        if answer.ok and _is_index(answer.body):
            return answer
        if answer.status not in (401, 403):  # which says something of the repository alone
            self._without_api.add(place.registry.name)
        return None


def _next(answer: Answer) -> str:
    """The query of a list's next page, "" after the last one."""
    link = _LINK.search(answer.headers.get("link") or "")
    return link[1].partition("#")[0].partition("?")[2] if link else ""


def _is_index(content: bytes) -> bool:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("manifests"), list | None)


def _names(content: bytes) -> Iterator[str]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return
    found = document.get("tags") if isinstance(document, dict) else None
    yield from (name for name in (found if isinstance(found, list) else []) if isinstance(name, str))
