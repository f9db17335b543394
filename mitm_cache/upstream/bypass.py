"""Content for one client that is kept nowhere, because the disk takes nothing: proven on the way all the same."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from mitm_cache.cache.entry import Head
from mitm_cache.cache.spool import Part
from mitm_cache.errors import ClientError, MitmCacheError, StoreError, UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.upstream.channel import Channel
from mitm_cache.upstream.fetching import Fetching, Refused, Supply
from mitm_cache.wire.message import UNCACHED

CHUNK = 1 << 20


class Bypass:
    """A source without a file. Made and read in the event loop; `run`, `promise` and `take` are a thread's."""

    def __init__(
        self,
        digest: Digest,
        supply: Supply,
        error: StoreError,
        *,
        stopped: Callable[[], bool],
        head: Head | None = None,
        part: Part | None = None,
        start: int = 0,
    ) -> None:
        """`error`: what the disk refused; `part` with its `head`: a part file that goes no further, whose bytes are
        good so far; `start`: the first byte that is wanted."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Head] = self._loop.create_future()
        self._channel = Channel(stopped=stopped)
        self._fetching = Fetching(digest, supply, self, stopped=stopped)
        self._known = head
        self._part = part
        self._start = start
        self._at = start
        self._wanted = (start, 0)
        self._last = b""
        self.reason = f"{UNCACHED}: {error.message}"

    @property
    def head(self) -> Head:
        """What `ready` has given."""
        return self._ready.result()

    async def ready(self) -> Head:
        """Wait until the size is known. Raises Refused, or MitmCacheError where the content cannot be had."""
        try:
            return await asyncio.shield(self._ready)
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Bring all of it."""
        try:
            self._inherit()
            self._fetching.run()
        except Refused as refusal:
            self._finish(refusal)
        except MitmCacheError as error:
            self._finish(error)
        except BaseException as error:
            self._finish(MitmCacheError(f"internal error: {type(error).__name__}", status=HTTPStatus.BAD_GATEWAY))
            raise
        else:
            self._channel.end()
        finally:
            if self._part is not None:
                self._part.close()

    def _inherit(self) -> None:
        if self._part is None or self._known is None:
            return
        self._settle(self._known)
        _, size = self._part.stat()
        at = 0
        while at < size:
            try:
                chunk = self._part.read(at, CHUNK)
            except StoreError:
                break  # what the disk does not give back either is fetched
            self._fetching.inherit(self._known, chunk)
            at += len(chunk)
            self.take(chunk)
        # With the first byte still to come nothing was inherited, and the size has been promised all the same.
        self._fetching.inherit(self._known, b"")

    def promise(self, head: Head) -> None:
        """The head of upstream's answer."""
        self._settle(head)

    def take(self, data: bytes) -> None:
        """More of it, once the client has taken what came before."""
        begin = self._fetching.size - len(data)
        if wanted := data[max(0, self._start - begin) :]:
            self._channel.put(wanted)

    def _settle(self, result: Head | Exception) -> None:
        def work() -> None:
            if self._ready.done():
                return
            if isinstance(result, Exception):
                self._ready.set_exception(result)
                self._ready.exception()  # looked at: nobody may be waiting
            else:
                self._ready.set_result(result)

        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits there

    def _finish(self, error: MitmCacheError | Refused) -> None:
        self._settle(error)
        refused = UpstreamError("the download cannot be carried on: upstream refuses this client by now")
        self._channel.fail(refused if isinstance(error, Refused) else error)

    def fileno(self) -> int:
        """There is no file."""
        return -1

    async def readable(self, position: int, stop: int) -> int:
        """Nothing is in a file: all of it comes by `receive`."""
        self._wanted = (position, stop)
        return position

    async def receive(self) -> bytes:
        """The next wanted bytes; the last of them once all of the content is proven."""
        position, stop = self._wanted
        while data := await self._channel.receive():
            begin, self._at = self._at, self._at + len(data)
            piece = data[max(0, position - begin) : max(0, stop - begin)]
            if piece and self._at >= stop:
                piece, self._last = piece[:-1], piece[-1:]
            if piece:
                return piece
        last, self._last = self._last, b""
        return last

    def doubt(self) -> None:
        """There is no file."""

    def close(self) -> None:
        """Let go of it: what is under way ends."""
        self._channel.fail(ClientError("the client is gone"))
