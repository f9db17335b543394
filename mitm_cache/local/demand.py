"""Push on demand: what a Docker daemon has built is pushed here when somebody asks for it."""

import asyncio
import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mitm_cache.cache.index import Index
from mitm_cache.errors import ClientError, MitmCacheError, StoppingError, StoreError, UpstreamError
from mitm_cache.local.daemon import MARK, Daemon, Held
from mitm_cache.local.newer import Brought, Ours, is_newer, is_same
from mitm_cache.local.store import Store
from mitm_cache.local.turns import Turns
from mitm_cache.oci.contents import Contents
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import Accept
from mitm_cache.oci.operation import repository_of
from mitm_cache.oci.reference import Reference, Repository, Tag
from mitm_cache.registries import LOCAL
from mitm_cache.tasks import in_pool
from mitm_cache.upstream.flight import Start
from mitm_cache.upstream.route import is_own_address
from mitm_cache.wire.message import Request

PATIENCE = 120.0
"""Seconds that a client waits for a push; it goes on, and the client is asked to come again."""
LOOK_SECONDS = 1.0
"""That a look at the daemon may cost a pull of what is stored."""
LONGER_SECONDS = 5.0
"""The same of what is not: there is nothing better to do, and Podman may have to be started."""
AWAY_SECONDS = 5.0
"""Until a daemon that has not answered is asked again."""
ROUNDS = 3
"""An image may be built anew while it is pushed."""
TICK = 0.1
"""Seconds between two looks whether another process's push has ended."""
LOOKS = 8
"""Threads that ask the daemon."""
CHORES = 4
"""Threads for what blocks on the disk: those above may all wait for a daemon that hangs."""
PUSHES = 4
"""At once; each has a thread, and the daemon reads the disk for it."""
DAEMONS = ("docker/", "containers/", "libpod/", "podman/")
"""How the User-Agent begins of what pushes."""

logger = logging.getLogger(__name__)

type Name = tuple[Repository, Tag]


