"""What the admin listener shows of a service with workers: all of them together."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from mitm_cache.admin.facts import Facts
from mitm_cache.admin.health import DEAF, OK, WAITING
from mitm_cache.admin.metrics import Numbers
from mitm_cache.admin.report import Report, Tally
from mitm_cache.ca.custody import Custody
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.disk import Disk
from mitm_cache.cache.layout import Layout
from mitm_cache.config import Config
from mitm_cache.listening import Bound
from mitm_cache.upstream.breaker import Absence
from mitm_cache.workers.crew import Crew
from mitm_cache.workers.hand import Hand


class Account:
    """Adds up what workers report. Those that were killed leave what they told last, a second before at most."""

    def __init__(self, layout: Layout, crews: Callable[[], Sequence[Crew]]) -> None:
        """`crews`: who serves, the last of them by the configuration of now. Raises StoreError."""
        self._layout = layout
        self._disk = Disk(layout.root)
        self._crews = crews
        self.numbers = Numbers([])
        self._tally = Tally(self.numbers)
        self._replaced = 0
        self._started = datetime.now(UTC)

    def retire(self, hand: Hand) -> None:
        """A worker has ended."""
        self._tally.retire(hand.report)

    def close(self, crew: Crew) -> None:
        """A crew has ended."""
        self._replaced += crew.replaced

    async def freshen(self) -> None:
        """Ask everybody."""
        await asyncio.gather(*(hand.ask() for hand in self._serving()), return_exceptions=True)
        self._tally.add_up(self._reports(hand for crew in self._crews() for hand in crew.hands.values()))

    def facts(self, config: Config, custody: Custody, bound: Bound) -> Facts:
        """What the pages are told."""
        return Facts(
            version=version("mitm-cache"),
            started=self._started,
            layout=self._layout,
            blobs=Blobs(self._layout.blobs),
            addresses=tuple(bound.addresses()),
            ca=custody.describe,
            limit=lambda: config.max_size.of(self._disk.size()),
            in_flight=lambda: sum(report.in_flight for report in self._reports(self._serving())),
            listeners=self._listeners,
            clock=lambda: datetime.now(UTC),
            freshen=self.freshen,
            alive=lambda: bool(self._serving()) and all(hand.answers for hand in self._serving()),
            workers=lambda: [hand.pid for hand in self._serving()],
            replaced=lambda: self._replaced + sum(crew.replaced for crew in self._crews()),
            usage=lambda: self._tally.usage,
            away=self._away,
        )

    def _listeners(self) -> str:
        # The last crew is not there yet while a reload brings it up: those before it serve until then.
        crew = max(self._crews(), key=lambda crew: len(_accepting(crew)) / crew.count, default=None)
        return DEAF if crew is None else _condition(crew)

    def _away(self) -> dict[str, Absence]:
        """What any of them knows: one that has not asked a registry cannot say."""
        known = [item for report in self._reports(self._serving()) for item in report.away.items()]
        return dict(sorted(known, key=lambda item: item[1].since, reverse=True))

    def _serving(self) -> list[Hand]:
        return [hand for crew in self._crews() for hand in crew.serving]

    def _reports(self, hands: Iterable[Hand]) -> Iterator[Report]:
        return (hand.report for hand in hands if hand.report is not None)


def _accepting(crew: Crew) -> list[Hand]:
    # Who has said nothing else yet has just said that it does.
    return [hand for hand in crew.serving if hand.answers and (hand.report is None or hand.report.accepting)]


def _condition(crew: Crew) -> str:
    """Whether all of a crew accept connections, in the words of the checks."""
    count = len(_accepting(crew))
    if count == crew.count:
        return OK
    silent = [f"; worker {hand.pid} does not answer" for hand in crew.serving if not hand.answers]
    return "".join((f"{WAITING}{count} of {crew.count} workers accept them" if count else DEAF, *silent))
