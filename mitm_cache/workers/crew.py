"""The workers that serve by one configuration, each at its post: one that ends by itself gets a replacement."""

import asyncio
import logging
from collections.abc import Callable

from mitm_cache.config import Config
from mitm_cache.errors import MitmCacheError
from mitm_cache.listening import Places, share
from mitm_cache.workers.channel import Work
from mitm_cache.workers.hand import Hand

STEADY_SECONDS = 1.0
"""A worker that has served for so long gets its replacement at once."""
FIRST_PAUSE, LAST_PAUSE = 0.25, 10.0

logger = logging.getLogger(__name__)


def pause_after(deaths: int) -> float:
    """Seconds until another worker is tried, after so many in a row that did not last."""
    # A float has no room for what a doubling comes to in some hours of a disk that is away.
    return min(FIRST_PAUSE * 2 ** min(deaths - 2, 10), LAST_PAUSE) if deaths > 1 else 0.0


class Crew:
    """So many workers for one configuration."""

    def __init__(
        self, config: Config, places: Places, count: int, *, hire: Callable[[], Hand], retire: Callable[[Hand], None]
    ) -> None:
        """`hire`: gives a worker that waits for work, or raises MitmCacheError where none can be started; `retire`: is
        told of each that has ended."""
        self.config = config
        self.places = places
        self.count = count
        self.replaced = 0
        self._hire = hire
        self._retire = retire
        self._loop = asyncio.get_running_loop()
        self._dismissed = asyncio.Event()
        self._begun = False
        self._complete: asyncio.Future[None] = self._loop.create_future()
        self.hands: dict[int, Hand] = {}
        self.posts: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Man every post."""
        self.posts = [self._loop.create_task(self._man(rank)) for rank in range(self.count)]

    async def complete(self) -> None:
        """Wait until everybody serves, or it is dismissed. Raises MitmCacheError where somebody cannot."""
        await asyncio.shield(self._complete)

    @property
    def serving(self) -> list[Hand]:
        """Who serves now."""
        return [hand for hand in self.hands.values() if hand.serves]

    def give_up(self) -> None:
        """Wait no longer for everybody to serve."""
        if not self._complete.done():
            self._complete.set_result(None)

    def dismiss(self, *, linger: bool) -> None:
        """Have everybody end when what is under way has ended; nobody is replaced any more. Who lingers may be told
        again not to."""
        if self._dismissed.is_set() and linger:
            return
        self._dismissed.set()
        self.give_up()
        for hand in self.hands.values():
            if hand.serves:
                hand.drain(self.config.drain, linger=linger)
            else:
                hand.kill()

    def kill(self) -> None:
        """End everybody now."""
        for hand in self.hands.values():
            hand.kill()

    async def _man(self, rank: int) -> None:
        deaths = 0
        while not self._dismissed.is_set():
            try:
                hand = self.hands[rank] = self._hire()
            except MitmCacheError as error:
                if not self._begun:
                    self._fail(error)
                    return
                deaths += 1
                what = f"{error.message}; it is tried again"
            else:
                how = await hand.work(Work(self.config, share(self.places, rank, self.count)), self._look)
                del self.hands[rank]
                self._retire(hand)
                if self._dismissed.is_set() or not self._begun:
                    return
                self.replaced += 1
                deaths = 0 if hand.age() > STEADY_SECONDS else deaths + 1
                what = f"worker {hand.pid} has ended: {how}; another takes its place"
            pause = pause_after(deaths)
            again = f"in {pause:g} s" if pause else "now"
            logger.warning("%s %s", what, again)
            if pause:
                try:
                    async with asyncio.timeout(pause):
                        await self._dismissed.wait()
                except TimeoutError:
                    pass

    def _fail(self, error: MitmCacheError) -> None:
        if not self._complete.done():
            self._complete.set_exception(error)

    def _look(self) -> None:
        if self._complete.done():
            return
        failed = next((hand for hand in self.hands.values() if hand.ready.is_set() and not hand.serves), None)
        if failed is not None:
            try:
                failed.check()
            except MitmCacheError as error:
                self._fail(error)
        elif len(self.serving) == self.count:
            self._begun = True
            self._complete.set_result(None)
