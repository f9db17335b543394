"""One filling, from names to what was done: a core without listeners, beside the service or without it."""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack

from mitm_cache.cache.layout import Layout
from mitm_cache.config import Config
from mitm_cache.core import Core
from mitm_cache.errors import ClientError, MitmCacheError
from mitm_cache.filling.contents import Place
from mitm_cache.filling.images import Images
from mitm_cache.filling.listed import Choice, Listed
from mitm_cache.filling.report import Failure, Progress
from mitm_cache.filling.sources import prepare
from mitm_cache.filling.trees import Extent
from mitm_cache.journal import Event, Journal
from mitm_cache.oci.reference import Reference, Repository, Tag
from mitm_cache.registries import Known
from mitm_cache.tasks import Tasks

ACCOUNT_SECONDS = 5.0
MANY = 3
"""With more images of one repository its tags are asked for, to know which of them are signatures."""


async def fill(
    config: Config, layout: Layout, listed: Listed, extent: Extent, begin: Callable[[Progress], object] = lambda _: None
) -> Progress:
    """Fill the cache with what is listed. What fails is in the result; the rest is done.

    `begin` is given the counts as they will grow. Raises MitmCacheError where nothing can be begun.
    """
    stopping = threading.Event()
    try:
        prepared = await asyncio.to_thread(prepare, config, listed, layout.run, dict(os.environ), stopping.is_set)
    except asyncio.CancelledError:
        stopping.set()  # a thread cannot be cancelled, and the process would wait for it
        raise
    progress = Progress()
    begin(progress)
    journal = Journal()
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(Tasks())
        core = Core(
            prepared.config,
            layout,
            listeners=(),
            start=tasks.attempt,
            journal=journal,
            stopping=stopping,
            first=False,
            credentials=prepared.credentials,
        )
        stack.callback(core.close)
        if not extent.dry:
            tasks.start(core.sweep_regularly())
            tasks.start(_account(journal, progress))
        images = Images(core, extent, progress)
        wanted = _Wanted(prepared.config.known, images, progress)
        for image in listed.images:
            wanted.add(wanted.place(image.registry, image.repository), image.reference)
        await asyncio.gather(*map(wanted.choose, listed.choices))
        progress.listing = False
        async with asyncio.TaskGroup() as group:
            for place, reference in wanted.all():
                group.create_task(images.fill(place, reference, listed=wanted.count[str(place)] > MANY))
    return progress


class _Wanted:
    """Which images there are, each once."""

    def __init__(self, known: Known, images: Images, progress: Progress) -> None:
        self._known = known
        self._images = images
        self._progress = progress
        self._seen: dict[tuple[str, str], tuple[Place, Reference]] = {}
        self.count: Counter[str] = Counter()

    def place(self, host: str, repository: Repository) -> Place:
        registry = self._known.find(host)
        assert registry is not None
        return Place(registry, repository)

    def add(self, place: Place, reference: Reference) -> None:
        key = (str(place), str(reference))
        if key not in self._seen:
            self._seen[key] = (place, reference)
            self.count[str(place)] += 1
            self._progress.images += 1

    async def choose(self, choice: Choice) -> None:
        """Add the tags that are chosen; that there are none is a failure: somebody expects them."""
        place = self.place(choice.registry, choice.repository)
        try:
            tags = [tag for tag in await self._images.tags(place) if choice.takes(tag)]
        except MitmCacheError as error:
            self._progress.failures.append(Failure(str(place), error.message))
            return
        if not tags:
            self._progress.failures.append(Failure(str(place), f"it has none of: {choice.why}"))
        for tag in tags:
            try:
                self.add(place, Tag.parse(tag))
            except ClientError:
                self._progress.failures.append(Failure(str(place), f"{tag[:40]!r} is no tag that could be asked for"))

    def all(self) -> list[tuple[Place, Reference]]:
        return list(self._seen.values())


async def _account(journal: Journal, progress: Progress) -> None:
    """Tell the core what has come, so that it sweeps in time."""
    told = 0
    while True:
        await asyncio.sleep(ACCOUNT_SECONDS)
        told, arrived = progress.arrived, progress.arrived - told
        if arrived:
            event = Event(time=time.time(), listener="", client="", outcome="MISS", bytes_in=arrived)
            journal.record(event)
