"""Looking over what is kept: every blob is hashed again, and every link is read. Safe while the cache serves."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link
from mitm_cache.cache.links import Links
from mitm_cache.cache.proof import hash_file
from mitm_cache.cache.quarantine import Quarantine
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest

DAMAGED, UNREADABLE, FOREIGN, BROKEN_LINK, WRONG_SIZE = "damaged", "unreadable", "foreign", "broken link", "wrong size"


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is wrong: what kind, which file, and what was done about it ("" for nothing)."""

    kind: str
    path: str
    cure: str = ""


@dataclass(slots=True)
class Progress:
    """How far it is; `done` and `total` are bytes of blobs."""

    total: int = 0
    done: int = 0
    blobs: int = 0
    links: int = 0
    flaws: list[Flaw] = field(default_factory=list)

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "sound": not self.flaws,
            "blobs": self.blobs,
            "bytes": self.done,
            "links": self.links,
            "flaws": [asdict(flaw) for flaw in self.flaws],
        }


class Verification:
    """One pass over a data directory. Without `repair` nothing is changed."""

    def __init__(self, root: Path, *, repair: Links | None = None) -> None:
        """`repair`: by which links are dropped; None to look only."""
        self._root = root
        self._blobs = Blobs(root / "blobs")
        self._quarantine = Quarantine(root / "quarantine", self._blobs)
        self._repair = repair
        self._sizes: dict[Digest, int] = {}
        self.progress = Progress()

    def run(self, tell: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Look at everything; `tell` is called after each file. Raises StoreError."""
        progress = self.progress
        for path in self._files("blobs"):
            self._weigh(path)
        progress.total = sum(self._sizes.values())
        damaged = set()
        for digest in sorted(self._sizes):
            if not self._check_blob(digest):
                damaged.add(digest)
            progress.done += self._sizes[digest]
            tell(progress)
        for path in self._files("links"):
            self._check_link(path, damaged)
        if damaged and self._repair is not None:
            self._repair.forget(damaged)
        tell(progress)
        return progress

    def _files(self, folder: str) -> Iterator[Path]:
        for root, _, names in os.walk(self._root / folder, onerror=self._on_unreadable):
            for name in sorted(names):
                yield Path(root, name)

    def _on_unreadable(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            self.progress.flaws.append(Flaw(UNREADABLE, str(error.filename)))

    def _weigh(self, path: Path) -> None:
        try:
            digest = Digest.parse(f"{path.parent.parent.name}:{path.name}")
        except ClientError:
            digest = None
        if digest is None or self._blobs.path(digest) != path:
            self.progress.flaws.append(Flaw(FOREIGN, str(path)))
            return
        try:
            self._sizes[digest] = path.stat().st_size
        except FileNotFoundError:
            pass  # it was evicted meanwhile
        except OSError:
            self._sizes[digest] = 0  # it is found unreadable in its turn

    def _check_blob(self, digest: Digest) -> bool:
        path = self._blobs.path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True  # it was evicted meanwhile
        except OSError:
            self.progress.flaws.append(Flaw(UNREADABLE, str(path)))
            return False
        inode = os.fstat(fd).st_ino
        kind = DAMAGED
        try:
            self.progress.blobs += 1
            if hash_file(fd, digest.algorithm) == digest.hex:
                return True
        except OSError:
            kind = UNREADABLE
        finally:
            os.close(fd)
        cure = ""
        if self._repair is not None:
            aside = self._quarantine.put_aside(digest, inode)
            cure = f"moved to {aside}" if aside is not None else "gone meanwhile"
        self.progress.flaws.append(Flaw(kind, str(path), cure))
        return False

    def _check_link(self, path: Path, damaged: set[Digest]) -> None:
        relative = path.relative_to(self._root / "links")
        kind = next((part for part in relative.parts if part.startswith("_")), "")
        if path.name.startswith(".") or kind not in ("_digests", "_tags"):
            return  # a draft, or a note of another kind
        try:
            link = Link.from_json(path.read_text(errors="replace"))
        except FileNotFoundError:
            return
        except OSError:
            self.progress.flaws.append(Flaw(UNREADABLE, str(path)))
            return
        except StoreError:
            self._drop(BROKEN_LINK, path)
            return
        self.progress.links += 1
        size = self._sizes.get(link.digest, link.size)
        # Of a manifest that was asked for by HEAD the size may not be known.
        if link.size and link.size != size and link.digest not in damaged:
            self._drop(WRONG_SIZE, path)

    def _drop(self, kind: str, path: Path) -> None:
        cure = ""
        if self._repair is not None:
            self._repair.remove(str(path.relative_to(self._root / "links")))
            cure = "dropped"
        self.progress.flaws.append(Flaw(kind, str(path), cure))
