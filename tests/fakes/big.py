"""Blobs of any size that are never in memory: deterministic by offset, and as quick as a loopback takes them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from mitm_cache.demo.content import Chunk, sha256_of
from mitm_cache.demo.image import MIB, Image, Layer, assemble


@dataclass(frozen=True, slots=True)
class Pattern:
    """One random MiB again and again, each time begun with its number: no two blocks are the same."""

    size: int
    seed: str = "big"

    @property
    def digest(self) -> str:
        return _digest(self)

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        block = memoryview(_block(self.seed))
        while start < stop:
            number, within = divmod(start, MIB)
            source = memoryview(number.to_bytes(8)) if within < 8 else block
            piece = source[within : min(len(source), within + stop - start)]
            yield piece
            start += len(piece)


def big_image(*sizes: int) -> Image:
    """An image of one platform with layers of exactly these sizes. They are no archives: copy it, do not unpack it."""
    layers = [
        Layer(pattern, pattern.digest)
        for number, size in enumerate(sizes)
        for pattern in [Pattern(size, f"big {number}")]
    ]
    return assemble({"linux/amd64": layers})


@cache
def _block(seed: str) -> bytes:
    return random.Random(seed).randbytes(MIB)


@cache
def _digest(pattern: Pattern) -> str:
    return sha256_of(pattern)