class OnDemand:
    """Has a daemon push what it has newer than we do. Made and closed in the event loop, and lives in it."""

    def __init__(  # noqa: PLR0913 - it joins so many parts
        self,
        daemon: Daemon,
        *,
        hosts: Iterable[str],
        folder: Path,
        store: Store,
        index: Index,
        start: Start,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hosts`: by which images of ours are named; `folder`: for locks, of all processes; `start` begins a task;
        `clock`: seconds, by which a daemon that is away is asked again."""
        self._daemon = daemon
        # What docker would take for a repository of Docker Hub is never pushed: it would go there.
        self._hosts = tuple(host for host in hosts if set(host) & set(".:") or host == "localhost")
        self._turns = Turns(folder)
        self._store, self._index = store, index
        self._start = start
        self._patience = patience
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._looks = ThreadPoolExecutor(LOOKS, thread_name_prefix="daemon")
        self._slots = asyncio.Semaphore(PUSHES)
        self._chores = ThreadPoolExecutor(CHORES, thread_name_prefix="on-demand")
        self._asked: dict[str, tuple[threading.Event, asyncio.Future[list[Held]]]] = {}
        self._pushing: dict[Name, asyncio.Future[None]] = {}
        self._away_until = float("-inf")
        self._is_away = False

    def close(self) -> None:
        """End what is under way; it takes a second at most."""
        self._daemon.close()
        self._looks.shutdown(wait=False, cancel_futures=True)  # they may wait for a daemon that hangs
        self._chores.shutdown()

    async def is_own(self, request: Request) -> bool:
        """Whether a request belongs to a push that the daemon was asked for, in any process."""
        mark = request.headers.get(MARK)
        return mark is not None and await self._run(partial(self._turns.knows, mark, repository_of(request.operation)))

    async def refresh(self, request: Request, repository: Repository, reference: Reference) -> None:
        """Have the daemon push what a client asks for, where it has that and newer than we do.

        Nothing happens where the daemon is away, and where it fails while we have something to serve. Raises
        UpstreamError: 503 where it takes too long, 502 with the daemon's words where it fails and we have nothing;
        StoreError.
        """
        if _is_pushers_look(request) or await self.is_own(request) or await self._is_daemons(request, repository):
            return
        try:
            async with asyncio.timeout(self._patience):
                if isinstance(reference, Tag):
                    await self._refresh_tag(repository, reference)
                elif not await self._run(partial(self._holds, repository, reference)):
                    await self._refresh_digest(repository, reference)
        except TimeoutError:
            words = f"the daemon is still pushing {repository}:{reference} after {self._patience:.0f} s; ask again"
            raise UpstreamError(words, status=503, code="UNAVAILABLE", retry_after="10") from None

    async def _refresh_digest(self, repository: Repository, digest: Digest) -> None:
        """What has been pushed by that digest once is pushed again, by a tag: a push needs one."""
        for held in await self._ask([f"{host}/{repository}@{digest}" for host in self._hosts], LONGER_SECONDS):
            for tag in self._tags(held, repository):
                await self._refresh_tag(repository, tag)
                if await self._run(partial(self._holds, repository, digest)):
                    return

    def _tags(self, held: Held, repository: Repository) -> list[Tag]:
        """The tags of a repository of ours that an image has at the daemon."""
        found = []
        for name in held.tags:
            front, _, tag = name.rpartition(":")
            if front in {f"{host}/{repository}" for host in self._hosts}:
                try:
                    found.append(Tag.parse(tag))
                except ClientError:
                    continue  # a name without a tag, with a port
        return found

    async def _refresh_tag(self, repository: Repository, tag: Tag) -> None:
        name = (repository, tag)
        for _ in range(ROUNDS):
            await self._wait(name)  # a busy daemon may not answer in time while it pushes
            patience = LONGER_SECONDS if await self._run(partial(self._ours, name)) is None else LOOK_SECONDS
            held = await self._ask([f"{host}/{repository}:{tag}" for host in self._hosts], patience)
            if not held:
                return
            newest = max(held, key=lambda one: one.given)
            if not await self._run(partial(self._is_wanted, name, newest)):
                return
            try:
                await self._push(name, newest)
            except (UpstreamError, StoreError) as error:
                if isinstance(error, StoppingError) or await self._run(partial(self._ours, name)) is None:
                    raise
                if isinstance(error, StoreError):
                    logger.warning("%s", error.message)  # the others have been
                return  # what is stored is served

    async def _wait(self, name: Name) -> None:
        """Until nobody pushes this."""
        if (under_way := self._pushing.get(name)) is not None:
            await asyncio.wait([under_way])
        while await self._run(partial(self._turns.is_busy, *name)):  # noqa: ASYNC110 - other processes tell nothing
            await asyncio.sleep(TICK)

    async def _push(self, name: Name, held: Held) -> None:
        """One push for all who want it. Raises UpstreamError."""
        if (done := self._pushing.get(name)) is None:
            self._pushing[name] = done = self._loop.create_future()
            done.add_done_callback(lambda _: self._pushing.pop(name, None))
            self._start(self._do_push(name, held, done))
        await asyncio.shield(done)

    async def _do_push(self, name: Name, held: Held, done: asyncio.Future[None]) -> None:
        """Goes on when nobody waits any more; what it comes to is the future's."""
        error: MitmCacheError = StoppingError("the cache is shutting down")
        try:
            async with self._slots:
                await self._push_alone(name, held)
        except MitmCacheError as fault:
            error = fault
        else:
            done.set_result(None)
            return
        finally:
            if not done.done():
                done.set_exception(error)
                done.exception()  # looked at: nobody may be waiting any more

    async def _push_alone(self, name: Name, held: Held) -> None:
        """Have it pushed, unless another process does, has done so, or has failed just now."""
        turn = await self._run(partial(self._turns.take, *name))
        if turn is None:
            return  # whoever wants it waits for that process's
        failed = False
        try:
            if words := await self._run(partial(turn.failure, held.id)):
                failed = True
                raise UpstreamError(words)
            if await self._run(partial(self._is_wanted, name, held)):
                await self._run(turn.begin)
                await self._push_in_turn(name, held, turn.mark)
        except StoppingError:
            raise
        except UpstreamError as error:
            if not failed:
                failed = True
                logger.warning("%s", error.message)
                await self._run(partial(turn.fail, held.id, error.message))
            raise
        finally:
            turn.finish(failed=failed)

    async def _push_in_turn(self, name: Name, held: Held, mark: str) -> None:
        before = await self._run(partial(self._ours, name))
        began = self._loop.time()
        said = await asyncio.wrap_future(_in_thread(lambda: self._daemon.push(held.name, mark)))
        ours = await self._run(partial(self._ours, name))
        if ours is None or (ours == before and said != ours.digest and not is_same(held, ours)):
            raise UpstreamError(f"the daemon has pushed {held.name} to somewhere else: to it that is another host")
        logger.info("the daemon has pushed %s in %.1f s", held.name, self._loop.time() - began)
        note = Brought(held.id, ours.digest).to_json()
        await self._run(partial(self._index.put, _key(name), note))

    def _is_wanted(self, name: Name, held: Held) -> bool:
        return is_newer(held, self._ours(name), self._brought(name))

    async def _ask(self, names: list[str], patience: float) -> list[Held]:
        """What the daemon has by these names; nothing where it is away."""
        if self._clock() < self._away_until or not names:
            return []
        begun, asked = self._asked.get(names[0], (None, None))
        if begun is None or asked is None or begun.is_set():
            asked = self._look(names)
        try:
            async with asyncio.timeout(patience):
                held = await asyncio.shield(asked)
        except TimeoutError:
            self._miss(f"the daemon at {self._daemon.url} does not answer within {patience:.0f} s")
            return []
        except UpstreamError as error:
            self._miss(error.message)
            return []
        return held

    def _miss(self, words: str) -> None:
        """The daemon is away: that costs nobody anything for a while, and is said once."""
        self._away_until = self._clock() + AWAY_SECONDS
        if not self._is_away:
            logger.warning("%s; what is stored is served, and it is asked again every %.0f s", words, AWAY_SECONDS)
        self._is_away = True

    def _meet(self) -> None:
        self._away_until = float("-inf")
        if self._is_away:
            logger.warning("the daemon at %s answers again", self._daemon.url)
        self._is_away = False

    def _look(self, names: list[str]) -> asyncio.Future[list[Held]]:
        """A look at the daemon, which all share who come before it has begun."""
        begun = threading.Event()

        def look() -> list[Held]:
            begun.set()
            return self._daemon.look(names)

        def forget(done: asyncio.Future[list[Held]]) -> None:
            if self._asked.get(names[0]) == (begun, done):
                del self._asked[names[0]]
            if not done.cancelled() and done.exception() is None:
                self._meet()  # late, it may be

        asked = in_pool(self._looks, look)
        self._asked[names[0]] = (begun, asked)
        asked.add_done_callback(forget)
        return asked

    async def _run[T](self, work: Callable[[], T]) -> T:
        """What is done shortly, on the disk."""
        return await in_pool(self._chores, work)

    async def _is_daemons(self, request: Request, repository: Repository) -> bool:
        """Whether the daemon seems to ask, in its push, for what it pushes: not every one passes our mark on."""
        agent = (request.headers.get("user-agent") or "").lower()
        return (
            agent.startswith(DAEMONS)
            and _is_here(request.client)
            and await self._run(partial(self._turns.is_busy, repository))
        )

    def _holds(self, repository: Repository, digest: Digest) -> bool:
        return self._store.manifest(repository, digest) is not None

    def _ours(self, name: Name) -> Ours | None:
        """What a tag is here, None where it is nothing or its content has gone."""
        repository, tag = name
        digest = self._store.tagged(repository, tag)
        if digest is None or (content := self._store.content(digest)) is None:
            return None
        top = Contents.of(content)
        within = {one.digest for one in (*top.manifests, *top.blobs)}
        for one in top.manifests:
            if (inner := self._store.content(one.digest)) is not None:
                within |= {each.digest for each in Contents.of(inner).blobs}
        given = self._store.links.given_at(LOCAL, repository, tag)
        return Ours(str(digest), frozenset(map(str, within)), given or 0.0)

    def _brought(self, name: Name) -> Brought | None:
        text = self._index.get(_key(name))
        try:
            return Brought.from_json(text) if isinstance(text, str) else None
        except StoreError:
            return None


def _key(name: Name) -> str:
    return f"demand:{name[0]}:{name[1]}"


def _is_pushers_look(request: Request) -> bool:
    """Whether a client looks if what it pushes is here already: it names the one type that this has.

    It must not wait, since the daemon may be the one that looks, nor be told that anything has failed.
    """
    types = Accept(*request.headers.get_all("accept")).types
    return request.method == "HEAD" and len([one for one in types if "*" not in one]) == 1


def _is_here(address: str) -> bool:
    """Whether an address is one of this host's."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return is_own_address(str(getattr(parsed, "ipv4_mapped", None) or parsed))


def _in_thread[T](work: Callable[[], T]) -> Future[T]:
    """Do something in a thread that nobody waits for when the program ends. Raises StoreError where there is none."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except MitmCacheError as error:
            future.set_exception(error)
        except BaseException:
            future.set_exception(UpstreamError("internal error"))
            raise

    try:
        threading.Thread(target=run, name="push", daemon=True).start()
    except RuntimeError as error:
        raise StoreError(f"nothing can be pushed beside the requests: {error}") from error
    return future
