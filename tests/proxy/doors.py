"""The doors alone, in a thread: the real proxy room over a real cache, built with what a test hands to it.

Content that the test puts there is a HIT at every listener. There is no upstream: the client that would go there notes
each attempt and fails.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Self, override

from mitm_cache.ca import CertificateAuthority
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link
from mitm_cache.cache.index import Index
from mitm_cache.cache.layout import open_layout
from mitm_cache.cache.links import Links
from mitm_cache.cache.proof import Proofs
from mitm_cache.cache.quarantine import Quarantine
from mitm_cache.cache.spool import Spool
from mitm_cache.errors import MitmCacheError, UpstreamError
from mitm_cache.journal import Event, Journal, to_json
from mitm_cache.listening import addresses, bind
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository
from mitm_cache.parsing import Endpoint
from mitm_cache.policy import Policy
from mitm_cache.proxy.deliver import STALL_SECONDS, Pump
from mitm_cache.proxy.door import Door
from mitm_cache.proxy.engine import Engine
from mitm_cache.proxy.front import Front
from mitm_cache.proxy.intercept import Intercept
from mitm_cache.proxy.layer import DeliveryLayer
from mitm_cache.proxy.mode import Listeners
from mitm_cache.proxy.receive import Local, Receive
from mitm_cache.proxy.serve import Serve
from mitm_cache.pull_through import PullThrough
from mitm_cache.pull_through.knowledge import Knowledge
from mitm_cache.registries import LOCAL, TABLE, Known, Registry
from mitm_cache.relay import Relay
from mitm_cache.rights import Verdicts
from mitm_cache.upstream.breaker import Breaker
from mitm_cache.upstream.client import Call, Client
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.upstream.dial import Dialer
from mitm_cache.upstream.leg import Leg
from mitm_cache.upstream.passage import Passage
from mitm_cache.wire.clients import Clients
from tests.serving import Log

HUB = "docker.io"
REPOSITORY = "team/app"
LOCAL_HOST = "registry.local"


class Unreachable(Client):
    """Goes nowhere: notes what it was asked for, and raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[Call] = []
        self.breaker = Breaker()
        self._error = error or UpstreamError("there is no upstream in this test")

    @override
    def exchange(self, call: Call) -> Answer:
        self.asked.append(call)
        raise self._error

    @override
    def stream(self, call: Call, sink: Sink) -> Answer:
        self.asked.append(call)
        raise self._error

    @override
    def relay(self, call: Call, passage: Passage) -> None:
        self.asked.append(call)
        passage.finish(self._error if isinstance(self._error, MitmCacheError) else MitmCacheError(str(self._error)))


class Nowhere(Dialer):
    """No tunnel leads anywhere from here."""

    def __init__(self) -> None:
        pass

    @override
    def dial(self, host: str, port: int, *, trusted: bool) -> socket.socket:
        raise UpstreamError(f"{host}:{port} is nowhere")


def now() -> datetime:
    return datetime.now(UTC)


