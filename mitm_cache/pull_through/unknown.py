"""Tags that upstream has just said are not there, or not for strangers: who asks again at once is told the same, for a
few seconds."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus

from mitm_cache.cache.pushed import Pushed
from mitm_cache.pull_through.wanted import Wanted
from mitm_cache.upstream.curl import Answer

KEEP_SECONDS = 10.0
MAX_ASKING = 90.0
"""Seconds within which a push may have overtaken an answer that is still kept."""
MAX_KEPT = 1024
MAX_BODY = 4 << 10
"""Bytes of an answer that is kept."""


class Unknown:
    """The last such answers of this process, each for who asked."""

    def __init__(self, pushed: Pushed, clock: Callable[[], float] = time.monotonic) -> None:
        self._pushed = pushed
        self._clock = clock
        self._kept: OrderedDict[tuple[str, ...], tuple[float, Answer]] = OrderedDict()

    def keep(self, wanted: Wanted, answer: Answer, *, stranger: bool) -> None:
        """Keep an answer, where it says that there is no such tag, or to a `stranger` that it has to log in."""
        lasting = answer.status == HTTPStatus.NOT_FOUND or (answer.status == HTTPStatus.UNAUTHORIZED and stranger)
        if not lasting or len(answer.body) > MAX_BODY:
            return
        # Strangers are one client here, and a session is one client's.
        told = replace(answer, headers=answer.headers.without(["set-cookie"]))
        self._kept[_key(wanted)] = self._clock() + KEEP_SECONDS, told
        self._kept.move_to_end(_key(wanted))
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def find(self, wanted: Wanted) -> Answer | None:
        """The answer of a moment ago; None where there is none, or the tag was pushed since."""
        until, answer = self._kept.get(_key(wanted), (0.0, None))
        if answer is None or until < self._clock():
            return None
        pushed = self._pushed.since(wanted.registry, wanted.repository, wanted.tag, MAX_ASKING)
        return None if pushed else answer


def _key(wanted: Wanted) -> tuple[str, ...]:
    request = wanted.request
    who = request.credential.fingerprint if request.credential is not None else ""
    return request.method, wanted.registry, str(wanted.repository), str(wanted.tag), wanted.accept.key, who
