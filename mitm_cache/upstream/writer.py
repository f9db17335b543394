"""The writer of a download: brings one generation of a part file to its end, in a thread of its own."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from mitm_cache.cache.entry import Head, Link
from mitm_cache.cache.spool import Outcome, Part, Spool
from mitm_cache.errors import IntegrityError, MitmCacheError, StoppingError, StoreError, UpstreamError
from mitm_cache.oci.manifest import is_schema_1
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.wire.ranges import parse_content_range

NOTICE_BYTES = 256 << 10
NOTICE_SECONDS = 0.01
"""How often readers are woken at most: libcurl brings 16 KiB at a time."""


class Refused(Exception):
    """Upstream's answer to one client's own request: it holds for nobody else."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"upstream answered {answer.status}")
        self.answer = answer


class Moved(IntegrityError):
    """This generation is of no use to anybody, but the next one may be: join again."""


class Uncacheable(UpstreamError):
    """A manifest of schema 1: its digest is of its payload, so its bytes cannot be proven and are not kept."""


@dataclass(frozen=True, slots=True)
class Supply:
    """How one client's request gets the content: with its own credential, from `start` on, at most `max_size` bytes.

    `fetch` runs in a download thread; `landed` records that the repository holds what was fetched.
    """

    fetch: Callable[[int, Sink], Answer]
    landed: Callable[[Link], None]
    registry: str
    max_size: int | None = None


class Writer:
    """Brings one generation to its end, in a download thread. Owns the part's lock."""

    def __init__(self, spool: Spool, part: Part, supply: Supply, announce: Callable[[], None]) -> None:
        self._spool = spool
        self._part = part
        self._supply = supply
        self._announce = announce
        self._hash = hashlib.new(part.digest.algorithm)
        self._start = 0
        self._size = 0
        self._head: Head | None = None
        self._noticed = (0, 0.0)

    def run(self) -> None:
        """Download, prove, keep.

        Raises Refused where upstream refuses this client: the generation is left to others if it has any bytes.
        Raises MitmCacheError where the generation is bad, after it has been discarded.
        """
        try:
            self._run()
        finally:
            self._part.close()  # unlocks, last
            self._announce()

    def _run(self) -> None:
        try:
            self._resume()
            if self._head is None or self._size < self._head.size:
                answer = self._supply.fetch(self._start, self)
                if self._head is None or not answer.ok:
                    raise self._refusal(answer)
            self._prove()
            self._land()  # first: with the last byte in hand a client may ask again
            self._spool.seal(self._part)
        except Refused as refusal:
            if self._start == 0:
                self._discard(
                    Outcome(refusal.answer.status, "UNKNOWN", "upstream refused another client", shared=False)
                )
            raise
        except StoppingError:
            raise  # the next start carries on
        except MitmCacheError as error:
            retry_after = error.retry_after if isinstance(error, UpstreamError) else None
            shared = not isinstance(error, Moved | Uncacheable)
            self._discard(Outcome(error.status, error.code, error.message, shared, retry_after))
            raise

    def _resume(self) -> None:
        """Hash what a writer before us has left."""
        note = self._spool.note(self._part)
        _, size = self._part.stat()
        if note is None or note.head.size < 0 or note.head.size < size:
            if size:
                raise Moved("a download that was broken off left bytes of unknown size")
            return
        while self._start < size:
            chunk = self._part.read(self._start, 1 << 20)
            self._hash.update(chunk)
            self._start += len(chunk)
        self._size = self._start
        self._head = note.head if self._start else None

    def begin(self, answer: Answer) -> bool:
        """The head of the content's answer: check it against what is there, and tell the readers."""
        if self._start:
            span = parse_content_range(answer.headers.get("content-range"))
            size = self._head.size if self._head else -1
            if answer.status != 206 or span is None or (span.start, span.size) != (self._start, size):
                raise Moved(f"{answer.origin} did not carry on at byte {self._start} when it was asked to")
            return True
        if answer.length is None or answer.status != 200:
            raise UpstreamError(f"{answer.origin} sent content with status {answer.status} and no length")
        media_type = answer.headers.get("content-type") or "application/octet-stream"
        if is_schema_1(media_type):
            raise Uncacheable(f"{answer.origin} sent a manifest of schema 1")
        if self._supply.max_size is not None and answer.length > self._supply.max_size:
            raise UpstreamError(f"a manifest is at most {self._supply.max_size} bytes; {answer.length} were announced")
        if answer.length == 0 and self._hash.hexdigest() != self._part.digest.hex:
            # Of nothing no last byte could be held back.
            raise IntegrityError(f"upstream sent no bytes for {self._part.digest}", code="SIZE_INVALID")
        self._head = Head(answer.length, media_type)
        self._spool.write_note(self._part, self._head)
        self._announce()
        return True

    def write(self, data: bytes) -> None:
        """Append and hash; wake the readers now and then."""
        if self._head is not None and self._size + len(data) > self._head.size:
            raise IntegrityError(f"more than the {self._head.size} bytes that were announced came", code="SIZE_INVALID")
        self._part.append(data)
        self._hash.update(data)
        self._size += len(data)
        size, when = self._noticed
        now = time.monotonic()
        if self._size - size >= NOTICE_BYTES or now - when >= NOTICE_SECONDS:
            self._noticed = (self._size, now)
            self._announce()

    def _refusal(self, answer: Answer) -> Exception:
        if answer.status in (401, 403, 404):
            return Refused(answer)
        too_many = answer.status == 429
        return UpstreamError(
            f"{answer.origin} answered {answer.status}",
            status=429 if too_many else 502,
            code="TOOMANYREQUESTS" if too_many else "UNKNOWN",
            retry_after=answer.headers.get("retry-after"),
        )

    def _prove(self) -> None:
        assert self._head is not None
        if self._size != self._head.size:
            raise IntegrityError(f"{self._size} bytes came where {self._head.size} were announced", code="SIZE_INVALID")
        if self._hash.hexdigest() != self._part.digest.hex:
            raise IntegrityError(f"what upstream sent for {self._part.digest} has another digest")

    def _land(self) -> None:
        assert self._head is not None
        try:
            self._supply.landed(Link(self._part.digest, self._head.media_type, self._head.size))
        except StoreError:
            pass  # the content is here and proven; only who holds it has to be asked again

    def _discard(self, outcome: Outcome) -> None:
        try:
            self._spool.discard(self._part, outcome)
        except OSError as error:
            raise StoreError(f"the spool cannot be written: {error.strerror}") from error
