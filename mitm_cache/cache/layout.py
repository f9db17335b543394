"""The data directory: its folders, its format, its identity."""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from mitm_cache.errors import ConfigError, StoreError

FORMAT = 1
"""The version of everything below a data directory; a program refuses one it does not know."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are below one data directory. `identity` names this cache in `Via`."""

    root: Path
    identity: str

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def links(self) -> Path:
        return self.root / "links"

    @property
    def uploads(self) -> Path:
        """What is being pushed to the local registry, made with it."""
        return self.root / "uploads"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def evicting(self) -> Path:
        """The lock of whoever removes blobs, or says which are to stay."""
        return self.run / "evict.lock"

    @property
    def token_key(self) -> Path:
        """The key of the tokens of the local registry; where it is lost clients get others."""
        return self.run / "tokens.key"

    @property
    def linking(self) -> Path:
        """The lock that is shared by who links content to the local registry, and whole for who removes content."""
        return self.run / "local.lock"


def open_layout(root: Path) -> Layout:
    """Make what is missing of a data directory (mode 0700) and check what is there.

    Raises ConfigError for a directory that everybody may look into, that is another format's, or not this program's at
    all; StoreError where it cannot be made.
    """
    marker = root / "FORMAT"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not marker.exists():
            _found(root, marker)
        text = marker.read_text(errors="replace")
        layout = Layout(root, _identity(marker, text))
        _check_private(root)
        for folder in (layout.blobs, layout.spool, layout.links, layout.index, layout.run):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(f"data_dir {root} cannot be used: {error.strerror or error}") from error
    return layout


def _check_private(root: Path) -> None:
    mode = root.stat().st_mode & 0o777
    if mode & 0o007:
        raise ConfigError(
            f"data_dir {root} is open to everybody (mode {mode:04o}): it holds private images; run: chmod o= {root}"
        )


def _found(root: Path, marker: Path) -> None:
    foreign = sorted(entry.name for entry in root.iterdir() if entry.name not in ("ca", "lost+found"))
    foreign = [name for name in foreign if not name.startswith("FORMAT")]
    if foreign and not marker.exists():  # another process that starts now may have made them
        raise ConfigError(
            f"data_dir {root} holds {foreign[0]!r} and no FORMAT file: it is not a data directory of mitm-cache; "
            "name an empty or new one"
        )
    root.chmod(root.stat().st_mode & 0o770)  # a new disk's mount point is open to everybody
    draft = root / f"FORMAT.{secrets.token_hex(4)}"
    with draft.open("w") as file:
        file.write(json.dumps({"format": FORMAT, "identity": secrets.token_hex(8)}) + "\n")
        file.flush()
        os.fsync(file.fileno())  # after a power failure an empty marker would be taken for a damaged one
    try:
        # A link, not a rename: of two processes that start at once the first one's identity stays.
        os.link(draft, marker)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _identity(marker: Path, text: str) -> str:
    try:
        fields = json.loads(text)
        version, identity = int(fields["format"]), str(fields["identity"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{marker} is damaged: it should hold a format number and an identity") from error
    if version != FORMAT:
        raise ConfigError(f"{marker} says format {version}; this version of mitm-cache knows format {FORMAT}")
    return identity
