"""The pages of the admin listener: probes, numbers, and the status document."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from mitm_cache.admin.facts import Facts
from mitm_cache.admin.health import Health, is_ready
from mitm_cache.admin.metrics import Metrics, Numbers
from mitm_cache.admin.server import Ask, Page, document
from mitm_cache.admin.status import Status


class Pages:
    """What there is to see."""

    def __init__(self, facts: Facts, numbers: Numbers) -> None:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="admin")
        self._facts = facts
        self._health = Health(facts, self._threads)
        self._status = Status(facts, numbers, self._health, self._threads)
        self._metrics = Metrics(numbers, facts)
        self.by_path: Mapping[str, Ask] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._scrape,
            "/status": self._describe,
        }

    def close(self) -> None:
        """Let the threads go; one that hangs on the disk is not waited for here."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _healthz(self, headers: Mapping[str, str]) -> Page:
        await self._facts.freshen()
        alive = self._facts.alive()
        return document({"alive": alive}, 200 if alive else 503)

    async def _readyz(self, headers: Mapping[str, str]) -> Page:
        await self._facts.freshen()
        checks = await self._health.check()
        ready = is_ready(checks)
        return document({"ready": ready, "checks": checks}, 200 if ready else 503)

    async def _scrape(self, headers: Mapping[str, str]) -> Page:
        await self._facts.freshen()
        return Page(200, *self._metrics.render(headers.get("accept") or ""))

    async def _describe(self, headers: Mapping[str, str]) -> Page:
        await self._facts.freshen()
        return document(await self._status.document())
