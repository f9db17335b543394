"""Numbers since the start, from the journal's events, and their form for Prometheus.

The registry of a sample is one that is configured, or `other`: nothing that a client chooses becomes a label.
"""

import platform
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mitm_cache.admin.facts import Facts
from mitm_cache.cache.evict import Swept
from mitm_cache.cache.synced import read_synced
from mitm_cache.journal import Event
from mitm_cache.registries import LOCAL
from mitm_cache.upstream.quota import Quota
from mitm_cache.wire.message import UNCACHED

FROM_THE_CACHE = ("HIT", "JOINED", "REVALIDATED", "STALE")
"""Outcomes whose bytes were not fetched for this client."""
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Counts:
    """What `Numbers` has counted, to be sent and added up: labels are joined by spaces, which none of them holds."""

    requests: Mapping[str, int] = field(default_factory=dict)
    sent: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    pushed: int = 0
    stored: int | None = None
    swept: float = 0.0
    evicted_blobs: int = 0
    evicted_bytes: int = 0
    uncached: int = 0
    quotas: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The fields of each registry's `Quota`."""

    def __add__(self, other: "Counts") -> "Counts":
        last = self if self.swept >= other.swept else other
        return Counts(
            Counter(self.requests) + Counter(other.requests),
            Counter(self.sent) + Counter(other.sent),
            Counter(self.received) + Counter(other.received),
            self.pushed + other.pushed,
            last.stored,
            last.swept,
            self.evicted_blobs + other.evicted_blobs,
            self.evicted_bytes + other.evicted_bytes,
            self.uncached + other.uncached,
            dict(sorted([*self.quotas.items(), *other.quotas.items()], key=lambda item: item[1][-1])),
        )


class Numbers:
    """A sink of the journal that counts. Plain numbers: a small HIT takes half a millisecond in all."""

    def __init__(self, registries: Collection[str]) -> None:
        """`registries`: the names that are counted apart."""
        self._registries = frozenset(registries)
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.sent: Counter[tuple[str, str]] = Counter()
        self.received: Counter[str] = Counter()
        self.pushed = 0
        """Bytes from clients to the local registry, of which nothing came from upstream."""
        self.stored: int | None = None
        self._swept = 0.0
        self.evicted_blobs = 0
        self.evicted_bytes = 0
        self.uncached = 0
        self.quotas: Callable[[], Mapping[str, Quota]] = dict
        """What registries have said of their quotas."""

    def __call__(self, event: Event) -> None:
        registry = event.registry if event.registry in self._registries else _OTHER
        status = f"{event.status // 100}xx" if event.status else "none"
        self.requests[registry, event.outcome, status] += 1
        if event.bytes_out:
            self.sent[registry, event.outcome] += event.bytes_out
        if event.reason.startswith(UNCACHED):
            self.uncached += 1
        if event.registry == LOCAL:
            self.pushed += event.bytes_in
        elif event.bytes_in:
            self.received[registry] += event.bytes_in

    def sweep(self, swept: Swept) -> None:
        """Note what a sweep found and removed."""
        self.stored = swept.total - swept.freed
        self._swept = time.monotonic()  # of the machine: that of other processes goes by it too
        self.evicted_blobs += swept.removed
        self.evicted_bytes += swept.freed

    def counts(self) -> Counts:
        """All of it, as it is now."""
        return Counts(
            {" ".join(labels): count for labels, count in self.requests.items()},
            {" ".join(labels): count for labels, count in self.sent.items()},
            dict(self.received),
            self.pushed,
            self.stored,
            self._swept,
            self.evicted_blobs,
            self.evicted_bytes,
            self.uncached,
            {name: astuple(quota) for name, quota in self.quotas().items()},
        )

    def set(self, counts: Counts) -> None:
        """Be what other processes have counted."""
        self.requests.clear()
        for labels, count in counts.requests.items():
            registry, outcome, status = labels.split(" ")
            self.requests[registry, outcome, status] = count
        self.sent.clear()
        for labels, count in counts.sent.items():
            registry, outcome = labels.split(" ")
            self.sent[registry, outcome] = count
        self.received, self.pushed = Counter(counts.received), counts.pushed
        self.stored, self._swept = counts.stored, counts.swept
        self.evicted_blobs, self.evicted_bytes = counts.evicted_blobs, counts.evicted_bytes
        self.uncached = counts.uncached
        quotas = {name: Quota(*fields) for name, fields in counts.quotas.items()}
        self.quotas = lambda: quotas

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

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and content, in the form that an Accept header asks for."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        return content_type, encode(self._collectors)


