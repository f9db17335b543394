"""Byte ranges (RFC 9110, 14): what was asked for, and what is sent of a content of known size."""

import re
from dataclasses import dataclass

# 18 digits are more than any content has, and few enough for int().
# Blanks are taken once and for all (*+): two runs of them side by side would share 60 kB in every way there is.
_RANGE = re.compile(r"bytes\s*+=\s*+([0-9]{0,18})\s*+-\s*+([0-9]{0,18})\s*+", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from `start` to before `stop` of a content of `size` bytes."""

    start: int
    stop: int
    size: int

    @classmethod
    def whole(cls, size: int) -> "Span":
        """All of a content."""
        return cls(0, size, size)

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """The value of a 206's Content-Range."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


class Unsatisfiable(Exception):
    """No byte of the content is in the range that was asked for: 416."""


def resolve(header: str | None, size: int) -> Span | None:
    """The span that a Range header asks of `size` bytes, or None where the whole is to be sent with 200.

    Another unit, several ranges or a malformed header are ignored, as RFC 9110 14.2 allows. Raises Unsatisfiable.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= stop:
        raise Unsatisfiable
    return Span(start, stop, size)


def parse_content_range(header: str | None) -> Span | None:
    """The span an upstream's 206 says it sends; None where it is missing, malformed or of unknown size."""
    match = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[3] == "*":
        return None
    start, last, size = int(match[1]), int(match[2]), int(match[3])
    return Span(start, last + 1, size) if start <= last < size else None
