"""What an export holds, beside the images themselves: a JSON document that tells the next export what is there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest

NAME = "mitm-cache.json"
"""Its name in an export; other tools pass over it."""
FORMAT = 1
MAX_SIZE = 256 << 20


@dataclass(frozen=True, slots=True)
class Named:
    """An image, by its whole name, and the digest that is it."""

    name: str
    digest: Digest
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of an image that is not in the cache: an index's child, a layer, a configuration."""

    image: str
    digest: Digest
    platform: str = ""

    def __str__(self) -> str:
        return f"{self.image}: {self.platform + ' ' if self.platform else ''}{self.digest}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """`images` are those in the export, `known` all that it and those before it hold; `blobs`, with their sizes in
    bytes, are in it, `needs` in those before it; `missing` was left out."""

    images: tuple[Named, ...] = ()
    known: Mapping[str, Digest] = field(default_factory=dict)
    blobs: Mapping[Digest, int] = field(default_factory=dict)
    needs: Mapping[Digest, int] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()

    def to_json(self) -> bytes:
        """The document."""
        document = {
            "format": FORMAT,
            "images": [
                {"name": one.name, "digest": str(one.digest), "mediaType": one.media_type, "size": one.size}
                for one in self.images
            ],
            "known": {name: str(digest) for name, digest in sorted(self.known.items())},
            "blobs": _sizes(self.blobs),
            "needs": _sizes(self.needs),
            "missing": [
                {"image": one.image, "digest": str(one.digest), "platform": one.platform} for one in self.missing
            ],
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """The inverse of `to_json`. Raises ClientError for anything else."""
        try:
            document = json.loads(content)
            version = document["format"]
            if version != FORMAT:
                raise ClientError(f"its inventory is of format {version!r}; this version knows format {FORMAT}")
            return cls(
                tuple(_named(one) for one in document["images"]),
                {str(name): Digest.parse(str(digest)) for name, digest in document["known"].items()},
                _digests(document["blobs"]),
                _digests(document["needs"]),
                tuple(
                    Missing(str(one["image"]), Digest.parse(str(one["digest"])), str(one["platform"]))
                    for one in document["missing"]
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ClientError(f"its inventory, {NAME}, is damaged") from error


def _named(fields: Any) -> Named:
    return Named(
        str(fields["name"]), Digest.parse(str(fields["digest"])), str(fields["mediaType"]), int(fields["size"])
    )


def _sizes(blobs: Mapping[Digest, int]) -> dict[str, int]:
    return {str(digest): size for digest, size in sorted(blobs.items())}


def _digests(fields: Mapping[str, Any]) -> dict[Digest, int]:
    return {Digest.parse(text): int(size) for text, size in fields.items()}
