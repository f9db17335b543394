"""Repository names and tags (OCI distribution-spec 1.1, "Pulling manifests"), as types that are safe in paths."""

import re
from dataclasses import dataclass
from typing import Self

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest

MAX_NAME = 255
"""Characters of a repository name; clients limit host and name together to this."""

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """A repository's name inside its registry, such as `library/alpine`; no part of it can climb out of a folder."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raise ClientError (NAME_INVALID) unless `text` is a name as the specification has it."""
        if len(text) > MAX_NAME or not _NAME.fullmatch(text):
            raise ClientError(
                "a repository name is lower-case letters and digits, separated by '.', '_', '__', '-' or '/', "
                f"of at most {MAX_NAME} characters",
                code="NAME_INVALID",
            )
        return cls(text)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """A tag of at most 128 characters."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raise ClientError (MANIFEST_INVALID) unless `text` is a tag as the specification has it."""
        if not _TAG.fullmatch(text):
            raise ClientError(
                "a tag is at most 128 letters, digits, '_', '.' and '-', and starts with none of '.' and '-'",
                code="MANIFEST_INVALID",
            )
        return cls(text)

    def __str__(self) -> str:
        return self.name


type Reference = Tag | Digest


def parse_reference(text: str) -> Reference:
    """A digest where there is a colon (no tag has one), else a tag."""
    return Digest.parse(text) if ":" in text else Tag.parse(text)
