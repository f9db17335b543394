"""What the admin listener shows of a service with workers: all of them together."""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from mitm_cache.admin.facts import Facts
from mitm_cache.admin.metrics import Numbers
from mitm_cache.admin.report import Report, Tally
from mitm_cache.ca.custody import Custody
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import Layout
from mitm_cache.config import Config
from mitm_cache.listening import Bound
from mitm_cache.workers.crew import Crew
from mitm_cache.workers.hand import Hand


class Account:
    """Adds up what workers report. Those that were killed leave what they told last, a second before at most."""

    def __init__(self, crews: Callable[[], Sequence[Crew]]) -> None:
        """`crews`: who serves, the last of them by the configuration of now."""
        self._crews = crews
        self.numbers = Numbers([])
        self._tally = Tally(self.numbers)
        self._replaced = 0
        self._started = datetime.now(UTC)

    def retire(self, hand: Hand) -> None:
        """A worker has ended."""
        self._tally.retire(_report(hand))

    def close(self, crew: Crew) -> None:
        """A crew has ended."""
        self._replaced += crew.replaced

    async def freshen(self) -> None:
        """Ask everybody."""
        await asyncio.gather(*(hand.ask() for hand in self._serving()), return_exceptions=True)
        self._tally.add_up(self._reports(hand for crew in self._crews() for hand in crew.hands.values()))

    def facts(self, config: Config, layout: Layout, custody: Custody, bound: Bound) -> Facts:
        """What the pages are told."""
        return Facts(
            version=version("mitm-cache"),
            started=self._started,
            layout=layout,
            blobs=Blobs(layout.blobs),
            addresses=tuple(bound.addresses()),
            ca=custody.describe,
            limit=lambda: config.max_size.of(_disk_size(layout)),
            in_flight=lambda: sum(report.in_flight for report in self._reports(self._serving())),
            accepting=self._accepting,
            clock=lambda: datetime.now(UTC),
            freshen=self.freshen,
            alive=lambda: bool(self._serving()) and all(hand.answers for hand in self._serving()),
            workers=lambda: [hand.pid for hand in self._serving()],
            replaced=lambda: self._replaced + sum(crew.replaced for crew in self._crews()),
            usage=lambda: self._tally.usage,
        )

    def _accepting(self) -> bool:
        # The last crew is not there yet while a reload brings it up: those before it serve until then.
        return any(self._accepts(crew) for crew in self._crews())

    def _accepts(self, crew: Crew) -> bool:
        reports = list(self._reports(crew.serving))
        return bool(reports) and all(report.accepting for report in reports)

    def _serving(self) -> list[Hand]:
        return [hand for crew in self._crews() for hand in crew.serving]

    def _reports(self, hands: Iterable[Hand]) -> Iterator[Report]:
        return (report for hand in hands if (report := _report(hand)) is not None)


def _report(hand: Hand) -> Report | None:
    return Report.from_json(hand.report) if hand.report is not None else None


def _disk_size(layout: Layout) -> int:
    status = os.statvfs(layout.root)
    return status.f_frsize * status.f_blocks
