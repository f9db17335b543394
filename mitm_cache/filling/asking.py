"""Questions to registries in the cache's own name, asked again where an answer says nothing."""

import asyncio
from collections.abc import Awaitable, Callable

from mitm_cache.errors import LoopError, MitmCacheError, OfflineError, StoppingError, UnreachableError, UpstreamError
from mitm_cache.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, MAX_SIZE, OCI_INDEX, OCI_MANIFEST, Accept
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import Registry
from mitm_cache.upstream.client import Call
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.fetching import seconds_of
from mitm_cache.upstream.leg import Leg
from mitm_cache.wire.headers import Headers

ACCEPT = Accept(OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try."""
LONGEST = 60.0
"""Seconds that a registry's Retry-After is obeyed for."""


class Denied(UpstreamError):
    """A registry has said something that another try would not change."""


class Asking:
    """One run's questions. A registry that was away for all tries is not asked again in this run."""

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        self._gone: dict[str, MitmCacheError] = {}

    def call(
        self, registry: Registry, repository: Repository, rest: str, *, method: str = "GET", limit: int = MAX_SIZE
    ) -> Call:
        """A request for what is below a repository, such as `manifests/1`."""
        return Call(
            registry=registry,
            repository=repository,
            method=method,
            target=f"/v2/{repository}/{rest}",
            headers=Headers([("Accept", ACCEPT.header)] if rest.startswith("manifests/") else []),
            credential=None,
            own=True,
            limit=limit,
        )

    async def exchange(self, call: Call) -> Answer:
        """An answer that says something. Raises UpstreamError."""

        async def ask() -> Answer:
            return _telling(call, await self._leg.exchange(call))

        return await self.insist(call.registry, ask)

    async def prove(self, call: Call) -> Answer:
        """See `Client.prove`. Raises UpstreamError."""

        async def ask() -> Answer:
            return _telling(call, await self._leg.prove(call))

        return await self.insist(call.registry, ask)

    async def insist[T](self, registry: Registry, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer, five times at most. Raises UpstreamError."""
        for pause in (*PAUSES, None):
            if (gone := self._gone.get(registry.name)) is not None:
                raise gone
            try:
                return await ask()
            except (OfflineError, LoopError, StoppingError, Denied):
                raise
            except UpstreamError as error:
                if pause is None:
                    if isinstance(error, UnreachableError):
                        self._gone[registry.name] = error
                    raise
                await asyncio.sleep(max(pause, min(seconds_of(error.retry_after), LONGEST)))
        raise AssertionError("the last try returns or raises")


def _telling(call: Call, answer: Answer) -> Answer:
    if answer.status == 429 or answer.status >= 500:
        raise UpstreamError(
            f"{call.registry.name} answered {answer.status}", retry_after=answer.headers.get("retry-after")
        )
    return answer


def refused(call: Call, answer: Answer, what: str) -> Denied:
    """What to tell of an answer that is no yes."""
    words = {
        401: "it wants another credential (registries.NAME.credentials, or credentials in the file)",
        403: "its credential has no right there",
        404: "it is not there, or its credential has no right there",
    }
    why = words.get(answer.status, "")
    return Denied(f"{call.registry.name} answered {answer.status} for {what}{f': {why}' if why else ''}")
