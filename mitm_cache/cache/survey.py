"""What is kept, read from the files alone: nothing is made or changed, whether the service runs or not."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link
from mitm_cache.cache.index import TIMEOUT
from mitm_cache.cache.layout import Layout
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE
from mitm_cache.oci.reference import Repository, Tag

LAST = "\U0010ffff"
"""Comes after all that follows a prefix."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """What a tag is or was, by its type, "" where only its digest was heard; `since` is when this cache first heard
    that it is that, and `asked` when it last did, as far as that is known (seconds since 1970)."""

    digest: Digest
    media_type: str
    since: float
    asked: float | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A blob's size in bytes, and when it was last used (seconds since 1970, good to an hour)."""

    size: int
    used: float


class Survey:
    """Reads a data directory, which need not exist. Its methods raise StoreError where they may not read."""

    def __init__(self, data_dir: Path) -> None:
        layout = Layout(data_dir, "")
        self._links = layout.links
        self._index = layout.index
        self._blobs = Blobs(layout.blobs)

    def tagged(self, registry: str, repository: Repository, tag: Tag) -> list[Tagged]:
        """What a tag is, the latest first: clients that take other types of manifests may be given another one.

        What it was heard to be since then, and was not served yet, comes before.
        """
        folder = self._links / registry / str(repository)
        heard = dict(self._heard(folder / "_heard" / str(tag)))
        found: dict[Digest, Tagged] = {}
        for asked, link in self._confirmed(f"tag:{registry}/{repository}:{tag} "):
            found.setdefault(link.digest, Tagged(link.digest, link.media_type, heard.get(link.digest, asked), asked))
        for path in sorted(_files(folder / "_tags" / str(tag)), key=_changed, reverse=True):
            try:
                link = Link.from_json(path.read_text(errors="replace"))
            except (StoreError, FileNotFoundError):
                continue  # damaged, or forgotten meanwhile
            except OSError as error:
                raise StoreError(f"{path} cannot be read: {error.strerror}") from error
            here = found.get(link.digest, Tagged(link.digest, link.media_type, float("inf")))
            since = heard.get(link.digest, _changed(path))
            found[link.digest] = replace(here, since=min(since, here.since))
        last = max((one.since for one in found.values()), default=0.0)
        news = [Tagged(digest, "", since) for digest, since in heard.items() if digest not in found and since > last]
        return [*sorted(news, key=lambda one: one.since, reverse=True), *found.values()]

    def _confirmed(self, prefix: str) -> list[tuple[float, Link]]:
        """What the index has of a tag, the latest first: when upstream said so, and what."""
        found = []
        for at, _, text in (value.partition(" ") for _, value in self.rows(prefix)):
            try:
                found.append((float(at), Link.from_json(text)))
            except (ValueError, StoreError):
                continue  # damaged
        return sorted(found, key=lambda row: row[0], reverse=True)

    def rows(self, prefix: str) -> list[tuple[str, str]]:
        """Keys of the index that begin with `prefix`, and their texts.

        It may be thrown away at any time, so that nothing is missing where it cannot be read.
        """
        name = self._index / "cache.db"
        # While nobody has it open there is no log beside it, and reading must not leave one.
        way = "mode=ro" if name.with_name("cache.db-wal").exists() else "mode=ro&immutable=1"
        try:
            with closing(sqlite3.connect(f"{name.absolute().as_uri()}?{way}", uri=True, timeout=TIMEOUT)) as index:
                rows = index.execute(
                    "SELECT key, value FROM Cache WHERE raw = 1 AND key >= ? AND key < ? AND expire_time > ?",
                    (prefix, prefix + LAST, time.time()),
                ).fetchall()
        except sqlite3.Error:
            return []
        return [(key, value) for key, value in rows if isinstance(key, str) and isinstance(value, str)]

    def _heard(self, folder: Path) -> Iterator[tuple[Digest, float]]:
        for path in _files(folder):
            try:
                yield Digest.parse(path.name.replace("-", ":", 1)), float(path.read_text(errors="replace"))
            except (ClientError, ValueError, FileNotFoundError):
                continue  # no such file, or damaged
            except OSError as error:
                raise StoreError(f"{path} cannot be read: {error.strerror}") from error

    def holds(self, registry: str, repository: Repository, digest: Digest) -> Link | None:
        """The link by which a repository holds a content, or None where it is not known to."""
        path = self._links / registry / str(repository) / "_digests" / digest.filename
        try:
            return Link.from_json(path.read_text(errors="replace"))
        except (FileNotFoundError, NotADirectoryError, StoreError):
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error

    def kept(self, digest: Digest) -> Kept | None:
        """The blob, or None where it is not here."""
        path = self._blobs.name(digest)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
        return Kept(status.st_size, status.st_mtime)

    def manifest(self, digest: Digest) -> bytes | None:
        """The bytes of a manifest, or None where it is not here; reading it here does not count as use."""
        path = self._blobs.name(digest)
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read(min(os.fstat(file.fileno()).st_size, MAX_SIZE))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]  # those are being written
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from error


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