class _Service(Collector):
    def __init__(self, numbers: Numbers, facts: Facts) -> None:
        self._numbers = numbers
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        yield from self._traffic()
        yield from self._store()
        yield from self._synced()
        now = "Requests that have not had their last byte yet"
        yield GaugeMetricFamily("mitm_cache_in_flight", now, self._facts.in_flight())
        until = "When each CA in use ends, in seconds of the epoch"
        ends = GaugeMetricFamily("mitm_cache_ca_expiry_timestamp_seconds", until, labels=("role",))
        for role, description in self._facts.ca().items():
            ends.add_metric((role,), description.not_after.timestamp())
        yield ends
        what = {"version": self._facts.version, "python": platform.python_version()}
        yield InfoMetricFamily("mitm_cache_build", "What runs", what)
        yield GaugeMetricFamily("mitm_cache_workers", "Processes that serve", len(self._facts.workers()))
        replaced = "Processes that ended by themselves and got a replacement"
        yield CounterMetricFamily("mitm_cache_workers_replaced", replaced, self._facts.replaced())
        yield from self._facts.usage().metrics(self._facts.started.timestamp())

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
        pushed = "Bytes of bodies from clients to the local registry"
        yield from (requests, sent, received, CounterMetricFamily("mitm_cache_pushed_bytes", pushed, numbers.pushed))
        left = GaugeMetricFamily("mitm_cache_upstream_quota_left", "Pulls left, as was last said", labels=("registry",))
        limit = GaugeMetricFamily("mitm_cache_upstream_quota_limit", "Of how many", labels=("registry",))
        for registry, quota in sorted(numbers.quotas().items()):
            left.add_metric((registry,), quota.left)
            if quota.limit is not None:
                limit.add_metric((registry,), quota.limit)
        yield from (left, limit)
        who = "1 for each registry or token host that is away"
        away = GaugeMetricFamily("mitm_cache_upstream_away", who, labels=("host",))
        for name in sorted(self._facts.away()):
            away.add_metric((name,), 1)
        yield away

    def _synced(self) -> Iterator[Metric]:
        when = GaugeMetricFamily(
            "mitm_cache_sync_last_success_timestamp_seconds",
            "When a scheduled filling last ended in which nothing failed, in seconds of the epoch",
            labels=("file",),
        )
        failed = GaugeMetricFamily(
            "mitm_cache_sync_failures", "What failed in the last scheduled filling", labels=("file",)
        )
        for synced in read_synced(self._facts.layout.run):
            when.add_metric((synced.file,), synced.succeeded)
            failed.add_metric((synced.file,), synced.failed)
        if when.samples:
            yield from (when, failed)

    def _store(self) -> Iterator[Metric]:
        numbers = self._numbers
        if numbers.stored is not None:
            yield GaugeMetricFamily("mitm_cache_blobs_bytes", "Bytes of blobs after the last sweep", numbers.stored)
        yield GaugeMetricFamily("mitm_cache_blobs_limit_bytes", "What cache.max_size allows", self._facts.limit())
        yield CounterMetricFamily("mitm_cache_uncached", "Pulls of which the disk did not take all", numbers.uncached)
        yield CounterMetricFamily("mitm_cache_evicted_blobs", "Blobs that left for room", numbers.evicted_blobs)
        yield CounterMetricFamily(
            "mitm_cache_evicted_bytes", "Bytes of blobs that left for room", numbers.evicted_bytes
        )
