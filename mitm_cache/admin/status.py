"""The status document: what `mitm-cache status` shows of a service that runs."""

import asyncio
import os
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial

from mitm_cache.admin.facts import Facts
from mitm_cache.admin.health import Health, is_ready
from mitm_cache.admin.metrics import Numbers
from mitm_cache.ca import Description

MEASURED_SECONDS = 10.0
"""The blobs are counted again after this long, and after fifty times as long as counting took."""
PATIENCE = 1.0
"""Seconds that a document waits for the count; it goes on for the next one."""


class Status:
    """Puts the document together. Only it counts the blobs on disk, in a thread."""

    def __init__(self, facts: Facts, numbers: Numbers, health: Health, threads: Executor) -> None:
        self._facts = facts
        self._numbers = numbers
        self._health = health
        self._threads = threads
        self._measuring: asyncio.Future[tuple[int, int]] | None = None
        self._measured: dict[str, int] | None = None
        self._next = float("-inf")

    async def document(self) -> dict[str, object]:
        """The document, ready to be written as JSON."""
        facts, numbers = self._facts, self._numbers
        checks = await self._health.check()
        held = await self._measure()
        return {
            "running": True,
            "ready": is_ready(checks),
            "checks": checks,
            "version": facts.version,
            "pid": os.getpid(),
            "workers": list(facts.workers()),
            "started": facts.started.isoformat(timespec="seconds"),
            "data_dir": str(facts.layout.root),
            "listeners": [{"name": name, "address": host, "port": port} for name, host, port in facts.addresses],
            "blobs": held,
            "limit": facts.limit(),
            "requests": numbers.outcomes(),
            "in_flight": facts.in_flight(),
            "bytes": {
                "sent": sum(numbers.sent.values()),
                "received": sum(numbers.received.values()),
                "saved": numbers.saved,
                "pushed": numbers.pushed,
            },
            "uncached": numbers.uncached,
            "away": {
                name: {"seconds": round(time.monotonic() - absence.since), "reason": absence.reason}
                for name, absence in sorted(facts.away().items())
            },
            "quotas": {name: asdict(quota) for name, quota in numbers.quotas().items()},
            "evicted": {"count": numbers.evicted_blobs, "bytes": numbers.evicted_bytes},
            "ca": describe(facts.ca()),
        }

    async def _measure(self) -> dict[str, int] | None:
        """The blobs at the last count; None while the first one goes on."""
        loop = asyncio.get_running_loop()
        if self._measuring is None and loop.time() >= self._next:
            self._measuring = loop.run_in_executor(self._threads, self._facts.blobs.measure)
            self._measuring.add_done_callback(partial(self._note, loop.time()))
        if self._measuring is not None:
            await asyncio.wait([self._measuring], timeout=PATIENCE)
        return self._measured

    def _note(self, began: float, measuring: asyncio.Future[tuple[int, int]]) -> None:
        now = asyncio.get_running_loop().time()
        self._measuring = None
        self._next = now + max(MEASURED_SECONDS, 50 * (now - began))
        if not measuring.cancelled() and measuring.exception() is None:
            count, size = measuring.result()
            self._measured = {"count": count, "bytes": size}


def describe(described: Mapping[str, Description]) -> dict[str, object]:
    """The CA that signs; one that is to follow, or that it follows, is within it under its role."""
    rows: dict[str, dict[str, object]] = {
        role: {"not_after": each.not_after.isoformat(), "fingerprint": each.fingerprint}
        for role, each in described.items()
    }
    return rows.pop("signing") | rows
