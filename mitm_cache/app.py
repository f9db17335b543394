"""The composition root: everything is built and joined here, from one `Config`, and ends here."""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TextIO

from mitm_cache.admin.facts import Facts
from mitm_cache.admin.metrics import Numbers
from mitm_cache.admin.pages import Pages
from mitm_cache.admin.server import Server
from mitm_cache.ca import CertificateAuthority
from mitm_cache.ca.custody import Custody
from mitm_cache.cache.layout import Layout, open_layout
from mitm_cache.config import Config
from mitm_cache.core import Core
from mitm_cache.journal import AccessLine, Journal
from mitm_cache.listening import Bound, bind_all
from mitm_cache.proxy.deliver import Pump
from mitm_cache.proxy.door import Door
from mitm_cache.proxy.engine import Engine
from mitm_cache.proxy.front import Front
from mitm_cache.proxy.intercept import Intercept
from mitm_cache.proxy.layer import DeliveryLayer
from mitm_cache.proxy.mode import Clients, Listeners
from mitm_cache.proxy.serve import Serve
from mitm_cache.proxy.upgrade import Crossings
from mitm_cache.welcome.facts import Facts as PublicFacts
from mitm_cache.welcome.facts import own_address
from mitm_cache.welcome.pages import Current

FLUSH_SECONDS = 0.02


class App:
    """One process of the service: made ready by the constructor, at work in `run`."""

    def __init__(self, config: Config, *, output: TextIO | None = None) -> None:
        """Open the data directory and the CA, and bind the listeners. Raises MitmCacheError."""
        self.config = config
        self.layout: Layout = open_layout(config.data_dir)
        self.custody = Custody.open(config.ca_dir, permitted=config.permitted_names(), clock=_now)
        self.bound: Bound = bind_all(config)
        self.journal = Journal()
        self._access = AccessLine(config.log_format, output)
        self.journal.add(self._access)
        self.numbers = Numbers([registry.name for registry in config.known])
        self.journal.add(self.numbers)
        self._made = _now()
        self._stopping = threading.Event()
        self._engine: Engine | None = None

    @property
    def authority(self) -> CertificateAuthority:
        """The CA that signs now."""
        return self.custody.signer(_now())

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`. `ready` is called once connections are accepted."""
        async with AsyncExitStack() as stack:
            stack.callback(self._access.flush)
            tasks = await stack.enter_async_context(_Tasks())
            core = Core(
                self.config,
                self.layout,
                listeners=[(address, port) for _, address, port in self.bound.addresses()],
                start=tasks.start,
                journal=self.journal,
                stopping=self._stopping,
            )
            stack.callback(core.close)
            clients = Clients(self.config.allow)
            listeners = Listeners(sockets=self.bound.for_clients, clients=clients, journal=self.journal)
            welcome = Current(
                lambda: PublicFacts.of(self.config, self.custody, self.bound.addresses(), own_address()),
                ready=lambda: listeners.accepting() and not self._stopping.is_set(),
                version=lambda: self.custody.export("pem"),
            )
            door = Door(
                known=self.config.known,
                journal=self.journal,
                via=core.via,
                ways=listeners.ways,
                own=self.config.names,
                pages=welcome.answer,
            )
            self._engine = engine = Engine()
            intercept = Intercept(
                authority=self.custody,
                names=self.config.known.server_names | set(self.config.names),
                journal=self.journal,
                listeners=listeners.listener,
                clock=_now,
            )
            serve = Serve(pull_through=core.pull_through, relay=core.relay, door=door, proxyserver=engine.proxyserver)
            engine.add(listeners, intercept, serve, Pump(engine.proxyserver, core.reads), Crossings(engine.proxyserver))
            front = Front(
                known=self.config.known,
                connect_ports=self.config.connect_ports,
                dial=core.leg.dial,
                journal=self.journal,
                own=self.config.names,
            )
            listeners.join(
                master=engine.master,
                proxyserver=engine.proxyserver,
                http=lambda context: DeliveryLayer(context, door, core.relay),
                front=front,
            )
            pages = Pages(self._facts(core, listeners, door), self.numbers)
            stack.callback(pages.close)
            admin = Server(self.bound.for_admin, pages.by_path, admits=clients.admits)
            await stack.enter_async_context(admin)

            tasks.start(core.sweep_regularly(self.numbers.sweep))
            tasks.start(_call_when(listeners.started, ready))
            tasks.start(self._flush_regularly())
            tasks.start(self.custody.attend())
            if self._stopping.is_set():
                return
            await engine.run()

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler."""
        self._stopping.set()
        if self._engine is not None:
            self._engine.stop()

    def close(self) -> None:
        """Let go of the listeners of an app that never ran."""
        for _, bound in self.bound.sockets:
            bound.close()

    def _facts(self, core: Core, listeners: Listeners, door: Door) -> Facts:
        return Facts(
            version=version("mitm-cache"),
            started=self._made,
            layout=self.layout,
            blobs=core.blobs,
            addresses=tuple(self.bound.addresses()),
            ca=self.custody.describe,
            limit=core.limit,
            in_flight=door.in_flight,
            accepting=lambda: listeners.accepting() and not self._stopping.is_set(),
            clock=_now,
        )

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self._access.flush()


class _Tasks:
    """A task group whose tasks end with the service."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._started: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        task = self._group.create_task(work)
        self._started.add(task)
        task.add_done_callback(self._started.discard)

    async def __aenter__(self) -> "_Tasks":
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in list(self._started):
            task.cancel()
        await self._group.__aexit__(None, None, None)


async def _call_when(event: asyncio.Event, work: Callable[[], None]) -> None:
    await event.wait()
    work()


def _now() -> datetime:
    return datetime.now(UTC)


def serve_forever(app: App, ready: Callable[[], None]) -> None:
    """Run until SIGTERM or SIGINT."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, app.stop)
        await app.run(ready)

    asyncio.run(main())


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


def configure_logging() -> None:
    """Warnings to standard error, one line each; mitmproxy's remarks that are recorded as events are left out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.addFilter(lambda record: not record.getMessage().startswith(_KNOWN_REMARKS))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


_KNOWN_REMARKS = (
    "Warning: Running proxyserver without nextlayer addon!",
    "No TLS context was provided, failing connection.",
    "Client TLS handshake failed.",
)
