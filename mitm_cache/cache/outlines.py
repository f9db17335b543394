"""What manifests refer to, in short: read once, and kept in a file of the index, which may be thrown away.

A manifest never changes under its digest, so what is kept of one holds for ever. Reading ten thousand of them is most
of the time that a catalog takes; this is one file instead. Its checksum tells whether it is whole.
"""

import hashlib
import json
import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitm_cache.cache.survey import Survey
from mitm_cache.errors import ClientError
from mitm_cache.oci.contents import Contents, platform_of
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import is_foreign

FILE = "outlines"
_HEAD = "outlines of manifests, 2"
CONFIGS = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"},
)
WORTH = 64
"""So many manifests that the file lacks are worth writing it anew, or a part of those it has."""
PART = 50


@dataclass(slots=True)
class Outline:
    """What a manifest or an index refers to, each content once.

    An index has manifests with their platforms, "" where none is told; a manifest has blobs, of which `config` may tell
    a platform, None where none may. `platform` is what it tells, None as long as it was not read. Blobs that are
    `foreign` no registry need have.
    """

    children: tuple[tuple[Digest, str], ...] = ()
    blobs: tuple[Digest, ...] = ()
    config: Digest | None = None
    platform: str | None = None
    foreign: tuple[Digest, ...] = ()


class Outlines:
    """The outlines of a data directory, which need not exist. Reading a manifest raises StoreError where it may not."""

    def __init__(self, index: Path, survey: Survey) -> None:
        """`index`: the folder of the index."""
        self._path = index / FILE
        self._survey = survey
        self._rows = _read(self._path)
        self._known: dict[Digest, Outline] = {}
        self._digests: dict[str, Digest] = {}
        self._news = 0

    def __contains__(self, digest: object) -> bool:
        """Whether somebody has asked for this outline, so that it is a manifest's."""
        return digest in self._known

    def of(self, digest: Digest) -> Outline | None:
        """The outline of a manifest that is here; None where it is not."""
        found = self._known.get(digest)
        if found is None and (row := self._rows.get(str(digest))) is not None:
            found = self._of_row(row)
        if found is None:
            content = self._survey.manifest(digest)
            if content is None:
                return None
            found = self._of_content(content)
            self._news += 1
        self._known[digest] = found
        return found

    def platform(self, outline: Outline) -> str:
        """What a manifest's configuration tells, such as linux/arm64; "" where it is not here, or tells none."""
        if outline.platform is None and outline.config is not None:
            content = self._survey.manifest(outline.config)
            if content is None:
                return ""
            try:
                outline.platform = platform_of(json.loads(content))
            except (ValueError, RecursionError):
                outline.platform = ""  # it is what its digest says, and may be anything
            self._news += 1
        return outline.platform or ""

    def save(self, here: Container[Digest]) -> None:
        """Keep what has been read, of manifests that are here, where that is worth it and the folder is one's own."""
        if self._news < max(WORTH, len(self._rows) // PART):
            return
        rows = {str(digest): _to_row(outline) for digest, outline in self._known.items() if digest in here}
        body = json.dumps(rows, separators=(",", ":")).encode()
        draft = self._path.with_name(f"{FILE}.{os.getpid()}")
        try:
            if self._path.parent.stat().st_uid != os.geteuid():
                return  # root's file would be in the service's way
            draft.write_bytes(_head(body) + body)
            draft.replace(self._path)
        except OSError:
            draft.unlink(missing_ok=True)  # it is read again the next time
            return
        self._news = 0

    def _of_content(self, content: bytes) -> Outline:
        contents = Contents.of(content)
        return Outline(
            tuple((self._digest(str(child.digest)), child.platform) for child in contents.manifests),
            tuple(self._digest(str(blob.digest)) for blob in contents.blobs),
            next((blob.digest for blob in contents.blobs if blob.media_type in CONFIGS), None),
            foreign=tuple(self._digest(str(blob.digest)) for blob in contents.blobs if is_foreign(blob.media_type)),
        )

    def _of_row(self, row: Any) -> Outline | None:
        try:
            children, blobs, config, platform, foreign = row
            return Outline(
                tuple((self._digest(digest), str(of)) for digest, of in children),
                tuple(map(self._digest, blobs)),
                self._digest(config) if config else None,
                platform if platform is None else str(platform),
                tuple(map(self._digest, foreign)),
            )
        except (ClientError, ValueError, TypeError, AttributeError):
            return None  # another version's

    def _digest(self, text: str) -> Digest:
        """Of the same text the same object: comparing them is quick then."""
        found = self._digests.get(text)
        if found is None:
            found = self._digests[text] = Digest.parse(text)
        return found


def _to_row(outline: Outline) -> list[Any]:
    return [
        [[str(digest), platform] for digest, platform in outline.children],
        [str(digest) for digest in outline.blobs],
        "" if outline.config is None else str(outline.config),
        outline.platform,
        [str(digest) for digest in outline.foreign],
    ]


def _head(body: bytes) -> bytes:
    return f"{_HEAD} {hashlib.sha256(body).hexdigest()}\n".encode()


def _read(path: Path) -> dict[str, Any]:
    """The rows of the file; none where it is not there, may not be read, or is damaged."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if _head(body) != head + b"\n":
            return {}
        rows = json.loads(body)
    except (OSError, ValueError, RecursionError):
        return {}
    return rows if isinstance(rows, dict) else {}
