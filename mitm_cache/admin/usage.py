"""What processes use of the machine, by what the kernel tells of them (proc(5))."""

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of CPU that were used, and bytes and descriptors that are; `most` descriptors there may be."""

    cpu: float = 0.0
    resident: int = 0
    virtual: int = 0
    descriptors: int = 0
    most: int = 0

    @classmethod
    def own(cls) -> Self:
        """Of this process."""
        cpu, (most, _) = time.process_time(), resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            with open("/proc/self/statm") as file:
                virtual, resident, *_ = map(int, file.read().split())
            descriptors = len(os.listdir("/proc/self/fd"))
        except OSError:  # no descriptor is left to look with: what is told besides must not end for it
            return cls(cpu, descriptors=most, most=most)
        return cls(cpu, resident * _PAGE, virtual * _PAGE, descriptors, most)

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.cpu + other.cpu,
            self.resident + other.resident,
            self.virtual + other.virtual,
            self.descriptors + other.descriptors,
            self.most + other.most,
        )

    def metrics(self, started: float) -> Iterator[Metric]:
        """Under the names that Prometheus' own collector has for a process; `started` in seconds of the epoch."""
        cpu = "User and system CPU time of all processes of the service, in seconds"
        yield CounterMetricFamily("process_cpu_seconds", cpu, self.cpu)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory of all of them", self.resident)
        yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory of all of them", self.virtual)
        yield GaugeMetricFamily("process_open_fds", "Open descriptors of all of them", self.descriptors)
        yield GaugeMetricFamily("process_max_fds", "Descriptors that all of them may have", self.most)
        yield GaugeMetricFamily("process_start_time_seconds", "When the service was started", started)
