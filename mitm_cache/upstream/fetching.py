"""Content's bytes in their order, by as many requests as it takes to keep what was promised to a client.

Each request asks the registry anew and follows its redirect anew, so that a signed URL that has expired is replaced;
all but the first ask for what is missing by Range. The digest is that of all bytes, whoever sent them.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

from mitm_cache.cache.entry import Head, Link
from mitm_cache.errors import IntegrityError, LoopError, StoppingError, UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import is_schema_1
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.wire.ranges import parse_content_range

PROGRESS = 64 << 10
"""Bytes that have to come before failures are counted anew."""
TRIES = 6
"""Failures without progress after the first promise, before it is given up."""
PAUSES = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each of the next tries."""
PATIENCE = 120.0
"""Seconds without progress, pauses included, before it is given up."""
TICK = 0.2
_AGAIN = (408, 425, 429)
"""Statuses below 500 that say nothing about the content."""
_REFUSALS = (401, 403, 404)
_EXPIRED = (400, 410, *_REFUSALS)
"""What storage hosts answer to a signed URL that is no longer good."""


class Refused(Exception):
    """Upstream's answer to one client's own request: it holds for nobody else."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"upstream answered {answer.status}")
        self.answer = answer


class Moved(IntegrityError):
    """This generation is of no use to anybody, but the next one may be: join again."""


class Uncacheable(UpstreamError):
    """A manifest of schema 1: its digest is of its payload, so its bytes cannot be proven and are not kept."""


class Hopeless(UpstreamError):
    """Upstream has said something that another try would not change."""


@dataclass(frozen=True, slots=True)
class Supply:
    """How one client's request gets the content: with its own credential, from `start` on, at most `max_size` bytes.

    `fetch` runs in a download thread; `landed` records that the repository holds what was fetched.
    """

    fetch: Callable[[int, Sink], Answer]
    landed: Callable[[Link], None]
    registry: str
    max_size: int | None = None


class Target(Protocol):
    """Where the bytes go. Both methods may raise MitmCacheError, which ends the fetching."""

    def promise(self, head: Head) -> None:
        """The size and type are known: from now on a client may be told so."""
        ...

    def take(self, data: bytes) -> None:
        """The next bytes."""
        ...


class Persistence:
    """Decides whether it is tried again, and when."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mark = 0
        self._failures = 0
        self._since = clock()

    def pause(self, size: int, retry_after: str | None = None) -> float | None:
        """Seconds to wait after a failure with `size` bytes there; None where it is to be given up."""
        now = self._clock()
        if size - self._mark >= PROGRESS:
            self._mark, self._failures, self._since = size, 0, now
        pause = max(PAUSES[min(self._failures, len(PAUSES) - 1)], seconds_of(retry_after))
        self._failures += 1
        if self._failures > TRIES or now + pause - self._since > PATIENCE:
            return None
        return pause


