"""A request that is passed on as it is, and its answer: both are streams, and neither is ever whole here."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from mitm_cache.errors import ClientError, MitmCacheError, UpstreamError
from mitm_cache.upstream.channel import Channel
from mitm_cache.upstream.curl import Answer


class Passage:
    """The two directions of one exchange. Made in the event loop; `read`, `begin` and `write` are a thread's."""

    def __init__(self, size: int | None, *, stopped: Callable[[], bool]) -> None:
        """`size`: bytes of the request's body, None where it is not known before its end."""
        self.size = size
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Answer] = self._loop.create_future()
        self.upload = Channel(stopped=stopped)
        self.download = Channel(stopped=stopped)
        self._final = False
        self.length: int | None = None
        """Bytes of the answer's body as its head has it; None where they are not known before its end."""
        self._missing: int | None = None

    @property
    def refused(self) -> bool:
        """Whether no more of the request is wanted: upstream cannot be reached, or has said no or where else."""
        return self._answer.done() and (self._answer.exception() is not None or self._final)

    async def room(self) -> None:
        """Wait until more of the request may be sent, or is not wanted."""
        await self.upload.room(lambda: self.refused)

    async def answer(self) -> Answer:
        """Wait for the head of the answer. Raises MitmCacheError."""
        return await asyncio.shield(self._answer)

    async def receive(self) -> bytes:
        """The next bytes of the answer's body; b"" at its end. Raises MitmCacheError where that never comes."""
        return await self.download.receive()

    def close(self) -> None:
        """Let go of it, from the loop: what is still under way ends."""
        gone = ClientError("the client is gone")
        self.upload.fail(gone)
        self.download.fail(gone)

    def abandoned(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.download.failed

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes of the request's body, for upstream."""
        if self._final:
            raise UpstreamError("upstream has answered before the end of the request")
        return self.upload.get(limit)

    def begin(self, answer: Answer) -> bool:
        """Upstream's head."""
        self._final = answer.status >= HTTPStatus.MULTIPLE_CHOICES
        # RFC 9112, 6.3: next to a Transfer-Encoding a length means nothing, and whoever is told both may believe it.
        self.length = self._missing = None if answer.headers.get("transfer-encoding") else answer.length
        self._settle(lambda future: future.set_result(answer))
        return True

    def write(self, data: bytes) -> None:
        """Upstream's body."""
        if self._missing is not None:
            self._missing -= len(data)
        self.download.put(data)

    def finish(self, error: MitmCacheError | None = None) -> None:
        """The exchange has ended, well or with `error`."""
        if error is None or (self._final and self._missing == 0):
            self.download.end()
            return
        self._settle(lambda future: future.set_exception(error))
        self.upload.fail(error)
        self.download.fail(error)

    def _settle(self, settle: Callable[[asyncio.Future[Answer]], None]) -> None:
        def work() -> None:
            if not self._answer.done():
                settle(self._answer)
                self._answer.exception()  # looked at: whoever waits is told again, and nobody may be waiting

        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits there
        self.upload.wake()
