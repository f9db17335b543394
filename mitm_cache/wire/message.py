"""A client's request after the door, and the answer it gets: the same two values for every way in."""

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from mitm_cache.oci.operation import Operation
from mitm_cache.registries import Registry
from mitm_cache.wire.challenge import Realm
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.ranges import Span

UNCACHED = "passed through uncached"
"""How the reason begins of an answer that the disk did not take."""


class Credential:
    """A client's `Authorization` header: passed to its registry and to nowhere else, and never printed."""

    __slots__ = ("header",)

    def __init__(self, header: str) -> None:
        self.header = header

    @property
    def fingerprint(self) -> str:
        """A hash to keep verdicts under; the header itself is kept nowhere."""
        return hashlib.sha256(self.header.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Credential(***)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks of one registry. `target` is the path and query as sent.

    `size`: bytes of its body, None where the client does not say it before its end; `mirror`: it is asked of the cache
    in the registry's stead, which was `chosen` by the client or left to us, with `given` before repositories' names;
    `user`: who of the users file it is, "" for a stranger; `realm`: where the client gets a token of the cache's own,
    None where there are none; `bearer`: it came with one, which may be a stranger's.
    """

    listener: str
    client: str
    method: str
    registry: Registry
    operation: Operation
    target: str
    headers: Headers = field(default_factory=Headers)
    credential: Credential | None = None
    size: int | None = 0
    mirror: bool = False
    given: str = ""
    chosen: bool = True
    user: str = ""
    realm: Realm | None = None
    bearer: bool = False


class File(Protocol):
    """An open file whose bytes are all there; closed by whoever delivers it."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Source(Protocol):
    """A file that may still grow; closed by whoever delivers it."""

    def fileno(self) -> int: ...

    async def readable(self, position: int, stop: int) -> int:
        """Wait until bytes beyond `position` may be sent, and return up to where.

        That is below `stop` until the whole content is proven, and `position` itself where the file grows no more: the
        rest comes by `receive` then. Raises MitmCacheError if it never will be proven.
        """
        ...

    async def receive(self) -> bytes:
        """The next bytes of what the file did not take; b"" at its end. Raises MitmCacheError."""
        ...

    @property
    def reason(self) -> str:
        """Why there is more than the file took."""
        ...

    def doubt(self) -> None:
        """The file could not be read: whoever asks for the content next is given what can be."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FileBody:
    """Bytes `span` of a source, from its start to before its stop."""

    source: Source
    span: Span


class Stream(Protocol):
    """Bytes that come once and are kept nowhere; closed by whoever delivers them."""

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end. Raises MitmCacheError where that will never come."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StreamBody:
    """A stream of `length` bytes, None where that is not known before its end."""

    source: Stream
    length: int | None


type Body = bytes | FileBody | StreamBody


@dataclass(slots=True, kw_only=True)
class Response:
    """An answer, with what the journal will say of it. For HEAD, `body` is empty whatever the headers promise."""

    status: int
    headers: Headers
    body: Body = field(default=b"", repr=False)
    outcome: str
    reason: str = ""
    digest: str = ""
    bytes_in: int = 0

    def close(self) -> None:
        """Let go of the body without delivering it."""
        if not isinstance(self.body, bytes):
            self.body.source.close()


class Handler(Protocol):
    """Answers GET and HEAD."""

    async def handle(self, request: Request) -> Response:
        """Answer one; what goes wrong is an answer too."""
        ...


class Intake(Protocol):
    """Where the body of a request goes. `write` is called by one thread at a time, the others in the event loop."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, which are the caller's again afterwards. Raises MitmCacheError."""
        ...

    async def finish(self) -> Response:
        """The body is whole: answer; what goes wrong is an answer too."""
        ...

    def close(self) -> None:
        """Let go of it, finished or not; what was written stays for who resumes."""
        ...
