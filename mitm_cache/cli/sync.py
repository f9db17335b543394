"""`mitm-cache sync`: have a file's images in the cache."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.pull import options, run

if TYPE_CHECKING:
    from mitm_cache.config import Config


@click.command()
@click.option(
    "-f", "--file", "path", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="YAML as skopeo sync reads it, or one image a line.",
)  # fmt: skip
@options
@click.pass_obj
def sync(
    config_of: "Callable[[], Config]",
    path: Path,
    platform: tuple[str, ...],
    no_referrers: bool,
    parallel: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch all images that a file lists into the cache, as 'mitm-cache pull' does.

    [[sync]] in the configuration has the service do it by itself, again and again.
    """
    from mitm_cache.filling.listed import read_list

    run(config_of(), read_list(path), platform, not no_referrers, parallel, dry_run, as_json)
