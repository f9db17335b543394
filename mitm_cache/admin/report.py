"""What each of several processes tells of itself, and all of it added up.

Counters never go back: a process that has ended leaves what it told last.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from mitm_cache.admin.metrics import Counts, Numbers
from mitm_cache.admin.usage import Usage
from mitm_cache.upstream.breaker import Absence


@dataclass(frozen=True, slots=True)
class Report:
    """How one process is."""

    accepting: bool = False
    in_flight: int = 0
    numbers: Counts = field(default_factory=Counts)
    away: Mapping[str, Absence] = field(default_factory=dict)
    """Who is away upstream, by name; since when by the clock that all processes have."""
    usage: Usage = field(default_factory=Usage.own)

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """What `to_json` made. Raises ValueError where it was another version's."""
        try:
            counts, usage = Counts(**fields["numbers"]), Usage(**fields["usage"])
            away = {name: Absence(**absence) for name, absence in fields["away"].items()}
            return cls(fields["accepting"], fields["in_flight"], counts, away, usage)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no report: {error}") from error


class Tally:
    """The sum of processes, those that have ended included."""

    def __init__(self, numbers: Numbers) -> None:
        """`numbers`: where the sum is kept."""
        self._numbers = numbers
        self._ended = Counts()
        self._cpu = 0.0
        self.usage = Usage()
        """Of all processes at the last sum, this one included."""

    def retire(self, report: Report | None) -> None:
        """A process has ended; its last report is kept."""
        if report is not None:
            self._ended = self._ended + report.numbers
            self._cpu += report.usage.cpu

    def add_up(self, reports: Iterable[Report]) -> None:
        """Bring the sum up to date with the processes that are there."""
        total, usage = self._ended, Usage.own() + Usage(cpu=self._cpu)
        for report in reports:
            total, usage = total + report.numbers, usage + report.usage
        self._numbers.set(total)
        self.usage = usage
