"""`mitm-cache rm`: remove images by their names."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.data import changing, complete_image, open_to_change
from mitm_cache.cli.images import find
from mitm_cache.units import size

if TYPE_CHECKING:
    from mitm_cache.cache.catalog import Cached, Catalog
    from mitm_cache.cache.removal import Removed
    from mitm_cache.config import Config


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_image)
@click.option("--all-tags", is_flag=True, help="IMAGE is a repository: all that is cached of it is removed.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def rm(
    config_of: "Callable[[], Config]", images: tuple[str, ...], all_tags: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove images, by tag or by digest, and the content that no other image needs.

    It may be run while the cache serves: pulls go on, and who asks for a removed image has it fetched again. A tag
    leaves the others of its image alone; a digest is removed with all its tags. Nothing is removed where one of the
    images is not cached or is pinned.
    """
    from mitm_cache.cache.removal import Remover

    config = config_of()
    layout = open_to_change(lambda: config, "rm")

    def choose(catalog: "Catalog") -> "Sequence[Cached]":
        found = find(config, catalog.images, images, whole=all_tags)
        if pinned := [image for image in found if image.pinned]:
            raise click.ClickException(f"{pinned[0]} is pinned; 'mitm-cache unpin {pinned[0]}' comes first")
        return found

    remover = Remover(layout)
    with changing(layout):
        removed = remover.preview(choose) if dry_run else remover.remove(choose)
    report(removed, dry_run=dry_run, as_json=as_json)


def report(removed: "Removed", *, dry_run: bool, as_json: bool) -> None:
    """Print what has left, or would leave."""
    if as_json:
        document = {
            "dry_run": dry_run,
            "removed": [{"image": str(image), "digest": str(image.digest)} for image in removed.images],
            "blobs": removed.blobs,
            "freed": removed.freed,
            "kept": {"blobs": removed.young, "bytes": removed.young_bytes},
        }
        click.echo(json.dumps(document, indent=2))
        return
    for image in removed.images:
        click.echo(f"{'would remove' if dry_run else 'removed'} {image}")
    words = f"{'would free' if dry_run else 'freed'} {size(removed.freed)} in {removed.blobs:,} files"
    if removed.young:
        words += (
            f"; {size(removed.young_bytes)} in {removed.young:,} files were used within the last 5 minutes and stay: "
            "'mitm-cache prune --unused' removes them later"
        )
    click.echo(words)
