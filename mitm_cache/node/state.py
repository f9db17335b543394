"""What has been set up: a manifest of the files, and each as it was before, under /var/lib/mitm-cache-setup."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mitm_cache.errors import ConfigError
from mitm_cache.node.files import decode, encode
from mitm_cache.node.model import Order, Step

FOLDER = "var/lib/mitm-cache-setup"
MANIFEST, BACKUPS = "manifest.json", "backups"
VERSION = 1


@dataclass(slots=True)
class Record:
    """One file that was changed: for which targets, into what, and the number of its backup (None: it was not there).

    `folders` were made for it. `steps` make an undoing take effect.
    """

    targets: list[str]
    after: str
    backup: int | None
    folders: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


class State:
    """The manifest of one place, read when it is made and written by `save`. Raises ConfigError."""

    def __init__(self, root: Path, place: str = "") -> None:
        self.folder, self.place = folder_of(root) / place, place
        self.records: dict[str, Record] = {}
        try:
            content = (self.folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"{self.folder / MANIFEST} cannot be read: {error.strerror}; run this as root") from error
        try:
            self.records = _parse(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ConfigError(f"{self.folder / MANIFEST} is damaged; the files as they were are beside it") from error

    def before(self, record: Record) -> str | None:
        """The text of a file before the first change, or None where there was none."""
        path = self.backup(record)
        if path is None:
            return None
        try:
            return decode(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"the backup {path} cannot be read: {error.strerror}") from error

    def backup(self, record: Record) -> Path | None:
        """Where the file as it was before is kept, with its mode, owner and times."""
        return None if record.backup is None else self.folder / BACKUPS / str(record.backup)

    def keep(self, text: str, like: Path | None) -> int:
        """Keep a text, with the mode and owner of a file; its number."""
        folder = self.folder / BACKUPS
        number = 1 + max((int(name) for name in _numbers(folder)), default=0)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)  # what is kept may hold credentials
            path = folder / str(number)
            path.touch(mode=0o600)
            with path.open("wb") as file:
                file.write(encode(text))
                file.flush()
                os.fsync(file.fileno())  # before the file that it is of is replaced
            if like is not None:
                stat = like.stat()
                os.chown(path, stat.st_uid, stat.st_gid)
                shutil.copystat(like, path)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error
        return number

    def save(self) -> None:
        """Write the manifest; remove it, and backups that nothing refers to, once there is nothing to undo."""
        try:
            if not self.records:
                # In this order: a manifest without its backups would let nothing be set up or undone any more.
                (self.folder / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(self.folder / BACKUPS, ignore_errors=True)
                for folder in (self.folder, self.folder.parent) if self.place else (self.folder,):
                    _remove_if_empty(folder)
                return
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            content = json.dumps(
                {"version": VERSION, "files": {path: _dump(one) for path, one in self.records.items()}}
            )
            handle, name = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(handle, "w") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.folder / MANIFEST)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be written: {error.strerror}") from error
        used = {str(record.backup) for record in self.records.values()}
        for number in _numbers(self.folder / BACKUPS) - used:
            (self.folder / BACKUPS / number).unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # others' records are there
        return


def _numbers(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*") if path.name.isdecimal()} if folder.is_dir() else set()


def _dump(record: Record) -> dict[str, Any]:
    steps = [[int(step.order), *step.command] for step in record.steps]
    return {
        "targets": record.targets, "after": record.after, "backup": record.backup, "folders": record.folders,
        "steps": steps,
    }  # fmt: skip


def _parse(document: Any) -> dict[str, Record]:
    if document["version"] != VERSION:
        raise ValueError("another version")
    return {
        path: Record(
            list(one["targets"]),
            str(one["after"]),
            None if one["backup"] is None else int(one["backup"]),
            list(one["folders"]),
            [Step(Order(order), tuple(command)) for order, *command in one["steps"]],
        )
        for path, one in document["files"].items()
    }


def places(root: Path) -> list[str]:
    """The names of containers that have a manifest of their own."""
    return sorted(path.parent.name for path in folder_of(root).glob(f"*/{MANIFEST}"))


def folder_of(root: Path) -> Path:
    """Where records are: the system's, or a user's own, who may set up kind and k3d.

    Raises ConfigError where that is outside the root.
    """
    if root.resolve() != Path("/") or os.geteuid() == 0:
        folder = root / FOLDER
        if not Path(os.path.realpath(folder)).is_relative_to(root.resolve()):
            raise ConfigError(f"/{FOLDER} is a link that leads out of {root}, or is below one")
        return folder
    state = os.environ.get("XDG_STATE_HOME") or Path(os.environ.get("HOME", "/"), ".local/state")
    return Path(state, Path(FOLDER).name)
