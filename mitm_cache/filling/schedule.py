"""Fillings that the service does by itself: one process of it, one after the other; no error ends the service."""

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mitm_cache.cache.layout import Layout
from mitm_cache.cache.synced import Synced, forget_synced
from mitm_cache.config import Config
from mitm_cache.errors import MitmCacheError
from mitm_cache.filling.listed import read_list
from mitm_cache.filling.run import fill
from mitm_cache.filling.trees import Extent
from mitm_cache.parsing import SyncRule

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How often it is looked whether something is due, and whether the process that does it is gone."""
TOLD = 20
"""So many failures of one run are logged."""
RETRY_SECONDS = 900.0
"""After a run in which something failed it is tried again by then at the latest."""


class Schedule:
    """The `[[sync]]` of a configuration."""

    def __init__(self, config: Config, layout: Layout, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._layout = layout
        self._clock = clock

    async def run(self) -> None:
        """Do what is due, for as long as this runs."""
        forget_synced(self._layout.run, {str(rule.file) for rule in self._config.sync})
        while self._config.sync:
            with self._alone() as alone:
                while alone:
                    for rule in self._config.sync:
                        if self._is_due(rule):
                            await self._sync(rule)
                    await asyncio.sleep(LOOK_SECONDS)
            await asyncio.sleep(LOOK_SECONDS)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this process is the one that does it."""
        try:
            lock = os.open(self._layout.run / "sync.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            logger.warning("sync: %s cannot be locked: %s", self._layout.run, error.strerror)
            yield False
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            os.close(lock)

    def _is_due(self, rule: SyncRule) -> bool:
        last = Synced.last(self._layout.run, str(rule.file))
        pause = min(rule.every, RETRY_SECONDS) if last.failed or not last.finished else rule.every
        # What was started and never ended, its process did not survive: it goes on where it was.
        began = last.started if last.finished >= last.started else 0.0
        return not 0 <= self._clock() - began < pause

    async def _sync(self, rule: SyncRule) -> None:
        file = str(rule.file)
        last = Synced.last(self._layout.run, file)
        try:
            begun = Synced(file, self._clock(), last.finished, last.succeeded, last.images, last.failed, last.fetched)
            begun.keep(self._layout.run)
            try:
                extent = Extent(rule.platforms)
                progress = await fill(self._config, self._layout, read_list(rule.file), extent)
            except MitmCacheError as error:
                begun.ended(self._clock(), images=0, failed=1, fetched=0).keep(self._layout.run)
                logger.warning("sync of %s: %s", file, error.message)
                return
            failed = len(progress.failures)
            ended = begun.ended(self._clock(), images=len(progress.filled), failed=failed, fetched=progress.arrived)
            ended.keep(self._layout.run)
        except MitmCacheError as error:
            logger.warning("sync of %s: %s", file, error.message)
            return
        logger.warning("sync of %s: %s", file, progress.summary())
        for failure in progress.failures[:TOLD]:
            logger.warning("sync of %s: %s: %s", file, failure.image, failure.error)
