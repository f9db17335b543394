"""`mitm-cache verify`: hash everything that is kept again, and put aside what is damaged."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.data import check_data_dir
from mitm_cache.cli.telling import check_owner, is_terminal

if TYPE_CHECKING:
    from mitm_cache.cache.verify import Progress
    from mitm_cache.config import Config

TELL_SECONDS = 1.0
LINE_SECONDS = 30.0
"""How often progress is told where nobody looks at a terminal."""


@click.command()
@click.option("--repair", is_flag=True, help="Move damaged blobs to quarantine/, and drop damaged links.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def verify(config_of: "Callable[[], Config]", repair: bool, as_json: bool) -> None:
    """Hash every blob again, and read every link. It may be run while the cache serves.

    What is damaged is fetched again when somebody asks for it, once it has been put aside by --repair. The exit status
    is 0 where everything is sound or was repaired, and 1 where something is wrong.
    """
    from mitm_cache.cache.index import Index
    from mitm_cache.cache.layout import open_layout
    from mitm_cache.cache.links import Links
    from mitm_cache.cache.verify import Verification

    root = config_of().data_dir
    check_data_dir(root)
    if repair:
        check_owner(root, "--repair")
    with ExitStack() as stack:
        links = None
        if repair:
            index = Index(open_layout(root).index)
            stack.callback(index.close)
            links = Links(root / "links", index)
        progress = Verification(root, repair=links).run(_Teller(is_terminal(sys.stderr)).tell)
    if is_terminal(sys.stderr):
        click.echo("", err=True)
    if as_json:
        click.echo(json.dumps(progress.document(), indent=2))
    else:
        for flaw in progress.flaws:
            click.echo(f"{flaw.kind:<12} {flaw.path}{f'  ({flaw.cure})' if flaw.cure else ''}")
        click.echo(_summary(progress))
    left = [flaw for flaw in progress.flaws if not (repair and flaw.cure)]
    sys.exit(1 if left else 0)


def _summary(progress: "Progress") -> str:
    words = f"{progress.blobs:,} blobs, {_size(progress.done)}, {progress.links:,} links"
    flaws = len(progress.flaws)
    return f"{words}: {'all sound' if not flaws else '1 flaw' if flaws == 1 else f'{flaws} flaws'}"


class _Teller:
    """Says how far it is: in one line on a terminal, now and then elsewhere."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._began = self._said = time.monotonic()

    def tell(self, progress: "Progress") -> None:
        now = time.monotonic()
        if now - self._said < (TELL_SECONDS if self._terminal else LINE_SECONDS):
            return
        self._said = now
        rate = progress.done / max(now - self._began, 0.001)
        left = (progress.total - progress.done) / rate if rate else 0
        line = (
            f"{_size(progress.done)} of {_size(progress.total)}, {_size(rate)}/s, {left:.0f} s left, "
            f"{len(progress.flaws)} wrong"
        )
        click.echo(f"\r{line:<78}" if self._terminal else line, err=True, nl=not self._terminal)


def _size(count: float) -> str:
    from mitm_cache.units import size

    return size(count)
