"""Bytes that are read by offset: held in memory here; others may generate gigabytes as they are asked for."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

type Chunk = bytes | memoryview

CHUNK = 256 * 1024


class Content(Protocol):
    """A blob, whole or in part."""

    @property
    def size(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        """The bytes of [start, stop), in pieces that stay valid after the next one is asked for."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A content that is simply there."""

    data: bytes

    def __repr__(self) -> str:
        return f"Memory({self.size} bytes)"

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> str:
        return sha256_of(self)

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        view = memoryview(self.data)
        for offset in range(start, stop, CHUNK):
            yield view[offset : min(offset + CHUNK, stop)]


def sha256_of(content: Content) -> str:
    """The digest of all of `content`, as registries write it."""
    seen = hashlib.sha256()
    for chunk in content.chunks(0, content.size):
        seen.update(chunk)
    return f"sha256:{seen.hexdigest()}"
