"""An image's name as people write it, and what it is short for: the rules that docker and containerd share."""

import re
from dataclasses import dataclass
from typing import Self

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Reference, Repository, Tag
from mitm_cache.registries import DOCKER_HUB, LOCAL

LATEST = Tag("latest")
OFFICIAL = "library"
"""Where Docker Hub has the images that are named by one word."""
_OLD_HUB = "index.docker.io"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Image:
    """`registry` is the host, with a port where one is written, in lower case."""

    registry: str
    repository: Repository
    reference: Reference

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `alpine`, `quay.io/team/app:1`, `localhost:5000/app@sha256:…`; raise ClientError (NAME_INVALID).

        A name without a registry is Docker Hub's, and one without tag and digest is of the tag `latest`. Beside a
        digest a tag says nothing. `local/app` is of the registry that the cache itself is.
        """
        try:
            return cls(*_parse(text))
        except ClientError as error:
            shown = text if len(text) <= 80 else f"{text[:80]}…"
            raise ClientError(f"{shown!r} is not the name of an image: {error.message}", code="NAME_INVALID") from error

    def __str__(self) -> str:
        """The whole name, nothing left out."""
        sign = "@" if isinstance(self.reference, Digest) else ":"
        return f"{self.registry}/{self.repository}{sign}{self.reference}"


def _parse(text: str) -> tuple[str, Repository, Reference]:
    if not text:
        raise ClientError("it is empty")
    if found := _SCHEME.match(text):
        raise ClientError(f"it begins with its registry, or with its repository, not with {found[0]}")
    if _IMAGE_ID.fullmatch(text):
        raise ClientError("64 hex digits are the ID of an image on a node, which no registry knows")
    name, at, digest = text.partition("@")
    front, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # a colon before a slash is a port's
        front, colon, tag = name, "", ""
    registry, path = _split(front)
    reference: Reference = Tag.parse(tag) if colon else LATEST
    return registry, Repository.parse(path), Digest.parse(digest) if at else reference


def _split(name: str) -> tuple[str, str]:
    """The registry and the repository. A first part is a host where it could be no part of a repository's name."""
    first, slash, rest = name.partition("/")
    if not slash or not (set(".:[") & set(first) or first in ("localhost", LOCAL) or first != first.lower()):
        return DOCKER_HUB.name, name if slash else f"{OFFICIAL}/{name}"
    if not _HOST.fullmatch(first):
        raise ClientError(f"{first!r} is not a host, with :port or without")
    host = first.lower()
    if host in (DOCKER_HUB.name, _OLD_HUB):
        return DOCKER_HUB.name, rest if "/" in rest else f"{OFFICIAL}/{rest}"
    return host, rest
