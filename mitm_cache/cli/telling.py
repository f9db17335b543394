"""What commands that move many bytes have in common: how far they are, and whether they may write."""

import os
import pwd
import sys
import time
from pathlib import Path
from typing import TextIO

import click

from mitm_cache.errors import ConfigError
from mitm_cache.units import size

TELL_SECONDS = 1.0
LINE_SECONDS = 30.0
"""How often it is told where nobody looks at a terminal."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at one of the standard streams; it is None where it was closed before the start."""
    return stream is not None and stream.isatty()


class Teller:
    """Says to standard error how far it is: in one line on a terminal, now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = is_terminal(sys.stderr)
        self._began = self._said = time.monotonic()
        self._done = 0

    def add(self, count: int, total: int | None = None) -> None:
        """So many bytes more are done, of `total`, None where nobody knows that."""
        self._done += count
        now = time.monotonic()
        if now - self._said < (TELL_SECONDS if self._terminal else LINE_SECONDS):
            return
        self._said = now
        rate = self._done / max(now - self._began, 0.001)
        line = f"{size(self._done)}, {size(rate)}/s"
        if total is not None:
            left = (total - self._done) / rate if rate else 0
            line = f"{size(self._done)} of {size(total)}, {size(rate)}/s, {left:.0f} s left"
        click.echo(f"\r{line:<78}" if self._terminal else line, err=True, nl=not self._terminal)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._said != self._began:
            click.echo("", err=True)


def check_owner(root: Path, command: str) -> None:
    """Raise ConfigError where files would get another owner than the service's; there is none before the first."""
    owner = owner_of(root)
    if owner and owner != _name(os.geteuid()):
        raise ConfigError(f"{command} writes files that the service must own: run it as its user, sudo -u '{owner}'")


def owner_of(path: Path) -> str:
    """The user whose a file is, by name or as #NUMBER; "" where it is not there, or nobody may know."""
    try:
        return _name(path.stat().st_uid)
    except OSError:
        return ""


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"
