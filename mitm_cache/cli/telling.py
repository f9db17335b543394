"""What commands that move many bytes have in common: how far they are, and whether they may write."""

import os
import pwd
import sys
import time
from pathlib import Path

import click

from mitm_cache.cli.status import size
from mitm_cache.errors import ConfigError

TELL_SECONDS = 1.0
LINE_SECONDS = 30.0
"""How often it is told where nobody looks at a terminal."""


class Teller:
    """Says to standard error how far it is: in one line on a terminal, now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began = self._said = time.monotonic()
        self._done = 0

    def add(self, count: int, total: int) -> None:
        """So many bytes more are done, of `total`."""
        self._done += count
        now = time.monotonic()
        if now - self._said < (TELL_SECONDS if self._terminal else LINE_SECONDS):
            return
        self._said = now
        rate = self._done / max(now - self._began, 0.001)
        left = (total - self._done) / rate if rate else 0
        line = f"{size(self._done)} of {size(total)}, {size(rate)}/s, {left:.0f} s left"
        click.echo(f"\r{line:<78}" if self._terminal else line, err=True, nl=not self._terminal)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._said != self._began:
            click.echo("", err=True)


def counted(count: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


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
