"""Answer a GET with the end of its redirect chain, streamed and kept nowhere: `mitmdump -s follow_redirects.py`.

This is `mitm_cache.upstream.client.Client`, with the routes, the trust and the tokens of `mitm-cache serve`. Clients
that cannot reach a registry's storage hosts need nothing but this.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from mitm_cache import relay
from mitm_cache.answers import NOT_RELAYED, explain
from mitm_cache.core import Core
from mitm_cache.embed import Answering
from mitm_cache.errors import MitmCacheError
from mitm_cache.oci.operation import repository_of
from mitm_cache.upstream.client import Call, Client
from mitm_cache.upstream.passage import Passage
from mitm_cache.wire.message import Request, Response, StreamBody

AT_ONCE = 128
"""Answers under way; more of them wait."""


class Follow:
    """Answers pulls uncached."""

    def __init__(self, client: Client, stopped: Callable[[], bool]) -> None:
        """`stopped`: whether mitmproxy is ending."""
        self._client = client
        self._stopped = stopped
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="follow")

    async def handle(self, request: Request) -> Response:
        """What the last hop says; its body comes while it is sent."""
        passage = Passage(0, stopped=self._stopped)
        self._threads.submit(self._follow, _call(request), passage)
        try:
            answer = await passage.answer()
        except MitmCacheError as error:
            passage.close()
            return explain(error, request)
        bodiless = request.method == "HEAD" or answer.length == 0
        return Response(
            status=answer.status,
            headers=answer.headers.without(NOT_RELAYED),
            body=b"" if bodiless else StreamBody(passage, answer.length),
            outcome="RELAY",
            reason=f"{answer.origin.host} answered {answer.status}, uncached",
        )

    def _follow(self, call: Call, passage: Passage) -> None:
        """The work of a thread."""
        try:
            answer = self._client.stream(call, passage)
            if not answer.ok:
                passage.begin(answer)
                passage.write(answer.body)
        except MitmCacheError as error:
            passage.finish(error)
        else:
            passage.finish()

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _call(request: Request) -> Call:
    """The request as it goes upstream: a HEAD is for the registry alone, since storage is asked by URLs for GET."""
    call = relay.call(request)
    return replace(
        call,
        headers=call.headers.without(["authorization", "accept-encoding"]),
        credential=request.credential,
        repository=repository_of(request.operation),
        follow=request.method == "GET",
    )


class Following(Answering):
    """The job of this script; with pull_through in the same mitmdump, that one answers and follows by itself."""

    name = "follow_redirects"
    rank = 1
    _follow: Follow | None = None

    def answers(self, core: Core) -> Follow:
        """No cache."""
        self._follow = Follow(core.leg.client, core.stopped)
        return self._follow

    def done(self) -> None:
        """End."""
        super().done()
        if self._follow is not None:
            self._follow.close()


addons = [Following()]
