"""A manifest that is pushed: what it is, and what it needs. Pure."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    may_be_manifest,
    media_type_of,
)
from mitm_cache.oci.reference import Reference

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({*INDEXES, OCI_MANIFEST, DOCKER_MANIFEST})


@dataclass(frozen=True, slots=True)
class Pushed:
    """A manifest's bytes, and the `manifests` and `blobs` that have to be there before it; `subject` need not be."""

    link: Link
    content: bytes
    manifests: tuple[Digest, ...]
    blobs: tuple[Digest, ...]
    subject: Digest | None


def read(content: bytes, content_type: str, reference: Reference) -> Pushed:
    """What was pushed under a tag or a digest, with the Content-Type that its client gave, "" for none.

    Raises ClientError: MANIFEST_INVALID for what is none, or not what it is said to be, DIGEST_INVALID for what is not
    what its name says.
    """
    digest = Digest.of(content)
    if isinstance(reference, Digest):
        if hashlib.new(reference.algorithm, content).hexdigest() != reference.hex:
            raise ClientError(f"what was pushed is {digest}, not {reference}", code="DIGEST_INVALID")
        digest = reference
    document = _parse(content)
    kind = _type(document, content_type)
    manifests: list[Digest] = []
    blobs: list[Digest] = []
    if kind in INDEXES:
        for each, said in _digests(document, "manifests"):
            (manifests if may_be_manifest(said) else blobs).append(each)
    else:
        blobs = [_digest(document.get("config"), "config"), *(each for each, _ in _digests(document, "layers"))]
    subject = document.get("subject")
    return Pushed(
        Link(digest, kind, len(content), Origin.LOCAL),
        content,
        tuple(dict.fromkeys(manifests)),
        tuple(dict.fromkeys(blobs)),
        None if subject is None else _digest(subject, "subject"),
    )


def _parse(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content.decode())  # of bytes Python would take UTF-16 too, which clients do not
    except (ValueError, RecursionError):
        raise _invalid("it is no JSON document") from None
    if not isinstance(document, dict):
        raise _invalid("it is no JSON object")
    return document


def _type(document: dict[str, Any], content_type: str) -> str:
    own, said = document.get("mediaType", ""), media_type_of(content_type)
    if not isinstance(own, str):
        raise _invalid("its mediaType is no text")
    if own and said and media_type_of(own) != said:
        raise _invalid(f"its mediaType is {own[:100]!r} and its Content-Type {said[:100]!r}")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise _invalid("it is an index and an image at once")
    kind = media_type_of(own) or said
    if kind not in MANIFESTS:
        raise _invalid(f"its type is {kind[:100]!r}; allowed: {', '.join(sorted(MANIFESTS))}")
    if document.get("schemaVersion") != 2 or ("manifests" in document) != (kind in INDEXES):
        raise _invalid(f"it is not what its type says, {kind}")
    return kind


def _digests(document: dict[str, Any], key: str) -> Iterator[tuple[Digest, str]]:
    """Each with the type that it is said to have."""
    items = document.get(key) or []
    if not isinstance(items, list):
        raise _invalid(f"its {key} are no list")
    for item in items:
        digest = _digest(item, key)
        if not item.get("urls"):  # foreign layers are fetched from elsewhere, and may be here or not
            said = item.get("mediaType")
            yield digest, said if isinstance(said, str) else ""


def _digest(item: Any, key: str) -> Digest:
    if not isinstance(item, dict) or not isinstance(item.get("digest"), str):
        raise _invalid(f"{key}: there is no digest")
    try:
        return Digest.parse(item["digest"])
    except ClientError as error:
        raise _invalid(f"{key}: {error.message}") from None


def _invalid(words: str) -> ClientError:
    return ClientError(f"the manifest is refused: {words}", code="MANIFEST_INVALID")
