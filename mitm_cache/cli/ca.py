"""`mitm-cache ca`: make the local CA, look at it, and hand its certificate to the nodes."""

import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from mitm_cache.ca import CertificateAuthority

if TYPE_CHECKING:
    from mitm_cache.config import Config

_SCRIPT = Path("certs/install-ca.sh")
_PLACES = (Path(__file__).parents[2], Path(sys.prefix, "share/mitm-cache"))
"""A checkout, and where the wheel puts its shared data."""


@click.group()
def ca() -> None:
    """The local certificate authority that nodes trust."""


@ca.command()
@click.option("--force", is_flag=True, help="Replace the CA that is there; the old files are kept beside the new ones.")
@click.pass_obj
def init(config_of: "Callable[[], Config]", force: bool) -> None:
    """Make a CA that may sign for the configured registries only.

    Names that are added to the configuration later need a new CA (--force), which every node must then trust.
    """
    config = config_of()
    authority = CertificateAuthority.create(
        config.ca_dir, permitted=config.permitted_names(), now=datetime.now(UTC), force=force
    )
    click.echo(f"key          {authority.key_path} (keep it secret: whoever has it can pose as these registries)")
    click.echo(f"certificate  {authority.certificate_path}")
    click.echo(f"fingerprint  {authority.fingerprint}")
    if force:
        click.echo("A CA that was there before is kept under names that end in the time; nodes go on trusting it until")
        click.echo("this one is installed over it. Restart the cache to use the new one.")
    script = next((place / _SCRIPT for place in _PLACES if (place / _SCRIPT).is_file()), _SCRIPT)
    files = shlex.join((str(script), str(authority.certificate_path)))
    click.echo(f"trust on NODE   scp {files} NODE: && ssh NODE sudo sh {script.name} {authority.certificate_path.name}")
    click.echo(f"undo on NODE    ssh NODE sudo sh {script.name} --undo")


@ca.command()
@click.pass_obj
def show(config_of: "Callable[[], Config]") -> None:
    """Tell what the CA is, how long it is valid and what it may sign for."""
    description = CertificateAuthority.load(config_of().ca_dir).describe()
    click.echo(f"path         {description.path}")
    click.echo(f"subject      {description.subject}")
    click.echo(
        f"valid        {description.not_before:%Y-%m-%dT%H:%M:%SZ} to {description.not_after:%Y-%m-%dT%H:%M:%SZ}"
    )
    click.echo(f"fingerprint  {description.fingerprint}")
    click.echo(f"permitted    {' '.join(description.permitted)}")
    click.echo(f"excluded     all other DNS names, {', '.join(description.excluded)}")


@ca.command()
@click.option("--der", is_flag=True, help="Write DER instead of PEM.")
@click.option("-o", "--output", type=click.File("wb", lazy=True), default="-", help="Write to FILE.", metavar="FILE")
@click.pass_obj
def export(config_of: "Callable[[], Config]", der: bool, output: BinaryIO) -> None:
    """Write the CA's certificate, which is public; never the key."""
    certificate = CertificateAuthority.load(config_of().ca_dir).export("der" if der else "pem")
    output.write(certificate)  # opens FILE, which is left alone when there is no CA
