"""The file system of a data directory."""

import os
from pathlib import Path

from mitm_cache.errors import StoreError


class Disk:
    """How large it is; what limits are a part of."""

    def __init__(self, root: Path) -> None:
        """Raises StoreError where it cannot be asked."""
        self._root = root
        try:
            self._size = self._measure()
        except OSError as error:
            raise StoreError(f"data_dir {root} cannot be used: {error.strerror}") from error

    def size(self) -> int:
        """Bytes; as many as there were where the directory is gone for now."""
        try:
            self._size = self._measure()
        except OSError:
            pass
        return self._size

    def _measure(self) -> int:
        status = os.statvfs(self._root)
        return status.f_frsize * status.f_blocks
