"""The process that is started: it has the sockets and the account, and workers that serve. It never serves itself."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from mitm_cache.admin.pages import Pages
from mitm_cache.admin.server import Server
from mitm_cache.ca.custody import Custody
from mitm_cache.ca.given import GivenCertificate
from mitm_cache.cache.index import open_index
from mitm_cache.cache.layout import Layout, open_layout
from mitm_cache.config import Config
from mitm_cache.errors import ConfigError, MitmCacheError
from mitm_cache.listening import Bound, Places, bind_places, close_others
from mitm_cache.rights import Verdicts, begin
from mitm_cache.wire.clients import Clients
from mitm_cache.workers.account import Account
from mitm_cache.workers.control import Control
from mitm_cache.workers.count import processors
from mitm_cache.workers.crew import Crew
from mitm_cache.workers.hand import Hand

GRACE_SECONDS = 3.0
"""What a process has to end once its time to drain is over; killing it costs nothing that is not resumed."""
SPARE_SECONDS = 1.0
"""How often it is looked whether a worker is kept waiting."""
MOST_LEAVING = 3
"""Crews that were replaced and still have connections, each with its memory: another reload waits for one to end."""

logger = logging.getLogger(__name__)


class Supervisor:
    """One service: made ready by the constructor, at work in `run`."""

    def __init__(self, config: Config, places: Places, hands: list[Hand], *, load: Callable[[], Config]) -> None:
        """`places`: what is bound; `hands`: workers that wait for work; `load`: the configuration as it is by now.

        Raises MitmCacheError.
        """
        self.config = config
        self.layout: Layout = open_layout(config.data_dir)
        self.custody = _custody(config)
        self._places = places
        self._waiting = hands
        self._load = load
        self._crews: list[Crew] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._wanted: asyncio.Task[str] | None = None
        self._account = Account(self.layout, lambda: self._crews)
        self._admin: tuple[Server, Pages] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def bound(self) -> Bound:
        """What the service listens on."""
        return Bound([(place.listener, each) for place, sockets in self._places.items() for each in sockets])

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until told to end. `ready` is called once every worker accepts connections. Raises MitmCacheError."""
        self._stopping, self._hurry, self._reloading = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end)
        # A terminal that is closed says SIGHUP too, and means the end.
        if not os.isatty(0):
            loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)
        try:
            async with self._reloading:  # who wants a reload waits until there is something to replace
                _forget_verdicts(self.config, self.layout)
                await self._gather(self.config, self._places).complete()
                await self._open_admin()
                self._attending = self._start(self.custody.attend())
            async with self._control():
                self._start(self._keep_spare())
                if not self._stopping.is_set():
                    ready()
                await self._stopping.wait()
                await self._drain()
        finally:
            await self._end()

    def _start[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _told_to_end(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
        for crew in self._crews:
            crew.give_up()

    async def _drain(self) -> None:
        """Accept no more, and wait for what is under way."""
        close_others(self._places, {})
        posts = [post for crew in self._crews for post in crew.posts]
        for crew in self._crews:
            crew.dismiss(linger=False)
        hurry, ended = self._start(_wait(self._hurry)), self._start(_all(posts))
        patience = self.config.drain + GRACE_SECONDS
        await asyncio.wait([hurry, ended], timeout=patience, return_when=asyncio.FIRST_COMPLETED)

    async def _end(self) -> None:
        """Whatever went wrong, nothing is left behind."""
        self._stopping.set()
        close_others(self._places, {})
        for crew in self._crews:
            crew.dismiss(linger=False)
            crew.kill()
        for hand in self._waiting:
            hand.kill()
        await asyncio.gather(*(post for crew in self._crews for post in crew.posts), return_exceptions=True)
        for hand in self._waiting:
            await hand.end()
        await self._close_admin()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _gather(self, config: Config, places: Places) -> Crew:
        count = config.workers or processors()
        crew = Crew(config, places, count, hire=self._hire, retire=self._account.retire)
        self._crews.append(crew)
        crew.start()
        return crew

    def _hire(self) -> Hand:
        while self._waiting:
            hand = self._waiting.pop()
            if hand.alive():
                return hand
        return Hand()

    async def _keep_spare(self) -> None:
        """Where several workers serve, one more waits with the program loaded: who takes a place serves at once."""
        while not self._stopping.is_set():
            crew = self._crews[-1]
            self._waiting = [hand for hand in self._waiting if hand.alive()]
            if crew.count > 1 and not self._waiting and len(crew.serving) == crew.count:
                with suppress(MitmCacheError):  # who takes a place is waited for, then
                    self._waiting.append(Hand())
            await asyncio.sleep(SPARE_SECONDS)

    def _control(self) -> Control:
        return Control(self.layout.run, {"reload": self.reload})

    async def _open_admin(self) -> None:
        config, clients = self.config, Clients(self.config.allow)
        pages = Pages(self._account.facts(config, self.custody, self.bound), self._account.numbers)
        # Copies: the originals listen on, whoever answers.
        server = Server([each.dup() for each in self.bound.for_admin], pages.by_path, admits=clients.admits)
        await server.__aenter__()
        self._admin = server, pages

    async def _close_admin(self) -> None:
        if self._admin is not None:
            (server, pages), self._admin = self._admin, None
            await server.__aexit__(None, None, None)
            pages.close()

    def _told_to_reload(self) -> None:
        if self._wanted is None:
            self._start(self._reload_by_signal())

    async def _reload_by_signal(self) -> None:
        with suppress(MitmCacheError):  # it is in the log
            await self.reload()

    async def reload(self) -> str:
        """Serve by the configuration as it is by now; says what was done, in the log too.

        Raises MitmCacheError where that cannot be done; all is as it was then.
        """
        if self._wanted is None:
            self._wanted = self._start(self._reload_in_turn())
        return await asyncio.shield(self._wanted)

    async def _reload_in_turn(self) -> str:
        try:
            async with self._reloading:
                said = await self._reload()
        except MitmCacheError as error:
            logger.error("not reloaded, what was before stays: %s", error.message)
            raise
        logger.warning("%s", said)
        return said

    async def _reload(self) -> str:
        if len(self._leaving) >= MOST_LEAVING:
            logger.warning("a reload waits: the workers of %d before it still have connections", len(self._leaving))
        while len(self._leaving) >= MOST_LEAVING and not self._stopping.is_set():
            await asyncio.wait(self._leaving, return_when=asyncio.FIRST_COMPLETED)
        self._wanted = None  # who has asked until now is content with what is read from here on
        if self._stopping.is_set():
            raise ConfigError("the service is ending")
        config = self._load()
        if config.data_dir != self.config.data_dir:
            raise ConfigError(f"data_dir: {config.data_dir} needs a restart; {self.config.data_dir} is in use")
        custody, places = _custody(config), _rebind(config, self._places)
        crew = self._gather(config, places)
        try:
            await crew.complete()
            if not self._stopping.is_set():
                await asyncio.to_thread(_forget_verdicts, config, self.layout)
        except MitmCacheError:
            # Some of it may have served: it is looked after like one that is replaced.
            self._crews.insert(0, self._crews.pop())
            await asyncio.wait([self._let_go(crew, linger=False)], timeout=GRACE_SECONDS)
            close_others(places, self._places)
            raise
        if self._stopping.is_set():
            raise ConfigError("the service is ending")
        self._let_go(self._crews[-2], linger=True)
        close_others(self._places, places)
        self.config, self.custody, self._places = config, custody, places
        self._attending.cancel()
        self._attending = self._start(custody.attend())
        # Who asks is answered: a probe that was cut would have clients led elsewhere.
        before = self._admin
        await self._open_admin()
        if before is not None:
            self._start(_retire(*before))
        return f"reloaded: {crew.count} {'workers serve' if crew.count > 1 else 'worker serves'} by it"

    def _let_go(self, crew: Crew, *, linger: bool) -> asyncio.Task[None]:
        """Have a crew end that is not wanted any more. It counts until it has ended."""
        crew.dismiss(linger=linger)
        task = self._start(self._see_off(crew))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def _see_off(self, crew: Crew) -> None:
        _, late = await asyncio.wait(crew.posts, timeout=crew.config.drain + GRACE_SECONDS)
        if late:
            crew.kill()
            await asyncio.wait(late)
        self._account.close(crew)
        self._crews.remove(crew)


async def _retire(server: Server, pages: Pages) -> None:
    try:
        await server.leave()
    finally:
        await server.__aexit__(None, None, None)
        pages.close()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


def _custody(config: Config) -> Custody:
    """The CA; what is wrong with a certificate from elsewhere is told here too, once for all workers."""
    GivenCertificate.open(config.local.cert, config.local.key, config.known.local_hosts)
    return Custody.open(config.ca_dir, permitted=config.permitted_names())


def _rebind(config: Config, places: Places) -> Places:
    try:
        return bind_places(config, config.workers or processors(), places)
    except ConfigError as error:
        raise ConfigError(f"{error.message}; what cannot be bound now can be by a restart, perhaps") from error


def _forget_verdicts(config: Config, layout: Layout) -> None:
    index = open_index(layout.index)
    try:
        begin(config, Verdicts(index))
    finally:
        index.close()
