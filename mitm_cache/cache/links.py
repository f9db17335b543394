"""Which repository holds which content: one small file per link, so that the index can be thrown away.

`links/<registry>/<repository>/_digests/<alg>-<hex>` says that a repository holds a digest, and
`…/_tags/<tag>/<accept key>` what a tag was for clients that take those manifest types. No part of a repository's
name begins with an underscore, so neither folder can be mistaken for a repository.
"""

import os
import threading
from collections.abc import Container, Iterator
from pathlib import Path

from mitm_cache.cache.entry import Link
from mitm_cache.cache.index import Index
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import Accept
from mitm_cache.oci.reference import Repository, Tag


class Links:
    """The tree of link files, read through the index."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder = folder
        self._index = index

    def holds(self, registry: str, repository: Repository, digest: Digest) -> Link | None:
        """The link by which a repository holds a digest, or None where it is not known to."""
        return self._read(f"{registry}/{repository}/_digests/{digest.filename}")

    def tagged(self, registry: str, repository: Repository, tag: Tag, accept: Accept) -> Link | None:
        """What a tag was when it was last seen, or None."""
        return self._read(f"{registry}/{repository}/_tags/{tag}/{accept.key}")

    def hold(self, registry: str, repository: Repository, link: Link) -> None:
        """Record that a repository holds a content. Blocks on the disk; raises StoreError."""
        self._write(f"{registry}/{repository}/_digests/{link.digest.filename}", link)

    def tag(self, registry: str, repository: Repository, tag: Tag, accept: Accept, link: Link) -> None:
        """Record what a tag is now. Blocks on the disk; raises StoreError."""
        self._write(f"{registry}/{repository}/_tags/{tag}/{accept.key}", link)

    def _read(self, name: str) -> Link | None:
        row = self._index.get(f"link:{name}")
        try:
            if isinstance(row, str):
                return Link.from_json(row)
            text = (self._folder / name).read_text(errors="replace")
            link = Link.from_json(text)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"link {name} cannot be read: {error.strerror}") from error
        except StoreError:
            return None  # damaged: not known, until the next pull writes it anew
        self._index.put_soon(f"link:{name}", text)
        return link

    def _write(self, name: str, link: Link) -> None:
        text = link.to_json()
        path = self._folder / name
        # Both count: the index may still know of a link that has been forgotten, or not yet of one that is written.
        if self._index.get(f"link:{name}") == _text_of(path) == text:
            return
        draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with draft.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise StoreError(f"link {name} cannot be written: {error.strerror}") from error
        self._index.put(f"link:{name}", text)

    def repositories(self) -> Iterator[tuple[str, Repository]]:
        """Each registry and repository of which something is known. Walks the tree; raises StoreError."""
        try:
            for root, folders, _ in os.walk(self._folder, onerror=_raise):
                if "_digests" in folders:
                    registry, _, name = str(Path(root).relative_to(self._folder)).partition("/")
                    yield registry, Repository.parse(name)
                folders[:] = sorted(folder for folder in folders if not folder.startswith(("_", ".")))
        except OSError as error:
            raise StoreError(f"the links cannot be read: {error.strerror}") from error

    def tags(self, registry: str, repository: Repository) -> list[str]:
        """The tags that are known of a repository. Blocks on the disk; raises StoreError."""
        folder = self._folder / registry / str(repository) / "_tags"
        try:
            return sorted(path.name for path in folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"tags of {registry}/{repository} cannot be read: {error.strerror}") from error

    def untag(self, registry: str, repository: Repository, tag: Tag) -> None:
        """Forget what a tag was, for every client. Blocks on the disk; raises StoreError."""
        name = f"{registry}/{repository}/_tags/{tag}"
        try:
            for path in (self._folder / name).iterdir():
                self._drop(f"{name}/{path.name}")
        except FileNotFoundError:
            pass  # nothing is known of it
        except OSError as error:
            raise StoreError(f"links of {name} cannot be read: {error.strerror}") from error

    def drop(self, registry: str, repository: Repository, digest: Digest) -> None:
        """Forget that a repository holds a content. Blocks on the disk; raises StoreError."""
        self._drop(f"{registry}/{repository}/_digests/{digest.filename}")

    def _drop(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"link {name} cannot be removed: {error.strerror}") from error
        self._index.drop(f"link:{name}")

    def forget(self, digests: Container[Digest]) -> None:
        """Remove every link to these digests: their content is gone. Walks the whole tree."""
        for root, _, files in os.walk(self._folder):
            for name in files:
                path = Path(root, name)
                try:
                    link = Link.from_json(path.read_text(errors="replace"))
                except (StoreError, OSError):
                    continue
                if link.digest in digests:
                    path.unlink(missing_ok=True)
                    self._index.drop(f"link:{path.relative_to(self._folder)}")


def _raise(error: OSError) -> None:
    raise error


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
