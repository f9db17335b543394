"""`mitm-cache pin` and `unpin`: images that are never evicted."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.data import changing, complete_image, open_to_change
from mitm_cache.cli.images import find, places

if TYPE_CHECKING:
    from mitm_cache.cache.catalog import Cached, Catalog
    from mitm_cache.config import Config

_images = click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_image)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@_images
@_json
@click.pass_obj
def pin(config_of: "Callable[[], Config]", images: tuple[str, ...], as_json: bool) -> None:
    """Keep images that are cached, whatever room is needed: manifests, configurations and layers.

    A tag stays pinned when it moves: what it is now is kept. What is not here cannot be kept, and is told.
    """
    _change(config_of, images, "pin", as_json=as_json)


@click.command()
@_images
@_json
@click.pass_obj
def unpin(config_of: "Callable[[], Config]", images: tuple[str, ...], as_json: bool) -> None:
    """Let images that were pinned be evicted again."""
    _change(config_of, images, "unpin", as_json=as_json)


def _change(config_of: "Callable[[], Config]", names: tuple[str, ...], verb: str, *, as_json: bool) -> None:
    from mitm_cache.cache.catalog import Catalog
    from mitm_cache.cache.evict import alone
    from mitm_cache.cache.pins import Pins
    from mitm_cache.cache.tree import read_names

    config = config_of()
    layout = open_to_change(lambda: config, verb)
    pins, rows = Pins(layout.links), []
    with changing(layout), alone(layout.evicting, wait=True):
        # No more than is named is read: whoever wants to make room waits meanwhile.
        catalog = Catalog(layout.root, only=places(config, names))
        by_digest = {name for name in names if "@" in name}
        chosen = [
            (name in by_digest, image)
            for name in names
            for image in find(config, catalog.images, [name], others=lambda: read_names(layout.links, ""))
        ]
        for exact, image in dict.fromkeys((exact, image) for exact, image in chosen):
            reference = image.digest if exact or image.tag is None else image.tag
            if verb == "pin":
                changed = pins.add(image.registry, image.repository, reference, image.digest)
            else:
                changed = pins.remove(image.registry, image.repository, reference)
                changed = pins.remove(image.registry, image.repository, image.digest) or changed
            rows.append((image, changed, catalog.is_complete(image), list(_missing(catalog, image))))
    if as_json:
        fields = ("image", "digest", "changed", "complete", "missing")
        found = [(str(image), str(image.digest), *rest) for image, *rest in rows]
        click.echo(json.dumps({f"{verb}ned": [dict(zip(fields, row, strict=True)) for row in found]}, indent=2))
        return
    for image, changed, _, missing in rows:
        before = f" {'already' if verb == 'pin' else 'not'} pinned"
        click.echo(f"{verb}ned {image}" if changed else f"{image} was{before}")
        if missing and verb == "pin":
            click.echo(f"  not all of it is here: {', '.join(missing)}; a pull brings the rest", err=True)


def _missing(catalog: "Catalog", image: "Cached") -> Iterator[str]:
    """What of an image is not here."""
    from mitm_cache.cache.catalog import UNTOLD

    for part in catalog.parts(image):
        name = catalog.platform(part) or ("its manifest" if part.blobs is None else "the image")
        if part.blobs is None and part.manifest.platform != UNTOLD:
            yield f"{name} is not cached"
        elif part.blobs is not None and not part.complete:
            yield f"{name} has {part.here} of {part.blobs} blobs"