class Doors:
    """Made with what a test wants to be different; it serves within `opened`."""

    registry = HUB

    def __init__(
        self,
        data: Path,
        *,
        error: Exception | None = None,
        clock: Callable[[], datetime] = now,
        stall: float = STALL_SECONDS,
        listeners: type[Listeners] = Listeners,
        journal: Journal | None = None,
        local: Local | None = None,
    ) -> None:
        """`error`: what every attempt to go upstream raises; `stall`: seconds that a client may take nothing, or send
        nothing of a body; `local`: who receives pushes to `registry.local`."""
        self.data = data
        self.log = Log()
        self.upstream = Unreachable(error)
        self.authority = CertificateAuthority.ensure(
            data / "ca", permitted=[*(host for each in TABLE for host in each.names), LOCAL_HOST], now=now()
        )
        self.ca_file = self.authority.certificate_path
        self.layout = open_layout(data)
        self.blobs = Blobs(self.layout.blobs)
        self.spool = Spool(self.layout.spool, self.blobs)
        self._clock, self._stall, self._local = clock, stall, local
        self.registries = Known([*TABLE, Registry(LOCAL, LOCAL_HOST)] if local is not None else TABLE)
        self.journal = journal or Journal()
        self.journal.add(self._note)
        self._sockets = [(name, bind(name, Endpoint("127.0.0.1", 0))) for name in ("tls", "clear", "mirror")]
        self._addresses = {name: (host, port) for name, host, port in addresses(self._sockets)}
        everybody = Clients([ip_network("0.0.0.0/0")])
        self.listeners = listeners(sockets=self._sockets, clients=everybody, journal=self.journal)
        self.intercept = Intercept(
            authority=self.authority,
            names=[*(host for each in TABLE for host in each.names), LOCAL_HOST],
            journal=self.journal,
            listeners=self.listeners.listener,
            clock=clock,
        )
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def _note(self, event: Event) -> None:
        self.log.write(to_json(event))

    def address(self, listener: str) -> tuple[str, int]:
        return self._addresses[listener]

    def put(self, content: bytes, number: int = 0) -> str:
        """Keep a blob as if it had been pulled; where it is asked for."""
        digest = Digest.of(content)
        path = self.blobs.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        index = Index(self.layout.index)
        repository = Repository.parse(REPOSITORY)
        Links(self.layout.links, index).hold(HUB, repository, Link(digest, "application/octet-stream", len(content)))
        Verdicts(index).keep(HUB, repository, None)
        index.close()
        return f"/v2/{REPOSITORY}/blobs/{digest}"

    def count_tasks(self) -> int:
        """How many tasks the event loop has."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(count(), self._loop).result(10)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            index = Index(self.layout.index)
            stack.callback(index.close)
            reads = stack.enter_context(ThreadPoolExecutor(2))
            self._engine = engine = Engine()
            async with asyncio.TaskGroup() as tasks:
                start = tasks.create_task
                proofs = Proofs(self.blobs, Quarantine(self.layout.quarantine, self.blobs), stopped=lambda: False)
                stack.callback(proofs.close)
                leg = Leg(
                    client=self.upstream,
                    dialer=Nowhere(),
                    spool=self.spool,
                    blobs=self.blobs,
                    proofs=proofs,
                    start=start,
                    stopped=lambda: False,
                )
                stack.callback(leg.close)
                known = Knowledge.open(self.layout, index, Verdicts(index))
                pull_through = PullThrough(known=known, spool=self.spool, policy=Policy(()), leg=leg, ttl=0)
                registries = self.registries
                door = Door(known=registries, journal=self.journal, via="doors", ways=self.listeners.ways)
                relay = Relay(leg=leg, links=known.links, pushed=known.pushed, policy=Policy(()))
                proxyserver, stall = engine.proxyserver, self._stall
                serve = Serve(pull_through=pull_through, relay=relay, door=door, proxyserver=proxyserver, stall=stall)
                pump = Pump(proxyserver, reads, stall=stall)
                engine.add(self.listeners, self.intercept, serve, pump)
                if self._local is not None:
                    receive = Receive(proxyserver=engine.proxyserver, serve=serve, local=self._local, stall=self._stall)
                    stack.callback(receive.close)
                    engine.add(receive)
                front = Front(known=registries, connect_ports=(443,), dial=leg.dial, journal=self.journal)
                self.listeners.join(
                    master=engine.master,
                    proxyserver=engine.proxyserver,
                    http=lambda context: DeliveryLayer(context, door, relay),
                    front=front,
                )
                tasks.create_task(self._tell())
                await engine.run()

    async def _tell(self) -> None:
        await self.listeners.started.wait()
        self._ready.set()

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Accepting connections."""
        thread = threading.Thread(target=self._work, name="doors")
        thread.start()
        self._ready.wait()
        try:
            if self._failure is not None:
                raise self._failure
            yield self
        finally:
            if self._engine is not None and self._failure is None:
                self._engine.stop()
            thread.join()

    def _work(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            self._failure = error
        finally:
            self._ready.set()
