"""Content digests (OCI image-spec 1.1, "Digests"): parsed once, then a value that cannot hold nonsense."""

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from mitm_cache.errors import ClientError

HEX_LENGTHS = {"sha256": 64, "sha512": 128}
"""The registered algorithms, with the length of their lower-case hex."""

_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm this cache can verify and the lower-case hex of the content's hash."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `sha256:<64 hex>` or `sha512:<128 hex>`; raise ClientError (DIGEST_INVALID) for anything else."""
        algorithm, _, digits = text.partition(":")
        length = HEX_LENGTHS.get(algorithm)
        if length is None:
            raise ClientError(
                f"digest algorithm {algorithm[:32]!r} is not supported; allowed: {', '.join(HEX_LENGTHS)}",
                code="DIGEST_INVALID",
            )
        if len(digits) != length or not _HEX.fullmatch(digits):
            raise ClientError(f"a {algorithm} digest has {length} lower-case hex digits", code="DIGEST_INVALID")
        return cls(algorithm, digits)

    @classmethod
    def of(cls, content: bytes) -> Self:
        """The SHA-256 digest of `content`."""
        return cls("sha256", hashlib.sha256(content).hexdigest())

    @property
    def filename(self) -> str:
        """The digest as one path component."""
        return f"{self.algorithm}-{self.hex}"

    def __hash__(self) -> int:
        return hash(self.hex)  # which text remembers: a catalog asks for millions

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
