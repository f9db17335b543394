"""How each scheduled filling went last: one small file below `run/`, for every process that asks."""

import hashlib
import json
import os
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Self

from mitm_cache.errors import StoreError


@dataclass(frozen=True, slots=True)
class Synced:
    """The last run of the file `file`; times are seconds of the epoch, 0 where there was none."""

    file: str
    started: float = 0.0
    finished: float = 0.0
    succeeded: float = 0.0
    """When a run last ended in which nothing failed."""
    images: int = 0
    failed: int = 0
    fetched: int = 0
    """Bytes."""

    @classmethod
    def last(cls, folder: Path, file: str) -> Self:
        """What is known of a file's last run."""
        try:
            document = json.loads(_path(folder, file).read_text())
            known = {field.name: document[field.name] for field in fields(cls) if field.name != "file"}
            known = {name: type(getattr(cls(file), name))(value) for name, value in known.items()}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return cls(file)  # never, or damaged: it is run once more than it had to be
        return cls(file, **known)

    def keep(self, folder: Path) -> None:
        """Write it down. Raises StoreError."""
        path = _path(folder, self.file)
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            draft.write_text(json.dumps(asdict(self)))
            draft.replace(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error

    def ended(self, at: float, *, images: int, failed: int, fetched: int) -> Self:
        """The same once its run has ended."""
        succeeded = self.succeeded if failed else at
        return replace(self, finished=at, succeeded=succeeded, images=images, failed=failed, fetched=fetched)


def read_synced(folder: Path) -> Iterator[Synced]:
    """Every file's last run."""
    for path in sorted(folder.glob("sync-*.json")):
        try:
            file = json.loads(path.read_text())["file"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(file, str) and _path(folder, file) == path:
            yield Synced.last(folder, file)


def forget_synced(folder: Path, wanted: Container[str]) -> None:
    """Remove what is known of files that nobody wants to be synced any more."""
    for synced in list(read_synced(folder)):
        if synced.file not in wanted:
            try:
                _path(folder, synced.file).unlink(missing_ok=True)
            except OSError:
                pass  # it is told of a while longer


def _path(folder: Path, file: str) -> Path:
    return folder / f"sync-{hashlib.sha256(file.encode()).hexdigest()[:16]}.json"
