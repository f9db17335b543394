"""Work that several want is done once."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable

from mitm_cache.errors import MitmCacheError


class Once[K: Hashable, T]:
    """Results by key, errors included. Lives in one event loop."""

    def __init__(self) -> None:
        self._results: dict[K, asyncio.Future[T]] = {}

    async def do(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the first `work` with this key. Raises the MitmCacheError that it raised."""
        known = self._results.get(key)
        if known is not None:
            return await asyncio.shield(known)
        self._results[key] = future = asyncio.get_running_loop().create_future()
        try:
            result = await work()
        except MitmCacheError as error:
            future.set_exception(error)
            future.exception()  # looked at: nobody else may be waiting
            raise
        except BaseException:
            future.cancel()
            raise
        future.set_result(result)
        return result
