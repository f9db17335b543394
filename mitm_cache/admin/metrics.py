"""Numbers since the start, from the journal's events, and their form for Prometheus.

The registry of a sample is one that is configured, or `other`: nothing that a client chooses becomes a label.
"""

import platform
from collections import Counter
from collections.abc import Collection, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mitm_cache.admin.facts import Facts
from mitm_cache.cache.evict import Swept
from mitm_cache.journal import Event

FROM_THE_CACHE = ("HIT", "JOINED", "REVALIDATED", "STALE")
"""Outcomes whose bytes were not fetched for this client."""
_OTHER = "other"


class Numbers:
    """A sink of the journal that counts. Plain numbers: a small HIT takes half a millisecond in all."""

    def __init__(self, registries: Collection[str]) -> None:
        """`registries`: the names that are counted apart."""
        self._registries = frozenset(registries)
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.sent: Counter[tuple[str, str]] = Counter()
        self.received: Counter[str] = Counter()
        self.stored: int | None = None
        self.evicted_blobs = 0
        self.evicted_bytes = 0

    def __call__(self, event: Event) -> None:
        registry = event.registry if event.registry in self._registries else _OTHER
        status = f"{event.status // 100}xx" if event.status else "none"
        self.requests[registry, event.outcome, status] += 1
        if event.bytes_out:
            self.sent[registry, event.outcome] += event.bytes_out
        if event.bytes_in:
            self.received[registry] += event.bytes_in

    def sweep(self, swept: Swept) -> None:
        """Note what a sweep found and removed."""
        self.stored = swept.total - swept.freed
        self.evicted_blobs += swept.removed
        self.evicted_bytes += swept.freed

    def outcomes(self) -> dict[str, int]:
        """Requests by outcome."""
        total: Counter[str] = Counter()
        for (_, outcome, _), count in self.requests.items():
            total[outcome] += count
        return dict(sorted(total.items()))

    @property
    def saved(self) -> int:
        """Bytes that clients got and upstream was not asked for."""
        return sum(count for (_, outcome), count in self.sent.items() if outcome in FROM_THE_CACHE)


class Metrics:
    """One scrape after another; two services in a process share nothing."""

    def __init__(self, numbers: Numbers, facts: Facts) -> None:
        self._collectors = CollectorRegistry(auto_describe=False)
        self._collectors.register(_Service(numbers, facts))
        ProcessCollector(registry=self._collectors)

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and content, in the form that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._collectors)


class _Service(Collector):
    def __init__(self, numbers: Numbers, facts: Facts) -> None:
        self._numbers = numbers
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        yield from self._traffic()
        yield from self._store()
        now = "Requests that have not had their last byte yet"
        yield GaugeMetricFamily("mitm_cache_in_flight", now, self._facts.in_flight())
        until = "When each CA in use ends, in seconds of the epoch"
        ends = GaugeMetricFamily("mitm_cache_ca_expiry_timestamp_seconds", until, labels=("role",))
        for role, description in self._facts.ca().items():
            ends.add_metric((role,), description.not_after.timestamp())
        yield ends
        what = {"version": self._facts.version, "python": platform.python_version()}
        yield InfoMetricFamily("mitm_cache_build", "What runs", what)

    def _traffic(self) -> Iterator[Metric]:
        numbers = self._numbers
        requests = CounterMetricFamily(
            "mitm_cache_requests",
            "Requests that have ended; the status is its class, and with ERROR 2xx is a body that was cut",
            labels=("registry", "outcome", "status"),
        )
        for labels, count in sorted(numbers.requests.items()):
            requests.add_metric(labels, count)
        sent = CounterMetricFamily(
            "mitm_cache_sent_bytes", "Bytes of bodies to clients", labels=("registry", "outcome")
        )
        for labels_of_sent, count in sorted(numbers.sent.items()):
            sent.add_metric(labels_of_sent, count)
        received = CounterMetricFamily(
            "mitm_cache_received_bytes", "Bytes of bodies from upstream", labels=("registry",)
        )
        for registry, count in sorted(numbers.received.items()):
            received.add_metric((registry,), count)
        yield from (requests, sent, received)

    def _store(self) -> Iterator[Metric]:
        numbers = self._numbers
        if numbers.stored is not None:
            yield GaugeMetricFamily("mitm_cache_blobs_bytes", "Bytes of blobs after the last sweep", numbers.stored)
        yield GaugeMetricFamily("mitm_cache_blobs_limit_bytes", "What cache.max_size allows", self._facts.limit())
        yield CounterMetricFamily("mitm_cache_evicted_blobs", "Blobs that left for room", numbers.evicted_blobs)
        yield CounterMetricFamily(
            "mitm_cache_evicted_bytes", "Bytes of blobs that left for room", numbers.evicted_bytes
        )
