"""`mitm-cache pull`: have images in the cache before anybody asks for them."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from mitm_cache.cli.progress import watch
from mitm_cache.cli.telling import check_owner
from mitm_cache.errors import MitmCacheError
from mitm_cache.units import counted, size

if TYPE_CHECKING:
    from mitm_cache.config import Config
    from mitm_cache.filling.listed import Listed
    from mitm_cache.filling.report import Progress

INTERRUPTED = 130
LOUD = 20
"""So many images are named one by one."""


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What pull and sync have in common."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print a report as JSON."),
        click.option("--dry-run", is_flag=True, help="Only tell what would be fetched, and how many bytes."),
        click.option("--parallel", metavar="N", type=click.IntRange(1, 64), default=6, show_default=True,
                     help="Contents that are fetched at a time."),
        click.option("--no-referrers", is_flag=True, help="Leave signatures, SBOMs and other referrers out."),
        click.option("--platform", metavar="OS/ARCH,…", multiple=True,
                     help="Only these, such as linux/amd64,linux/arm64; else all platforms."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.argument("images", metavar="IMAGE…", nargs=-1, required=True)
@options
@click.pass_obj
def pull(
    config_of: "Callable[[], Config]",
    images: tuple[str, ...],
    platform: tuple[str, ...],
    no_referrers: bool,
    parallel: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch each IMAGE into the cache, beside the service or without it.

    What is here is not fetched again, and what was interrupted goes on where it was. The image is then for everybody
    whom clients.allow and the policy admit, also while upstream is away. The exit status is 1 where something failed;
    the rest is done all the same.
    """
    from mitm_cache.filling.listed import named

    run(config_of(), named(images), platform, not no_referrers, parallel, dry_run, as_json)


def run(
    config: "Config",
    listed: "Listed",
    platforms: tuple[str, ...],
    referrers: bool,
    parallel: int,
    dry: bool,
    as_json: bool,
) -> None:
    """Fill, report, and end the process."""
    from mitm_cache.cache.layout import open_layout
    from mitm_cache.filling.run import fill
    from mitm_cache.filling.trees import Extent, parse_platforms
    from mitm_cache.workers.logs import configure_logging

    configure_logging()
    extent = Extent(parse_platforms(",".join(platforms)), referrers, dry, parallel)
    check_owner(config.data_dir, click.get_current_context().info_name or "this")
    _warn_of_strangers(config, listed)
    layout = open_layout(config.data_dir)
    try:
        progress = asyncio.run(watch(lambda begin: fill(config, layout, listed, extent, begin), quiet=False))
    except KeyboardInterrupt:
        click.echo("Interrupted; the same command goes on from here.", err=True)
        sys.exit(INTERRUPTED)
    except BaseExceptionGroup as group:
        known = group.subgroup(MitmCacheError)
        if known is None:
            raise
        raise known.exceptions[0] from None
    if as_json:
        click.echo(json.dumps(progress.document(dry=dry), indent=2))
    else:
        click.echo("\n".join(render(progress, dry=dry)))
    sys.exit(1 if progress.failures else 0)


def _warn_of_strangers(config: "Config", listed: "Listed") -> None:
    for host in sorted(host for host in listed.hosts if config.known.find(host) is None):
        click.echo(
            f'Warning: {host} is no registry that this cache serves; add [registries."{host}"] to its configuration',
            err=True,
        )


def render(progress: "Progress", *, dry: bool) -> Iterator[str]:
    """The report for people."""
    from mitm_cache.filling.report import SAME

    news = sorted((one for one in progress.filled if one.state != SAME), key=lambda one: one.image)
    for one in news[:LOUD]:
        yield f"{one.state:<8} {one.image}  {one.digest[:19]}{'' if dry else f'  {size(one.bytes)}'}"
    if len(news) > LOUD:
        yield f"… and {len(news) - LOUD} more (--json has all)"
    for failure in progress.failures:
        yield f"failed   {failure.image}: {failure.error}"
    if dry:
        missing = f"{counted(progress.contents, 'content')}, {size(progress.expected)}, would be fetched"
        images = counted(len(progress.filled), "image")
        yield f"{images}: {missing}; {progress.reused} are here; {len(progress.failures)} failed"
    else:
        yield progress.summary()
