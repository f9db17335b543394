"""What is between the doors and the network, joined from one `Config`: the cache, the upstream leg, and the answers."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version

from mitm_cache.cache.disk import Disk
from mitm_cache.cache.evict import Sweeper, Swept
from mitm_cache.cache.index import Index, open_index
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.proof import Proofs
from mitm_cache.cache.quarantine import Quarantine
from mitm_cache.cache.room import Room
from mitm_cache.cache.spool import Spool
from mitm_cache.config import Config
from mitm_cache.errors import MitmCacheError
from mitm_cache.journal import Event, Journal
from mitm_cache.local import Demand, LocalRegistry
from mitm_cache.local.store import Store
from mitm_cache.policy import Policy
from mitm_cache.pull_through import PullThrough
from mitm_cache.pull_through.knowledge import Knowledge
from mitm_cache.registries import LOCAL
from mitm_cache.relay import Relay
from mitm_cache.rights import Modes, Verdicts, begin
from mitm_cache.upstream import rules
from mitm_cache.upstream.client import Bounds, Client
from mitm_cache.upstream.credentials import Credentials
from mitm_cache.upstream.credentials_sources import open_credentials
from mitm_cache.upstream.curl import Transport
from mitm_cache.upstream.dial import Dialer
from mitm_cache.upstream.flight import Start
from mitm_cache.upstream.leg import Leg
from mitm_cache.upstream.tokens import Tokens
from mitm_cache.users import OwnTokens
from mitm_cache.wire.message import Handler, Request, Response

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0
"""A sweep at least this often, and whenever a hundredth of the limit has come in."""
COLLECT_SECONDS = 900.0
"""How often the local registry is rid of what nobody needs."""
SWEEP_TICK = 10.0
READS = 8
"""Threads that read what is not in the page cache."""


class Core:
    """Made and closed in the event loop."""

    def __init__(  # noqa: PLR0913 - it joins so many parts
        self,
        config: Config,
        layout: Layout,
        *,
        listeners: Iterable[tuple[str, int]],
        start: Start,
        journal: Journal,
        stopping: threading.Event | None = None,
        first: bool = True,
        credentials: Credentials | None = None,
        tokens: OwnTokens | None = None,
    ) -> None:
        """`listeners`: the addresses that clients reach us by; `start` begins a task of the service; `stopping` may be
        set, from any thread, some time before `close` is called; `first`: whether the service starts with this, and has
        not been begun already by a process that has several of these; `credentials`: others than the configuration's;
        `tokens`: what the local registry gives out to clients.

        Raises MitmCacheError.
        """
        self._config = config
        self._journal = journal
        self._stopping = stopping or threading.Event()
        self._disk = Disk(layout.root)
        self.via = f"mitm-cache-{layout.identity}"
        with ExitStack() as stack:
            index = open_index(layout.index)
            stack.callback(index.close)
            credentials = credentials or open_credentials(config, os.environ)
            verdicts = Verdicts(index, modes=Modes(config, credentials.name))
            if first:
                begin(config, verdicts)
            self.known = known = Knowledge.open(layout, index, verdicts)
            self.blobs, self.links = known.blobs, known.links
            self._sweeper = Sweeper(layout=layout, blobs=self.blobs, links=self.links, limit=config.max_size.of)
            self._room = Room(
                layout.spool,
                least=config.min_free.of,
                sweep=partial(self._sweeper.sweep, whole=True),
                stopped=self._stopping.is_set,
            )
            self.spool = spool = Spool(layout.spool, self.blobs, self._room)
            proofs = Proofs(self.blobs, Quarantine(layout.quarantine, self.blobs), stopped=self._stopping.is_set)
            stack.callback(proofs.close)
            transport = Transport(agent=f"mitm-cache/{version('mitm-cache')}", stopped=self._stopping.is_set)
            stack.callback(transport.close)
            router = rules.router(config, folder=layout.run, listeners=listeners, environ=os.environ)
            client = Client(
                transport=transport,
                router=router,
                tokens=Tokens(credentials=credentials),
                bases=rules.bases(config),
                via=self.via,
                bounds=Bounds(
                    allow_http=config.allow_http,
                    allow_private=config.allow_private,
                    offline=config.is_offline,
                ),
            )
            self.leg = Leg(
                client=client,
                dialer=Dialer(router=router, transport=transport, allow_private=config.allow_private),
                spool=spool,
                blobs=self.blobs,
                proofs=proofs,
                start=start,
                stopped=self._stopping.is_set,
            )
            stack.callback(self.leg.close)
            stack.callback(self._stopping.set)
            self.reads = ThreadPoolExecutor(READS, thread_name_prefix="read")
            stack.callback(self.reads.shutdown)
            policy = Policy(config.policy)
            self.pull_through = PullThrough(
                known=known,
                spool=spool,
                policy=policy,
                leg=self.leg,
                ttl=config.tag_ttl,
                users=config.users_file is not None,
                pushes=any("/" in name for name in config.local.names),
            )
            self.local: LocalRegistry | None = None
            if config.local.names:
                self.local = LocalRegistry(
                    layout=layout,
                    known=known,
                    policy=policy,
                    users=config.users_file is not None,
                    proofs=proofs,
                    room=self._room,
                    limit=lambda: config.local.max_size.of(self._disk.size()),
                    tokens=tokens,
                    demand=_demand(config, layout, Store(layout, known.blobs), index, start),
                )
                stack.callback(self.local.close)
            self.answers = Answers(self.local, self.pull_through)
            self.relay = Relay(leg=self.leg, links=known.links, pushed=known.pushed, policy=policy)
            self._closing = stack.pop_all()

    def stopped(self) -> bool:
        """Whether this is being closed."""
        return self._stopping.is_set()

    def close(self) -> None:
        """End what is under way, and wait for the threads: a second at most."""
        self._closing.close()

    async def sweep_regularly(self, note: Callable[[Swept], None] = lambda _: None) -> None:
        """Keep the blobs below `cache.max_size`, and `cache.min_free` free, for as long as this runs."""
        arrived = _Arrived()
        self._journal.add(arrived)
        loop = asyncio.get_running_loop()
        due = collect_due = loop.time()
        while True:
            try:
                missing = self._room.short(0)
                if loop.time() >= due or arrived.count > self.limit() // 100 or missing > 0 < arrived.count:
                    arrived.count = 0
                    due = loop.time() + SWEEP_SECONDS
                    swept = await self.leg.run(partial(self._sweeper.sweep, max(missing, 0)))
                    if swept is not None:
                        self._room.swept.append(swept)
                if self.local is not None and loop.time() >= collect_due:
                    collect_due = loop.time() + COLLECT_SECONDS
                    await self.local.collect()
            except (MitmCacheError, OSError) as error:
                logger.warning("the cache could not be swept: %s", error)
            while self._room.swept:
                swept = self._room.swept.popleft()
                note(swept)
                if swept.removed:
                    logger.warning("evicted %d blobs, %d bytes", swept.removed, swept.freed)
            await asyncio.sleep(SWEEP_TICK)

    def limit(self) -> int:
        """The bytes that all blobs together may have, but for those of the local registry."""
        return self._config.max_size.of(self._disk.size())


class Answers:
    """Who answers a request: the registry that the cache itself is, for its own names, or the way upstream."""

    def __init__(self, local: LocalRegistry | None, pull_through: Handler) -> None:
        self._local = local
        self._pull_through = pull_through

    async def handle(self, request: Request) -> Response:
        """The answer to a GET or HEAD."""
        if self._local is not None and request.registry.is_local:
            return await self._local.handle(request)
        return await self._pull_through.handle(request)


def _demand(config: Config, layout: Layout, store: Store, index: Index, start: Start) -> Demand | None:
    """Push on demand, where a daemon is configured."""
    if not config.local.daemon:
        return None
    # The library for it is a sixth of what a start takes, and most caches do without.
    from mitm_cache.local.daemon import Daemon  # noqa: PLC0415
    from mitm_cache.local.demand import OnDemand  # noqa: PLC0415

    return OnDemand(
        Daemon(config.local.daemon),
        hosts=(name for name in config.local.names if "/" not in name),
        folder=layout.run / "demand",
        store=store,
        index=index,
        start=start,
    )


class _Arrived:
    """Counts the bytes that came from upstream."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: Event) -> None:
        if event.registry != LOCAL:  # what is pushed has a limit of its own
            self.count += event.bytes_in
