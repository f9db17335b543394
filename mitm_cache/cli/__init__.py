"""The command line: a command parses its options, calls one function, and prints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mitm_cache.cli.addon_path import addon_path
from mitm_cache.cli.ca import ca
from mitm_cache.cli.demo import demo
from mitm_cache.cli.doctor import doctor
from mitm_cache.cli.example import example
from mitm_cache.cli.example_dns import coredns, dnsmasq, unbound
from mitm_cache.cli.serve import serve
from mitm_cache.cli.setup import setup
from mitm_cache.cli.status import status
from mitm_cache.config import Config, load
from mitm_cache.errors import MitmCacheError


class _Group(click.Group):
    """Turns what this program raises on purpose into a message; nobody sees a traceback for a wrong key."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MitmCacheError as error:
            raise click.ClickException(error.message) from error


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
    config_of: Callable[[], Config] = lambda: load(file=file, flags=flags)  # noqa: E731 - made when a command asks
    context.obj = config_of


for _command in (dnsmasq, unbound, coredns):
    example.add_command(_command)
for _command in (serve, demo, status, doctor, ca, example, addon_path, setup):
    main.add_command(_command)
