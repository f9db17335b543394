"""The data directory, as commands that read it or change it come by it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.telling import check_owner, owner_of
from mitm_cache.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from mitm_cache.cache.layout import Layout
    from mitm_cache.config import Config


def check_data_dir(root: Path) -> None:
    """Raise ConfigError where this is no data directory, or not to be read."""
    try:
        is_there = (root / "FORMAT").is_file()
    except OSError as error:
        owner = owner_of(root)
        cure = f"; run this as its user, sudo -u '{owner}'" if owner else ""
        raise ConfigError(f"data_dir {root} cannot be read: {error.strerror}{cure}") from None
    if not is_there:
        raise ConfigError(f"data_dir {root} is not there, or no data directory of mitm-cache")


def open_to_change(config_of: "Callable[[], Config]", what: str) -> "Layout":
    """The data directory, for a command that changes it. Raises ConfigError where it may not."""
    from mitm_cache.cache.layout import open_layout

    root = config_of().data_dir
    check_data_dir(root)
    check_owner(root, what)
    return open_layout(root)


@contextmanager
def changing(layout: "Layout") -> Iterator[None]:
    """Raise StoreError where the disk refuses what nobody else has told of, such as a lock."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"data_dir {layout.root} cannot be changed: {error.strerror or error}") from error


def complete_image(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The names of images that are cached and begin so: for the shell, which is told nothing where something fails."""
    from mitm_cache.cache.tree import read_names
    from mitm_cache.config import load
    from mitm_cache.errors import MitmCacheError

    top = context.find_root().params
    flags = {"data_dir": top["data_dir"]} if top.get("data_dir") else {}
    try:
        folder = load(file=top.get("file"), flags=flags).data_dir / "links"
    except MitmCacheError:
        return []
    found = list(read_names(folder, incomplete))
    if not found:  # the names of Docker Hub may be typed as people write them
        short = "docker.io/" if "/" in incomplete else "docker.io/library/"
        found = [name.removeprefix(short) for name in read_names(folder, short + incomplete)]
    return sorted(found)
