"""Which repository holds which content: one small file per link, so that the index can be thrown away.

`links/<registry>/<repository>/_digests/<alg>-<hex>` says that a repository holds a digest, and
`…/_tags/<tag>/<accept key>` what a tag was for clients that take those manifest types; the key `any` is what was put
here by the operator, for all of them. No part of a repository's
name begins with an underscore, so neither folder can be mistaken for a repository.
"""

import fcntl
import os
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import batched
from pathlib import Path

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.index import Index
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import Accept
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.registries import LOCAL

WRITERS = 16
"""Threads that write links of one repository."""
BATCH = 500
"""So many at most are written while others wait for the repository."""
MAX_ACCEPTS = 64
"""Kinds of clients, by the types that they take, for which it is kept what a tag was."""
ANY = "any"
"""Stands for the key of every Accept that takes the manifest."""


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
        folder = f"{registry}/{repository}/_tags/{tag}"
        if (link := self._read(f"{folder}/{accept.key}")) is None and (given := self._read(f"{folder}/{ANY}")):
            link = given if accept.takes(given.media_type) else None
        return link

    def tagged_at(self, registry: str, repository: Repository, tag: Tag, accept: Accept) -> float | None:
        """Since when a tag is known to be what `tagged` says, in seconds of the epoch. Blocks on the disk."""
        folder = self._folder / registry / str(repository) / "_tags" / str(tag)
        for name in (accept.key, ANY):
            try:
                return (folder / name).stat().st_mtime
            except OSError:
                continue
        return None

    def given_at(self, registry: str, repository: Repository, tag: Tag) -> float | None:
        """When a tag was last given, in seconds of the epoch. Blocks on the disk."""
        try:
            return (self._folder / registry / str(repository) / "_tags" / str(tag) / ANY).stat().st_mtime
        except OSError:
            return None

    def told(self, registry: str, repository: Repository, tag: Tag) -> Iterator[Link]:
        """What a tag was when it was last seen, for any client, the latest first. Reads a small folder."""
        folder = f"{registry}/{repository}/_tags/{tag}"
        for name in self._accepts(folder):
            if (link := self._read(f"{folder}/{name}")) is not None:
                yield link

    def _accepts(self, folder: str) -> list[str]:
        """The files of a tag, the latest first."""
        found: list[tuple[float, str]] = []
        try:
            with os.scandir(self._folder / folder) as files:
                for file in files:
                    if not file.name.startswith("."):
                        with suppress(FileNotFoundError):  # another one has come meanwhile, and it was too old
                            found.append((file.stat().st_mtime, file.name))
        except OSError:
            return []  # nothing is known of it, or it is being forgotten
        return [name for _, name in sorted(found, reverse=True)]

    def hold(self, registry: str, repository: Repository, link: Link) -> None:
        """Record that a repository holds a content. What the operator has put here stays that, whoever pulls it.

        Blocks on the disk; raises StoreError.
        """
        name = f"{registry}/{repository}/_digests/{link.digest.filename}"
        if _outranks(self._read(name), link) or self._is_written(name, link.to_json()):
            return
        with self._alone(self._folder / name):
            text = _text_of(self._folder / name)
            if text is None or not _outranks(_link_of(text), link):
                self._write(name, link)

    def hold_all(self, registry: str, repository: Repository, links: Iterable[Link]) -> None:
        """Record as `hold` does, many at once: the disk is waited for with all of them together.

        All of them are on the disk when this returns. Blocks on it; raises StoreError.
        """
        folder = f"{registry}/{repository}/_digests"
        for batch in batched(links, BATCH):
            named = {f"{folder}/{link.digest.filename}": link for link in batch}
            with self._alone(self._folder / folder / "any"):
                self._write_all({name: link for name, link in named.items() if self._is_news(name, link)})

    def tag(self, registry: str, repository: Repository, tag: Tag, accept: Accept, link: Link) -> None:
        """Record what a tag is now. Blocks on the disk; raises StoreError."""
        folder = f"{registry}/{repository}/_tags/{tag}"
        self._write(f"{folder}/{accept.key}", link)
        for name in [each for each in self._accepts(folder) if each != ANY][MAX_ACCEPTS:]:
            self._drop(f"{folder}/{name}")

    def give(self, registry: str, repository: Repository, tag: Tag, link: Link) -> None:
        """Record what a tag is now for every client. Blocks on the disk; raises StoreError."""
        folder = f"{registry}/{repository}/_tags/{tag}"
        self._write(f"{folder}/{ANY}", link)
        try:
            older = [name for name in os.listdir(self._folder / folder) if name != ANY]
        except OSError as error:
            raise StoreError(f"links of {folder} cannot be read: {error.strerror}") from error
        for name in older:
            self._drop(f"{folder}/{name}")

    def given(self, registry: str, repository: Repository) -> Iterator[tuple[Tag, Link]]:
        """The tags whose rights are the policy's: imported and synced ones. Blocks on the disk; raises StoreError."""
        for name in self.tags(registry, repository):
            try:
                tag = Tag.parse(name)
            except ClientError:
                continue  # no file of ours
            for link in self.told(registry, repository, tag):
                held = self.holds(registry, repository, link.digest) or link
                if {link.origin, held.origin} != {Origin.PULLED}:
                    yield tag, link
                    break

    def held(self, registry: str, repository: Repository) -> Iterator[Link]:
        """Everything that a repository holds. Blocks on the disk; raises StoreError."""
        folder = f"{registry}/{repository}/_digests"
        try:
            names = sorted(os.listdir(self._folder / folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"links of {folder} cannot be read: {error.strerror}") from error
        for name in names:
            if not name.startswith(".") and (link := self._read(f"{folder}/{name}")) is not None:
                yield link

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

    def _is_written(self, name: str, text: str) -> bool:
        """Both count: the index may still know of a link that has been forgotten, or not yet of one that is written."""
        return self._index.get(f"link:{name}") == _text_of(self._folder / name) == text

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Nobody else changes what a repository holds meanwhile, in no process."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"links of {path.parent} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _is_news(self, name: str, link: Link) -> bool:
        text = _text_of(self._folder / name)
        return (text is None or not _outranks(_link_of(text), link)) and not self._is_written(name, link.to_json())

    def _write(self, name: str, link: Link) -> None:
        text = link.to_json()
        if self._is_written(name, text):
            return
        try:
            self._write_into_folder(name, text)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            self._write_into_folder(name, text)  # it was empty, and a sweep has just removed it
        self._index.put(f"link:{name}", text)

    def _write_into_folder(self, name: str, text: str) -> None:
        try:
            (self._folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"link {name} cannot be written: {error.strerror}") from error
        self._write_file(name, text)

    def _write_file(self, name: str, text: str) -> None:
        path = self._folder / name
        draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            with draft.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise StoreError(f"link {name} cannot be written: {error.strerror}") from error

    def _write_all(self, links: Mapping[str, Link]) -> None:
        """Into a folder that is there. A file system makes one write of what many wait for at the same time."""
        rows = {name: link.to_json() for name, link in links.items()}
        with ThreadPoolExecutor(min(WRITERS, len(rows) or 1), thread_name_prefix="link") as pool:
            for _ in pool.map(self._write_file, rows.keys(), rows.values()):
                pass  # its error is raised
        self._index.put_all({f"link:{name}": text for name, text in rows.items()})

    def repositories(self) -> Iterator[tuple[str, Repository]]:
        """Each registry and repository of which something is known. Walks the tree; raises StoreError."""
        try:
            for root, folders, _ in os.walk(self._folder, onerror=_raise):
                if "_digests" in folders and os.listdir(Path(root, "_digests")):
                    registry, _, name = str(Path(root).relative_to(self._folder)).partition("/")
                    yield registry, Repository.parse(name)
                folders[:] = sorted(folder for folder in folders if not folder.startswith(("_", ".")))
        except OSError as error:
            raise StoreError(f"the links cannot be read: {error.strerror}") from error

    def tags(self, registry: str, repository: Repository) -> list[str]:
        """The tags that are known of a repository. Blocks on the disk; raises StoreError."""
        folder = self._folder / registry / str(repository) / "_tags"
        try:
            return sorted(path.name for path in folder.iterdir() if _holds_any(path))
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

    def replace(self, name: str, link: Link) -> None:
        """Write a link by its place in the tree. Blocks on the disk; raises StoreError."""
        self._write(name, link)

    def remove(self, name: str) -> None:
        """Remove a link by its place in the tree, whatever is in it. Blocks on the disk; raises StoreError."""
        self._drop(name)

    def _drop(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"link {name} cannot be removed: {error.strerror}") from error
        self._index.drop(f"link:{name}")

    def forget(self, digests: Container[Digest]) -> None:
        """Remove every link to these digests: their content is gone. Walks the whole tree.

        What is local never leaves so: where it holds one of these it has been pushed anew meanwhile.
        """
        for root, folders, files in os.walk(self._folder):
            if root == str(self._folder):
                folders[:] = [name for name in folders if name != LOCAL]
            for name in files:
                path = Path(root, name)
                try:
                    link = Link.from_json(path.read_text(errors="replace"))
                except (StoreError, OSError):
                    continue
                if link.digest in digests:
                    path.unlink(missing_ok=True)
                    self._index.drop(f"link:{path.relative_to(self._folder)}")


def _holds_any(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False  # it was empty, and a sweep has just removed it; or a stray file


def _raise(error: OSError) -> None:
    raise error


def _outranks(known: Link | None, link: Link) -> bool:
    """Whether a link says more than another of the same content that is to take its place."""
    return known is not None and link.origin is Origin.PULLED and known.origin is not Origin.PULLED


def _link_of(text: str) -> Link | None:
    try:
        return Link.from_json(text)
    except StoreError:
        return None


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
