"""How far a filling is: a line that moves on a terminal, plain lines elsewhere."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.telling import is_terminal
from mitm_cache.units import size

if TYPE_CHECKING:
    from mitm_cache.filling.report import Progress

TICK = 0.2
LINE_SECONDS = 10.0
"""How often progress is told where nobody looks at a terminal."""


async def watch(work: "Callable[[Callable[[Progress], object]], Awaitable[Progress]]", *, quiet: bool) -> "Progress":
    """Do the work, and say on standard error how far it is, unless `quiet`."""
    seen: list[Progress] = []
    async with asyncio.TaskGroup() as group:
        teller = None if quiet else group.create_task(_show(seen) if is_terminal(sys.stderr) else _print(seen))
        try:
            return await work(seen.append)
        finally:
            if teller is not None:
                teller.cancel()


async def _show(seen: "list[Progress]") -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        while True:
            for progress in seen:
                failed = f", {len(progress.failures)} failed" if progress.failures else ""
                words = f"{progress.done} of {progress.images} images{failed}"
                bar.update(task, description=words, completed=progress.arrived, total=progress.expected or None)
            await asyncio.sleep(TICK)


async def _print(seen: "list[Progress]") -> None:
    while True:
        await asyncio.sleep(LINE_SECONDS)
        for progress in seen:
            click.echo(line(progress), err=True)


def line(progress: "Progress") -> str:
    """One line: counts, rate, and the time that is left as far as it is known what is missing."""
    rate = progress.arrived / max(progress.seconds, 0.001)
    missing = max(0, progress.expected - progress.arrived)
    return (
        f"{progress.done} of {progress.images} images, {size(progress.arrived)} of {size(progress.expected)}, "
        f"{size(rate)}/s, {f'{missing / rate:.0f} s left' if rate else 'time left unknown'}, "
        f"{len(progress.failures)} failed"
    )
