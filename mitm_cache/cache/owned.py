"""What the local registry holds: nobody's to evict, since there may be no other copy of it.

Who links content to it holds a lock together with others who do, and who removes content holds it alone, and looks
once more before what is removed: what is linked is there, and stays.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mitm_cache.cache.layout import Layout
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import LOCAL

_MARK = 7
"""Bytes of what a deletion is known by."""


def owned(layout: Layout) -> set[Digest]:
    """Every digest that a repository of it holds, here or not; files are not opened. Raises StoreError."""
    return {digest for repository in repositories(layout, LOCAL) for digest in held(layout, LOCAL, repository)}


def registries(layout: Layout) -> list[str]:
    """The registries of which something is known."""
    return _names(layout.links)


def repositories(layout: Layout, registry: str) -> Iterator[Repository]:
    """A registry's repositories that have a folder of what they hold, in no order."""
    root = layout.links / registry
    waiting = [""]
    while waiting:
        below = waiting.pop()
        names = _folders(root / below)
        if "_digests" in names and below:
            try:
                yield Repository.parse(below)
            except ClientError:
                pass  # a stray folder
        waiting += [f"{below}/{name}".lstrip("/") for name in names if not name.startswith(("_", "."))]


def held(layout: Layout, registry: str, repository: Repository) -> Iterator[Digest]:
    """What a repository holds, by names alone."""
    for name in _names(layout.links / registry / str(repository) / "_digests"):
        try:
            yield Digest.parse(name.replace("-", ":", 1))
        except ClientError:
            continue  # a draft, or a stray file


def holders(layout: Layout, digest: Digest) -> Iterator[tuple[str, Repository]]:
    """Each registry and repository that holds a digest."""
    for registry in registries(layout):
        for repository in repositories(layout, registry):
            if os.path.exists(f"{layout.links}/{registry}/{repository}/_digests/{digest.filename}"):
                yield registry, repository


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from error


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from error


@contextmanager
def linking(layout: Layout) -> Iterator[None]:
    """What is here when this begins is here when it ends, unless somebody deletes it by name. Blocks on others."""
    with ExitStack() as stack:
        with _locked(_gate(layout), fcntl.LOCK_SH):
            stack.enter_context(_locked(layout.linking, fcntl.LOCK_SH))
        yield


@contextmanager
def removing(layout: Layout) -> Iterator[None]:
    """Nobody links content to the local registry meanwhile. To be held for moments only. Blocks on others."""
    # Of many that link there is always one that holds the lock: who waits for all of them closes the gate first.
    with _locked(_gate(layout), fcntl.LOCK_EX), _locked(layout.linking, fcntl.LOCK_EX):
        yield


def let_go(layout: Layout) -> None:
    """Have whoever looks for room in the local registry know that something was deleted there. Raises nothing."""
    with suppress(OSError), _opened(_deletions(layout)) as fd:  # it is looked for again before long
        os.pwrite(fd, secrets.token_bytes(_MARK), 0)


def last_let_go(layout: Layout) -> int:
    """A number that is another one after each `let_go`."""
    try:
        return int.from_bytes(_deletions(layout).read_bytes()[:_MARK])
    except OSError:
        return 0  # there was none yet


def _deletions(layout: Layout) -> Path:
    return layout.linking.with_suffix(".deleted")


def _gate(layout: Layout) -> Path:
    return layout.linking.with_suffix(".gate")


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with _opened(path) as fd:
        fcntl.flock(fd, how)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
