"""Media types of manifests, and what a client's Accept header says about them."""

import hashlib

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

MAX_SIZE = 4 << 20
"""Bytes of a manifest (distribution-spec: registries should take at least 4 MiB; clients read no more)."""


def media_type_of(content_type: str) -> str:
    """The media type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_schema_1(content_type: str) -> bool:
    """Whether a Content-Type is the schema whose signed bytes have no digest of their own."""
    return media_type_of(content_type) in SCHEMA_1


def may_be_manifest(media_type: str) -> bool:
    """Whether what an index lists is a manifest, by the type it is said to have, "" for none.

    BuildKit lists the layers of a build cache in an index, and its configuration (`application/vnd.buildkit.
    cacheconfig.v0`): its cache-to with image-manifest=false.
    """
    name = media_type_of(media_type)
    return not name or "manifest" in name or "index" in name


def is_foreign(media_type: str) -> bool:
    """Whether a layer is not the registry's to give: it has a URL elsewhere (image-spec, non-distributable layers)."""
    return ".foreign." in media_type or ".nondistributable." in media_type


class Accept:
    """The manifest types a client takes, in one normal form however its headers are split, ordered or spaced."""

    __slots__ = ("types",)

    def __init__(self, *headers: str) -> None:
        """`headers`: the values of the request's Accept headers; types with q=0 are left out (RFC 9110, 12.4.2)."""
        found = set()
        for item in ",".join(headers).split(","):
            media_type, *parameters = (part.strip().lower() for part in item.split(";"))
            refused = any(p.startswith("q=") and p[2:].strip("0.") == "" for p in parameters)
            if media_type and not refused:
                found.add(media_type)
        self.types = tuple(sorted(found))

    @property
    def header(self) -> str:
        """The normal form as a header value; empty where the client sent none."""
        return ", ".join(self.types)

    @property
    def key(self) -> str:
        """16 hex digits that name this set of types."""
        return hashlib.sha256(self.header.encode()).hexdigest()[:16]

    def takes(self, content_type: str) -> bool:
        """Whether a stored manifest of this Content-Type may be given to the client."""
        media_type = media_type_of(content_type)
        return not self.types or media_type in self.types or "*/*" in self.types or "application/*" in self.types

    def __repr__(self) -> str:
        return f"Accept({self.header!r})"
