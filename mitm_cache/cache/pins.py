"""Images that are never evicted: small files, so that they outlive the index.

`links/<registry>/<repository>/_pins/tags/<tag>` pins what a tag is, whatever that comes to be, and
`…/_pins/digests/<alg>-<hex>` one manifest. The file's existence is the pin; in it is the digest at that time.
"""

import json
import os
import time
from pathlib import Path

from mitm_cache.errors import ClientError, StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Reference, Repository, Tag

FOLDER = "_pins"
_KINDS = ("tags", "digests")


class Pins:
    """The tree of these files."""

    def __init__(self, folder: Path) -> None:
        """`folder`: that of the links."""
        self._folder = folder

    def add(self, registry: str, repository: Repository, reference: Reference, digest: Digest) -> bool:
        """Pin a tag, which is `digest` now, or a digest; whether it was not. Blocks on the disk; raises StoreError."""
        path = self._path(registry, repository, reference)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            if path.exists():
                return False
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with draft.open("w") as file:
                file.write(json.dumps({"pinned": str(digest), "at": int(time.time())}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise StoreError(f"pin {path} cannot be written: {error.strerror}") from error
        return True

    def remove(self, registry: str, repository: Repository, reference: Reference) -> bool:
        """Undo a pin; whether there was one. Blocks on the disk; raises StoreError."""
        path = self._path(registry, repository, reference)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise StoreError(f"pin {path} cannot be removed: {error.strerror}") from error
        return True

    def _path(self, registry: str, repository: Repository, reference: Reference) -> Path:
        folder = self._folder / registry / str(repository) / FOLDER
        if isinstance(reference, Digest):
            return folder / "digests" / reference.filename
        return folder / "tags" / str(reference)


def read_pins(folder: Path) -> dict[Reference, Digest | None]:
    """The pins in a repository's folder of pins, each with the digest that it had; None where that is damaged."""
    found: dict[Reference, Digest | None] = {}
    for kind in _KINDS:
        try:
            names = os.listdir(folder / kind)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            try:
                pin = Digest.parse(name.replace("-", ":", 1)) if kind == "digests" else Tag.parse(name)
            except ClientError:
                continue  # a draft, or a stray file
            found[pin] = pin if isinstance(pin, Digest) else _digest_in(folder / kind / name)
    return found


def _digest_in(path: Path) -> Digest | None:
    try:
        return Digest.parse(str(json.loads(path.read_text(errors="replace"))["pinned"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ClientError):
        return None
