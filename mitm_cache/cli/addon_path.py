"""`mitm-cache addon-path`: where the scripts for mitmdump are."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import click

from mitm_cache.errors import ConfigError

SHARED = "share/mitm-cache/addons/"


@click.command("addon-path")
def addon_path() -> None:
    """Print the folder of the addons, for `mitmdump -s "$(mitm-cache addon-path)/pull_through.py"`.

    Each of them is one job of the cache for a mitmproxy of your own; README.md in that folder shows them in use.
    """
    click.echo(find_addons())


def find_addons() -> Path:
    """A checkout's `addons/`, or where the installed package's data files went. Raises ConfigError."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "addons").is_dir():
        return checkout / "addons"
    try:
        files = distribution("mitm-cache").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if SHARED in file.as_posix():
            path = Path(str(file.locate())).resolve().parent
            if path.is_dir():
                return path
    raise ConfigError(f"the addons are not installed: no {SHARED} belongs to this package; install it by pip, whole")
