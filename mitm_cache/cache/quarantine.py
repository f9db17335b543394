"""Damaged blobs, put aside: they are served no more, are fetched again when somebody asks, and can be looked at."""

import os
import secrets
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest


class Quarantine:
    """The folder `quarantine`, made when it is needed."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder = folder
        self._blobs = blobs

    def put_aside(self, digest: Digest, inode: int) -> Path | None:
        """Move a damaged blob away; None where another file has taken its place. Raises StoreError."""
        path = self._blobs.path(digest)
        try:
            if path.stat().st_ino != inode:
                return None
            self._folder.mkdir(mode=0o700, exist_ok=True)
            target = self._folder / f"{digest.filename}.{secrets.token_hex(4)}"
            os.rename(path, target)
            os.utime(target)  # from now on it counts as old
        except FileNotFoundError:
            return None  # it was evicted meanwhile
        except OSError as error:
            raise StoreError(f"the damaged blob {digest} cannot be put aside: {error.strerror}") from error
        return target
