"""What a manifest or an index refers to. Pure.

Its bytes are what the digest says, and may be anything: what is not as the specification has it is left out.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import may_be_manifest


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One content that is referred to; `platform` is as in linux/arm64/v8, "" where none is told. Size in bytes."""

    digest: Digest
    size: int
    media_type: str = ""
    platform: str = ""

    @classmethod
    def of(cls, fields: Any) -> Self | None:
        """From the document; None where it names no content."""
        if not isinstance(fields, dict):
            return None
        try:
            digest = Digest.parse(str(fields.get("digest")))
        except ClientError:
            return None
        size, media_type = fields.get("size"), fields.get("mediaType")
        return cls(
            digest,
            size if type(size) is int and size > 0 else 0,
            media_type if isinstance(media_type, str) else "",
            platform_of(fields.get("platform")),
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """`manifests` are an index's; `blobs` its configuration, its layers, and what else an index lists. Each once."""

    manifests: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()

    @classmethod
    def of(cls, content: bytes) -> Self:
        """From the bytes of a manifest or of an index."""
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(document, dict):
            return cls()
        listed = _descriptors(_list(document.get("manifests")))
        blobs = _descriptors([document.get("config"), *_list(document.get("layers"))])
        blobs |= {one.digest: one for one in listed.values() if not may_be_manifest(one.media_type)}
        return cls(tuple(one for one in listed.values() if may_be_manifest(one.media_type)), tuple(blobs.values()))


def _descriptors(items: list[Any]) -> dict[Digest, Descriptor]:
    found = (Descriptor.of(item) for item in items)
    return {one.digest: one for one in found if one is not None}


def _list(items: Any) -> list[Any]:
    return items if isinstance(items, list) else []


def platform_of(fields: Any) -> str:
    """As in linux/arm64/v8, from a descriptor's `platform` or from an image's configuration; "" where none is told."""
    if not isinstance(fields, dict):
        return ""
    parts = (fields.get(name) for name in ("os", "architecture", "variant"))
    return "/".join(part for part in parts if isinstance(part, str) and part.isprintable() and part)
