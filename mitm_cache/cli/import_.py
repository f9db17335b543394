"""`mitm-cache import`: images out of files into the cache."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.telling import Teller, check_owner, is_terminal
from mitm_cache.registries import LOCAL
from mitm_cache.units import counted, size

if TYPE_CHECKING:
    from mitm_cache.cache.blobs import Blobs
    from mitm_cache.cache.layout import Layout
    from mitm_cache.cache.links import Links
    from mitm_cache.cache.spool import Spool
    from mitm_cache.config import Config
    from mitm_cache.exchange.arriving import Arrival
    from mitm_cache.exchange.incoming import Import
    from mitm_cache.exchange.source import Source
    from mitm_cache.oci.digest import Digest

STREAM = Path("-")


@click.command("import")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="FILE|DIR…",
    type=click.Path(exists=True, allow_dash=True, path_type=Path),
)
@click.option("--name", default="", metavar="REGISTRY/REPOSITORY:TAG", help="The name of the one image that has none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def import_(config_of: "Callable[[], Config]", paths: tuple[Path, ...], name: str, as_json: bool) -> None:
    """Take images into the cache from what `mitm-cache export` and other tools have written.

    Known are OCI image layouts, as folders and tar archives (skopeo, podman, ctr, Docker 25), folders of skopeo's dir:
    and trees of them (skopeo sync), and archives of docker save and podman save; - is an archive from standard input.
    It may be run while the cache serves. Every digest is proven, and nothing is served of an archive that is not sound.
    """
    from mitm_cache.exchange.arriving import Lading

    if STREAM in paths and (sys.stdin is None or is_terminal(sys.stdin)):
        raise click.UsageError("no archive comes from a terminal; name a file, or put - behind a pipe")
    if paths.count(STREAM) > 1:
        raise click.UsageError("- stands for one archive")
    config = config_of()
    with ExitStack() as stack:
        opened = cache(lambda: _open(config, stack))
        lading = Lading(paths, lambda path: _source(path, opened))
        stack.callback(lading.close)
        target = opened()
        arrivals = lading.arrivals(config.known, target.own, name)
        pieces = target.missing(arrivals)
        total, teller = sum(piece.size for piece in pieces.values()), Teller()
        target.take(pieces, ", ".join(map(str, paths)), lambda count: teller.add(count, total))
        target.publish(arrivals)
        teller.end()
    _report(config, arrivals, target.written, as_json=as_json)


def _source(path: Path, opened: "Callable[[], Import]") -> "Source":
    from mitm_cache.exchange.source import open_source
    from mitm_cache.exchange.stream import StreamSource

    if path != STREAM:
        return open_source(path)
    with suppress(OSError):  # it is no file of the system
        os.set_blocking(sys.stdin.fileno(), True)  # whoever began the pipe may have it otherwise
    teller = Teller()
    source = StreamSource(sys.stdin.buffer, opened(), teller.add)
    teller.end()
    return source


def _open(config: "Config", stack: ExitStack) -> "Import":
    from mitm_cache.cache.blobs import Blobs
    from mitm_cache.cache.index import Index
    from mitm_cache.cache.layout import open_layout
    from mitm_cache.cache.links import Links
    from mitm_cache.cache.pushed import Pushed
    from mitm_cache.exchange.incoming import Import

    check_owner(config.data_dir, "import")
    layout = open_layout(config.data_dir)
    index = Index(layout.index)
    stack.callback(index.close)
    blobs, links = Blobs(layout.blobs), Links(layout.links, index)
    spool = _spool(config, layout, blobs, links)
    return Import(blobs=blobs, links=links, spool=spool, pushed=Pushed(index), drafts=layout.spool)


def _spool(config: "Config", layout: "Layout", blobs: "Blobs", links: "Links") -> "Spool":
    """One that makes room as downloads do."""
    from mitm_cache.cache.evict import Sweeper
    from mitm_cache.cache.room import Room
    from mitm_cache.cache.spool import Spool

    sweeper = Sweeper(layout=layout, blobs=blobs, links=links, limit=config.max_size.of)
    room = Room(layout.spool, least=config.min_free.of, sweep=partial(sweeper.sweep, whole=True))
    return Spool(layout.spool, blobs, room)


def _report(config: "Config", arrivals: "list[Arrival]", written: "dict[Digest, int]", *, as_json: bool) -> None:
    count, total = len(written), sum(written.values())
    unknown = sorted({one.image.registry for one in arrivals if config.known.find(one.image.registry) is None})
    absent = list(dict.fromkeys(str(one) for arrival in arrivals for one in arrival.absent))
    document = {
        "images": [{"name": str(one.image), "digest": str(one.root)} for one in arrivals],
        "blobs": count,
        "bytes": total,
        "absent": absent,
        "unknown_registries": unknown,
    }
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        for one in arrivals:
            click.echo(f"{one.image}  {one.root}")
        click.echo(f"{counted(len(arrivals), 'image')}; new: {counted(count, 'blob')}, {size(total)}")
    for missing in absent:
        click.echo(f"not in it: {missing}", err=True)
    for name in unknown:
        cure = "set names below [local]" if name == LOCAL else f'add [registries."{name}"]'
        click.echo(f"Warning: {name} is no registry that this cache serves: {cure}", err=True)
