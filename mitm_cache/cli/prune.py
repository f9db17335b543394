"""`mitm-cache prune`: remove what nobody has pulled for long, or what no name leads to."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from mitm_cache import parsing
from mitm_cache.cli.data import changing, open_to_change
from mitm_cache.cli.rm import report
from mitm_cache.errors import ConfigError

if TYPE_CHECKING:
    from mitm_cache.cache.catalog import Cached, Catalog
    from mitm_cache.config import Config


def _age(_: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parsing.duration("--older-than", value)
    except ConfigError as error:
        raise click.BadParameter(error.message.partition(": ")[2], param=parameter) from None


@click.command()
@click.option("--older-than", metavar="AGE", callback=_age, help="Not pulled for so long: 90s, 30m, 12h, 30d or 8w.")
@click.option("--unused", is_flag=True, help="Images that no tag is any more, and content that no image needs.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def prune(
    config_of: "Callable[[], Config]", older_than: float | None, unused: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove images that were not pulled for some time, or that no tag is any more, with what only they need.

    With both options an image has to be both. Clients that pull by digest only leave images without a tag: give an
    age too. Pinned images stay, and so do imported and synced ones, which 'mitm-cache rm' removes. Of what was pushed
    to the local registry only '--unused' removes anything: what neither a tag leads to nor is about what one leads to.
    It may be run while the cache serves.
    """
    from mitm_cache.cache.blobs import Blobs
    from mitm_cache.cache.entry import Origin
    from mitm_cache.cache.removal import Remover
    from mitm_cache.local.collection import Collection
    from mitm_cache.local.store import Store

    if older_than is None and not unused:
        raise click.UsageError("say what is to leave: --older-than AGE, --unused, or both")
    layout = open_to_change(config_of, "prune")
    oldest = time.time() - (older_than or 0)
    with changing(layout):
        nameless = Collection(Store(layout, Blobs(layout.blobs))).nameless() if unused else set()

    def choose(catalog: "Catalog") -> "Sequence[Cached]":
        return [
            image
            for image in catalog.images
            if not image.pinned
            and (image.origin is Origin.PULLED or (image.place, image.digest) in nameless)
            and (older_than is None or (catalog.used(image) or 0) < oldest)
            and not (unused and image.tag is not None)
        ]

    remover = Remover(layout)
    with changing(layout):
        removed = remover.preview(choose, strays=unused) if dry_run else remover.remove(choose, strays=unused)
    report(removed, dry_run=dry_run, as_json=as_json)