def seconds_of(retry_after: str | None) -> float:
    """What a Retry-After asks for (RFC 9110, 10.2.3): seconds or a date; 0 for none, and for nonsense."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


class Fetching:
    """Brings one content to its end, in the calling thread. It is the sink of its own requests."""

    def __init__(self, digest: Digest, supply: Supply, target: Target, *, stopped: Callable[[], bool]) -> None:
        self._digest = digest
        self._supply = supply
        self._target = target
        self._stopped = stopped
        self._hash = hashlib.new(digest.algorithm)
        self._start = 0
        self.size = 0
        self.head: Head | None = None

    def inherit(self, head: Head, data: bytes) -> None:
        """Bytes that are there already, and go on from there."""
        self.head = head
        self._hash.update(data)
        self.size += len(data)

    def run(self) -> Head:
        """Fetch what is missing and prove the whole.

        Raises Refused where upstream refuses this client, MitmCacheError where the content cannot be had.
        """
        persistence = Persistence()
        while self.head is None or self.size < self.head.size:
            try:
                self._fetch()
            except (StoppingError, LoopError, Hopeless):
                raise
            except UpstreamError as error:
                # Before anything was promised an error is an answer, and the client knows best whether to try again.
                pause = None if self.head is None else persistence.pause(self.size, error.retry_after)
                if pause is None:
                    raise
                self._wait(pause)
        self._prove(self.head)
        return self.head

    def _fetch(self) -> None:
        self._start = self.size
        answer = self._supply.fetch(self._start, self)
        if not self._start and answer.status == 200 and answer.length is None:
            self._agree(answer, len(answer.body))
            self.write(answer.body)
        if self.head is None or not answer.ok:
            raise self._failure(answer)
        if self.size < self.head.size:
            raise UpstreamError(f"{answer.origin} ended its answer at byte {self.size} of {self.head.size}")

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stopped():
                raise StoppingError("the cache is shutting down")
            time.sleep(min(left, TICK))

    def begin(self, answer: Answer) -> bool:
        """The head of the content's answer: check it against what is there, and tell the target."""
        if self._start:
            span = parse_content_range(answer.headers.get("content-range"))
            size = self.head.size if self.head else -1
            if answer.status != 206 or span is None or (span.start, span.size) != (self._start, size):
                raise Moved(f"{answer.origin} did not carry on at byte {self._start} when it was asked to")
            return True
        if answer.length is None and answer.status == 200 and self._supply.max_size is not None:
            return False  # a manifest: it is small, and is had whole before anything is promised
        if answer.length is None or answer.status != 200:
            raise Hopeless(f"{answer.origin} sent content with status {answer.status} and no length")
        self._agree(answer, answer.length)
        return True

    def _agree(self, answer: Answer, length: int) -> None:
        if self.head is None:
            self._promise(answer, length)
        elif length != self.head.size:
            raise Moved(f"{answer.origin} announced {length} bytes, after {self.head.size} before")

    def _promise(self, answer: Answer, length: int) -> None:
        media_type = answer.headers.get("content-type") or "application/octet-stream"
        if is_schema_1(media_type):
            raise Uncacheable(f"{answer.origin} sent a manifest of schema 1")
        if self._supply.max_size is not None and length > self._supply.max_size:
            raise Hopeless(f"a manifest is at most {self._supply.max_size} bytes; {length} were announced")
        if length == 0 and self._hash.hexdigest() != self._digest.hex:
            # Of nothing no last byte could be held back.
            raise IntegrityError(f"upstream sent no bytes for {self._digest}", code="SIZE_INVALID")
        self.head = Head(length, media_type)
        self._target.promise(self.head)

    def write(self, data: bytes) -> None:
        """Pass bytes on, and hash them."""
        if self.head is not None and self.size + len(data) > self.head.size:
            raise IntegrityError(f"more than the {self.head.size} bytes that were announced came", code="SIZE_INVALID")
        self._hash.update(data)
        self.size += len(data)
        self._target.take(data)

    def _failure(self, answer: Answer) -> Exception:
        promised = self.head is not None
        if answer.status in _EXPIRED and answer.hops and promised:
            return UpstreamError(f"{answer.origin} answered {answer.status} to the address that it is redirected to")
        if answer.status in _REFUSALS:
            return Refused(answer)
        again = answer.status >= 500 or answer.status in _AGAIN
        too_many = answer.status == 429
        return (UpstreamError if again else Hopeless)(
            f"{answer.origin} answered {answer.status}",
            status=429 if too_many else 502,
            code="TOOMANYREQUESTS" if too_many else "UNKNOWN",
            retry_after=answer.headers.get("retry-after"),
        )

    def _prove(self, head: Head) -> None:
        if self.size != head.size:
            raise IntegrityError(f"{self.size} bytes came where {head.size} were announced", code="SIZE_INVALID")
        if self._hash.hexdigest() != self._digest.hex:
            raise IntegrityError(f"what upstream sent for {self._digest} has another digest")
