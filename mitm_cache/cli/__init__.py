"""The command line: a command parses its options, calls one function, and prints."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mitm_cache.cli.addon_path import addon_path
from mitm_cache.cli.ca import ca
from mitm_cache.cli.completion import completion
from mitm_cache.cli.demo import demo
from mitm_cache.cli.doctor import doctor
from mitm_cache.cli.example import example
from mitm_cache.cli.example_dns import coredns, dnsmasq, unbound
from mitm_cache.cli.export import export
from mitm_cache.cli.group import Group
from mitm_cache.cli.import_ import import_
from mitm_cache.cli.ls import ls
from mitm_cache.cli.pin import pin, unpin
from mitm_cache.cli.prune import prune
from mitm_cache.cli.pull import INTERRUPTED, pull
from mitm_cache.cli.reload import reload
from mitm_cache.cli.rm import rm
from mitm_cache.cli.serve import serve
from mitm_cache.cli.setup import setup
from mitm_cache.cli.status import status
from mitm_cache.cli.sync import sync
from mitm_cache.cli.user import user
from mitm_cache.cli.verify import verify
from mitm_cache.cli.why import why
from mitm_cache.config import Config, load
from mitm_cache.errors import MitmCacheError


class _Group(Group):
    """Turns what this program raises on purpose into a message; nobody sees a traceback for a wrong key."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MitmCacheError as error:
            raise click.ClickException(error.message) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)
        except click.NoSuchOption as error:
            if error.option_name not in {name for option in self.params for name in option.opts}:
                raise
            where = f"mitm-cache {error.option_name} … {ctx.invoked_subcommand}"
            raise click.UsageError(f"{error.message} It stands before the command: {where}", error.ctx) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mitm-cache")
@click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration file instead of /etc/mitm-cache/config.toml.",
)
@click.option("--data-dir", type=click.Path(file_okay=False), help="Where the cache, and by default the CA, are kept.")
@click.pass_context
def main(context: click.Context, file: Path | None, data_dir: str | None) -> None:
    """One cache in front of every container registry.

    Nodes keep their image names; they reach this cache by /etc/hosts, by HTTPS_PROXY, or as a mirror.
    """
    flags = {"data_dir": data_dir} if data_dir else {}
    config_of: Callable[..., Config] = lambda **more: load(file=file, flags=flags | more)  # noqa: E731 - made when a command asks
    context.obj = config_of


for _command in (dnsmasq, unbound, coredns):
    example.add_command(_command)
for _command in (
    *(serve, reload, demo, status, doctor, why, ca, example, addon_path, setup, user, verify),
    *(export, import_, pull, sync, ls, rm, pin, unpin, prune, completion),
):
    main.add_command(_command)
