"""`mitm-cache user`: the users of the cache, in the file that `clients.users_file` names."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.group import Group

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitm_cache.config import Config

_from_stdin = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")


@click.group(cls=Group)
def user() -> None:
    """Who the cache knows by name: they may use the proxy listener, and rules may speak of them.

    The file is the one of clients.users_file. A cache that runs follows within seconds.
    """


@user.command()
@click.argument("name")
@_from_stdin
@click.pass_obj
def add(config_of: "Callable[[], Config]", name: str, password_stdin: bool) -> None:
    """Add a user, or give one another password. It is asked for twice, and only its bcrypt hash is kept."""
    from mitm_cache.users import file, table

    path = _path(config_of)
    table.check_name(name)
    new = file.add(path, name, _password(name, from_stdin=password_stdin, twice=True))
    click.echo(f"{name} {'added to' if new else 'has another password in'} {path}")


@user.command()
@click.argument("name")
@click.pass_obj
def remove(config_of: "Callable[[], Config]", name: str) -> None:
    """Remove a user. Connections of theirs that are open go on until they end."""
    from mitm_cache.users import file

    path = _path(config_of)
    file.remove(path, name)
    click.echo(f"{name} removed from {path}")


@user.command("list")
@click.pass_obj
def list_(config_of: "Callable[[], Config]") -> None:
    """Print the users' names, one a line."""
    from mitm_cache.users import file

    for name in file.read(_path(config_of)).hashes:
        click.echo(name)


@user.command()
@click.argument("name")
@_from_stdin
@click.pass_obj
def verify(config_of: "Callable[[], Config]", name: str, password_stdin: bool) -> None:
    """Say whether a password is right; the exit code is 1 where it is not."""
    from mitm_cache.users import file, table

    known = file.read(_path(config_of))
    password = _password(name, from_stdin=password_stdin, twice=False)
    right = table.fits(known.hash_for(name), password.encode(errors="surrogateescape"))
    click.echo("right" if right else f"wrong, or there is no user {name!r}")
    sys.exit(0 if right else 1)


def _path(config_of: "Callable[[], Config]") -> Path:
    from mitm_cache.errors import ConfigError

    path = config_of().users_file
    if path is None:
        raise ConfigError('clients.users_file is not set; name a file, such as users_file = "/etc/mitm-cache/users"')
    return path


def _password(name: str, *, from_stdin: bool, twice: bool) -> str:
    if from_stdin:
        text = sys.stdin.buffer.read(4096).decode(errors="surrogateescape")
        return text.removesuffix("\n").removesuffix("\r")
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for the password: use --password-stdin")
    password: str = click.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=twice)
    return password
