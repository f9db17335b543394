"""`mitm-cache export`: images out of the cache into files, to be carried where no network leads."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.data import check_data_dir
from mitm_cache.cli.telling import Teller, is_terminal
from mitm_cache.errors import ClientError
from mitm_cache.units import counted, size

if TYPE_CHECKING:
    from mitm_cache.config import Config
    from mitm_cache.exchange.outgoing import Export
    from mitm_cache.oci.image import Image

STREAM = "-"


@click.command()
@click.argument("images", nargs=-1, metavar="IMAGE…")
@click.option("--all", "everything", is_flag=True, help="Every image that is cached.")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE|DIR",
    help="A new folder; a tar archive where it ends in .tar; - for an archive to standard output.",
)
@click.option(
    "--since",
    type=click.Path(exists=True, path_type=Path),
    help="An earlier export, or its mitm-cache.json: only what is new since then.",
)
@click.option("--partial", is_flag=True, help="Take what is here of images that are not cached whole.")
@click.option("--no-referrers", is_flag=True, help="Leave out what refers to the images: signatures, lists of parts.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["oci", "dir"]),
    default="oci",
    show_default=True,
    help="An OCI image layout, or a folder for each image as skopeo's dir: has them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def export(  # noqa: PLR0917 - click passes options by name
    config_of: "Callable[[], Config]",
    images: tuple[str, ...],
    everything: bool,
    output: str,
    since: Path | None,
    partial: bool,
    no_referrers: bool,
    form: str,
    as_json: bool,
) -> None:
    """Write images as they are in the cache: manifests and layers byte for byte, with their names.

    It may be run while the cache serves. Every byte is hashed on its way. What is not cached whole is an error that
    says what is missing, unless --partial takes what is here.
    """
    from mitm_cache.exchange.outgoing import Form, gather, read_since, write
    from mitm_cache.exchange.shelf import Shelf
    from mitm_cache.exchange.target import check, open_target, stream_target

    if bool(images) == everything:
        raise click.UsageError("name images, or --all of them")
    if output != STREAM:
        check(Path(output))
    elif sys.stdout is None or is_terminal(sys.stdout):
        raise click.UsageError("an archive is nothing for a terminal; name a file, or put a pipe behind it")
    config = config_of()
    check_data_dir(config.data_dir)
    shelf = Shelf(config.data_dir)
    wanted = list(shelf.images()) if everything else [_image(config, text) for text in images]
    earlier = read_since(since) if since is not None else None
    found = gather(shelf, wanted, everything=everything, partial=partial, referrers=not no_referrers, since=earlier)
    if not found.pieces and not found.unchanged:
        raise ClientError("there is nothing to export")
    total = sum(found.inventory.blobs.values())
    teller = Teller()
    with open_target(Path(output)) if output != STREAM else stream_target(sys.stdout.buffer) as target:
        write(found, shelf, target, Form(form), lambda count: teller.add(count, total))
    teller.end()
    _report(found, output, as_json=as_json)


def _image(config: "Config", text: str) -> "Image":
    from mitm_cache.oci.image import Image

    image = Image.parse(text)
    registry = config.known.find(image.registry)
    return Image(registry.name if registry else image.registry, image.repository, image.reference)


def _report(found: "Export", output: str, *, as_json: bool) -> None:
    listed = found.inventory
    document = {
        "output": output,
        "images": [{"name": one.name, "digest": str(one.digest)} for one in found.images],
        "unchanged": found.unchanged,
        "referrers": [str(digest) for digest in found.referrers],
        "blobs": len(listed.blobs),
        "bytes": sum(listed.blobs.values()),
        "needs": len(listed.needs),
        "missing": [str(one) for one in found.missing],
    }
    err = output == STREAM
    if as_json:
        click.echo(json.dumps(document, indent=2), err=err)
        return
    for one in found.images:
        click.echo(f"{one.name}  {one.digest}", err=err)
    for part in dict.fromkeys(found.missing):
        click.echo(f"not cached, left out: {part}", err=True)
    total = size(sum(listed.blobs.values()))
    words = f"{counted(len(found.images), 'image')}, {counted(len(listed.blobs), 'blob')}, {total}"
    if listed.needs:
        before = f"{counted(len(found.unchanged), 'image')} as before, {counted(len(listed.needs), 'blob')}"
        words += f"; in earlier exports: {before}"
    click.echo(f"{output}: {words}", err=err)
