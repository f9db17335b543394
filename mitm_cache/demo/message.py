"""What a demo host is asked and what it answers: plain values, so that a fault can be put between the two."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from mitm_cache.demo.content import Chunk, Content, Memory


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request; header names are in lower case, repeated headers are joined by a comma."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    kind: str = "other"
    sni: str = ""

    def without(self, header: str) -> "Incoming":
        """The same request as if that header had not been sent."""
        return replace(self, headers={name: value for name, value in self.headers.items() if name != header.lower()})


@dataclass(slots=True)
class Answer:
    """One response. Without Content-Length the body ends where the connection does."""

    status: int
    headers: dict[str, str]
    chunks: Iterator[Chunk] = field(default_factory=lambda: iter(()))


type Proceed = Callable[[Incoming], Answer]
type Around = Callable[[Incoming, Proceed], Answer]


class CutError(Exception):
    """Raised while a body is produced: the connection ends here, by a TLS goodbye, a bare FIN or a TCP reset."""

    def __init__(self, how: Literal["goodbye", "close", "reset"] = "close") -> None:
        super().__init__(how)
        self.how = how


def straight(incoming: Incoming, proceed: Proceed) -> Answer:
    """The seam when nothing is put into it."""
    return proceed(incoming)


def full(status: int, content: Content, headers: Mapping[str, str]) -> Answer:
    """All of `content`."""
    return Answer(status, {**headers, "Content-Length": str(content.size)}, content.chunks(0, content.size))


def text(status: int, body: str | bytes, media_type: str, headers: Mapping[str, str] | None = None) -> Answer:
    """A small body of our own."""
    data = body.encode() if isinstance(body, str) else body
    return full(status, Memory(data), {"Content-Type": media_type, **(headers or {})})


def document(status: int, value: object, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON body."""
    return text(status, json.dumps(value), "application/json", headers)


def problem(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An error as the distribution specification writes it."""
    return document(status, {"errors": [{"code": code, "message": message, "detail": None}]}, headers)


def redirect(location: str, status: int = 307) -> Answer:
    """Look elsewhere."""
    return Answer(status, {"Location": location, "Content-Length": "0"})


def ranged(incoming: Incoming, content: Content, headers: Mapping[str, str]) -> Answer:
    """`content`, or the one range of it that was asked for; several ranges at once are answered with all of it."""
    headers = {**headers, "Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", incoming.headers.get("range", ""))
    condition = incoming.headers.get("if-range")
    if not asked or not any(asked.groups()) or (condition is not None and condition != headers.get("ETag")):
        return full(200, content, headers)
    first, last = asked.groups()
    start = int(first) if first else max(0, content.size - int(last))
    stop = min(int(last) + 1, content.size) if first and last else content.size
    if start >= stop:
        return Answer(416, {"Content-Range": f"bytes */{content.size}", "Content-Length": "0"})
    partial = {"Content-Range": f"bytes {start}-{stop - 1}/{content.size}", "Content-Length": str(stop - start)}
    return Answer(206, headers | partial, content.chunks(start, stop))
