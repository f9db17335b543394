"""The composition root: everything is built and joined here, from one `Config`, and ends here."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TextIO

from mitm_cache.admin.facts import Facts
from mitm_cache.admin.health import DEAF, OK
from mitm_cache.admin.metrics import Numbers
from mitm_cache.admin.pages import Pages
from mitm_cache.admin.report import Report
from mitm_cache.admin.server import Server
from mitm_cache.ca import CertificateAuthority
from mitm_cache.ca.custody import Custody
from mitm_cache.ca.given import GivenCertificate
from mitm_cache.cache.layout import Layout, open_layout
from mitm_cache.config import Config
from mitm_cache.core import Core
from mitm_cache.filling.schedule import Schedule
from mitm_cache.journal import AccessLine, Journal
from mitm_cache.listening import Bound, bind_all
from mitm_cache.proxy.deliver import Pump
from mitm_cache.proxy.door import Door
from mitm_cache.proxy.engine import Engine
from mitm_cache.proxy.front import Front
from mitm_cache.proxy.intercept import Intercept, LocalNames
from mitm_cache.proxy.layer import DeliveryLayer
from mitm_cache.proxy.logins import Logins
from mitm_cache.proxy.mode import Listeners
from mitm_cache.proxy.receive import Receive
from mitm_cache.proxy.serve import Serve
from mitm_cache.proxy.upgrade import Crossings
from mitm_cache.tasks import Tasks
from mitm_cache.upstream.breaker import Absence
from mitm_cache.users import OwnTokens, Users
from mitm_cache.welcome.facts import Facts as PublicFacts
from mitm_cache.welcome.facts import own_address
from mitm_cache.welcome.pages import Current
from mitm_cache.wire.clients import Clients

FLUSH_SECONDS = 0.02


class App:
    """One process of the service: made ready by the constructor, at work in `run`."""

    def __init__(self, config: Config, *, output: TextIO | None = None, bound: Bound | None = None) -> None:
        """Open the data directory and the CA, and bind the listeners. Raises MitmCacheError.

        `bound`: what to listen on, for one of several processes; what is done once for all of them has been done.
        """
        self.config = config
        self.layout: Layout = open_layout(config.data_dir)
        self.custody = Custody.open(config.ca_dir, permitted=config.permitted_names(), clock=_now)
        self._given = GivenCertificate.open(config.local.cert, config.local.key, config.known.local_hosts)
        self.users = Users.open(config.users_file) if config.users_file is not None else None
        self._tokens = None
        if self.users is not None and config.local.names:
            self._tokens = OwnTokens.open(self.layout.token_key, self.users, issuer=self.layout.identity)
        self._alone = bound is None
        self.bound: Bound = bind_all(config) if bound is None else bound
        self.journal = Journal()
        self._access = AccessLine(config.log_format, output)
        self.journal.add(self._access)
        self.numbers = Numbers([registry.name for registry in config.known])
        self.journal.add(self.numbers)
        self._made = _now()
        self._stopping = threading.Event()
        self._engine: Engine | None = None
        self._listeners: Listeners | None = None
        self._serve: Serve | None = None
        self._in_flight: Callable[[], int] = lambda: 0
        self._away: Callable[[], Mapping[str, Absence]] = dict

    @property
    def authority(self) -> CertificateAuthority:
        """The CA that signs now."""
        return self.custody.signer(_now())

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`. `ready` is called once connections are accepted."""
        async with AsyncExitStack() as stack:
            stack.callback(self._access.flush)
            tasks = await stack.enter_async_context(Tasks())
            core = Core(
                self.config,
                self.layout,
                listeners=[(address, port) for _, address, port in self.bound.addresses()],
                start=tasks.attempt,
                journal=self.journal,
                stopping=self._stopping,
                first=self._alone,
                tokens=self._tokens,
            )
            self.numbers.quotas = core.leg.client.quotas.all
            self._away = core.leg.client.breaker.away
            stack.callback(core.close)
            if self.users is not None:
                stack.callback(self.users.close)
            clients = Clients(self.config.allow)
            listeners = Listeners(sockets=self.bound.for_clients, clients=clients, journal=self.journal)
            self._listeners = listeners
            welcome = Current(
                lambda: PublicFacts.of(self.config, self.custody, self.bound.addresses(), own_address()),
                ready=self._accepting,
                version=lambda: self.custody.export("pem"),
            )
            door = Door(
                known=self.config.known,
                journal=self.journal,
                via=core.via,
                ways=listeners.ways,
                own=self.config.names,
                pages=welcome.answer,
                logins=Logins(self.users, self._tokens),
            )
            self._engine = engine = Engine()
            intercept = Intercept(
                authority=self.custody,
                names=self.config.known.server_names | set(self.config.names),
                journal=self.journal,
                listeners=listeners.listener,
                clock=_now,
                local=LocalNames(self.config.known.local_hosts, self.config.clear_names(), self._given),
            )
            serve = Serve(pull_through=core.answers, relay=core.relay, door=door, proxyserver=engine.proxyserver)
            self._serve, self._in_flight = serve, door.in_flight
            engine.add(listeners, intercept, serve, Pump(engine.proxyserver, core.reads), Crossings(engine.proxyserver))
            if core.local is not None:
                receive = Receive(proxyserver=engine.proxyserver, serve=serve, local=core.local)
                stack.callback(receive.close)
                engine.add(receive)
            front = Front(
                known=self.config.known,
                connect_ports=self.config.connect_ports,
                dial=core.leg.dial,
                journal=self.journal,
                own=self.config.names,
                users=self.users,
            )
            listeners.join(
                master=engine.master,
                proxyserver=engine.proxyserver,
                http=lambda context: DeliveryLayer(context, door, core.relay),
                front=front,
            )
            pages = Pages(self._facts(core, door), self.numbers)
            stack.callback(pages.close)
            admin = Server(self.bound.for_admin, pages.by_path, admits=clients.admits)
            await stack.enter_async_context(admin)

            tasks.start(core.sweep_regularly(self.numbers.sweep))
            tasks.start(_call_when(listeners.started, ready))
            tasks.start(self._flush_regularly())
            tasks.start(self.custody.attend())
            tasks.attempt(Schedule(self.config, self.layout).run())
            if self._stopping.is_set():
                return
            await engine.run()

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler."""
        self._stopping.set()
        if self._engine is not None:
            self._engine.stop()

    async def drain(self, seconds: float, *, linger: bool = False) -> None:
        """Accept no more, let what is under way end, for so many seconds at most, and stop. With `linger` connections
        on which nothing is under way stay too, until their clients leave or have had one more answer."""
        if self._serve is not None and self._listeners is not None:
            self._serve.leaving = True
            self._listeners.leave()
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.sleep(FLUSH_SECONDS)  # whoever was accepted last is counted by then
                    while self._in_flight() or (linger and self._listeners.connections):  # noqa: ASYNC110 - nobody tells
                        await asyncio.sleep(FLUSH_SECONDS)
                    await asyncio.sleep(FLUSH_SECONDS)  # what was written last leaves
            except TimeoutError:
                pass
        self.stop()

    def report(self) -> Report:
        """How this process is, for who keeps account of several."""
        return Report(
            accepting=self._accepting(),
            in_flight=self._in_flight(),
            numbers=self.numbers.counts(),
            away=self._away(),
        )

    def _accepting(self) -> bool:
        return self._listeners is not None and self._listeners.accepting() and not self._stopping.is_set()

    def close(self) -> None:
        """Let go of the listeners of an app that never ran."""
        for _, bound in self.bound.sockets:
            bound.close()

    def _facts(self, core: Core, door: Door) -> Facts:
        return Facts(
            version=version("mitm-cache"),
            started=self._made,
            layout=self.layout,
            blobs=core.blobs,
            addresses=tuple(self.bound.addresses()),
            ca=self.custody.describe,
            limit=core.limit,
            in_flight=door.in_flight,
            listeners=lambda: OK if self._accepting() else DEAF,
            clock=_now,
            away=self._away,
        )

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self._access.flush()


async def _call_when(event: asyncio.Event, work: Callable[[], None]) -> None:
    await event.wait()
    work()


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def run_in_thread(app: App) -> Iterator[App]:
    """The app at work in a thread, accepting connections, for as long as the context lasts."""
    ready = threading.Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(app.run(ready.set))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that asked
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="mitm-cache")
    thread.start()
    ready.wait()
    try:
        if failure:
            raise failure[0]
        yield app
    finally:
        app.stop()
        thread.join()
    if failure:
        raise failure[0]
