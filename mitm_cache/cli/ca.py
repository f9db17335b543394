"""`mitm-cache ca`: make the local CA, look at it, hand its certificate to the nodes, and replace it in time."""

import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from mitm_cache.ca import CertificateAuthority
from mitm_cache.cli.group import Group

if TYPE_CHECKING:
    from mitm_cache.config import Config

_SCRIPT = Path("certs/install-ca.sh")
_PLACES = (Path(__file__).parents[2], Path(sys.prefix, "share/mitm-cache"))
"""A checkout, and where the wheel puts its shared data."""
_DATES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ")
_File = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Group)
def ca() -> None:
    """The local certificate authority that nodes trust."""


@ca.command()
@click.option("--force", is_flag=True, help="Replace the CA that is there; the old files are kept beside the new ones.")
@click.pass_obj
def init(config_of: "Callable[[], Config]", force: bool) -> None:
    """Make a CA that may sign for the configured registries only.

    Names that are added to the configuration later need a new CA: `ca rotate`, so that nodes can trust it before it is
    used, or --force, after which every node must trust it at once.
    """
    config = config_of()
    authority = CertificateAuthority.create(config.ca_dir, permitted=config.permitted_names(), now=_now(), force=force)
    click.echo(f"key          {authority.key_path} (keep it secret: whoever has it can pose as these registries)")
    click.echo(f"certificate  {authority.certificate_path}")
    click.echo(f"fingerprint  {authority.fingerprint}")
    if force:
        click.echo("A CA that was there before is kept under names that end in the time; nodes go on trusting it until")
        click.echo("this one is installed over it. Restart the cache to use the new one for names added since; for the")
        click.echo("names that it serves already, a cache that runs uses it within seconds.")
    script = next((place / _SCRIPT for place in _PLACES if (place / _SCRIPT).is_file()), _SCRIPT)
    copied = shlex.join((str(script), str(authority.certificate_path)))
    click.echo(
        f"trust on NODE   scp {copied} NODE: && ssh NODE sudo sh {script.name} {authority.certificate_path.name}"
    )
    click.echo(f"undo on NODE    ssh NODE sudo sh {script.name} --undo")


@ca.command()
@click.pass_obj
def show(config_of: "Callable[[], Config]") -> None:
    """Tell what the CA is, how long it is valid and what it may sign for; the next one too during a rotation."""
    from mitm_cache.ca.rotation import Pair

    pair = Pair.load(config_of().ca_dir)
    roles = pair.by_role(_now())
    for number, (role, each) in enumerate(roles.items()):
        description = each.describe()
        if number:
            click.echo()
        if len(roles) > 1:
            click.echo(f"role         {role}{_since(role, pair.since)}")
        click.echo(f"path         {description.path}")
        click.echo(f"subject      {description.subject}")
        for issuer in description.issuers:
            click.echo(f"signed by    {issuer}")
        click.echo(f"valid        {_stamp(description.not_before)} to {_stamp(description.not_after)}")
        click.echo(f"fingerprint  {description.fingerprint}")
        click.echo(f"permitted    {' '.join(description.permitted)}")
        click.echo(f"excluded     all other DNS names, {', '.join(description.excluded)}")


def _since(role: str, since: datetime | None) -> str:
    if role != "next":
        return ""
    return f", signs from {_stamp(since)} on" if since else ", signs from 'mitm-cache ca rotate --finish' on"


@ca.command()
@click.option("--der", is_flag=True, help="Write DER instead of PEM: of the CA that signs now only.")
@click.option("-o", "--output", type=click.File("wb", lazy=True), default="-", help="Write to FILE.", metavar="FILE")
@click.pass_obj
def export(config_of: "Callable[[], Config]", der: bool, output: BinaryIO) -> None:
    """Write the CA's certificate, which is public; never the key. During a rotation there are two, both for nodes."""
    from mitm_cache.ca.rotation import Pair

    pair, now = Pair.load(config_of().ca_dir), _now()
    # opens FILE, which is left alone when there is no CA
    output.write(pair.signer(now).export("der") if der else pair.export(now))


@ca.command()
@click.option("--at", type=click.DateTime(_DATES), help="The new CA signs from this date on (UTC).", metavar="DATE")
@click.option("--finish", is_flag=True, help="The new CA takes the place of the old one.")
@click.option("--abort", is_flag=True, help="Undo a rotation that is not finished: the new CA is removed.")
@click.pass_obj
def rotate(config_of: "Callable[[], Config]", at: datetime | None, finish: bool, abort: bool) -> None:
    """Replace the CA without a node that fails: make a new one, trust it on every node, then use it.

    The old CA goes on signing until --finish, or until the date of --at. A cache that runs follows within seconds.
    """
    from mitm_cache.ca import rotation

    if (at is not None) + finish + abort > 1:
        raise click.UsageError("--at, --finish and --abort exclude each other")
    config, now = config_of(), _now()
    if finish:
        authority = rotation.finish(config.ca_dir, permitted=config.permitted_names(), now=now)
        click.echo(f"in use       {authority.certificate_path}")
        click.echo(f"fingerprint  {authority.fingerprint}")
        click.echo(
            "A cache that runs signs with it within seconds. The old CA is kept under names that end in the time;"
        )
        click.echo("nodes may stop trusting it: install `mitm-cache ca export` over it.")
    elif abort:
        authority = rotation.abort(config.ca_dir)
        click.echo(f"in use       {authority.certificate_path}, as before; the new CA and its key are removed")
        click.echo(f"fingerprint  {authority.fingerprint}")
    else:
        pair = rotation.begin(config.ca_dir, permitted=config.permitted_names(), now=now, at=_utc(at))
        assert pair.following is not None
        click.echo(f"new CA       {pair.following.certificate_path}")
        click.echo(f"fingerprint  {pair.following.fingerprint}")
        _tell_next(_utc(at))


@ca.command()
@click.option("-o", "--output", type=click.File("wb", lazy=True), default="-", help="Write to FILE.", metavar="FILE")
@click.pass_obj
def csr(config_of: "Callable[[], Config]", output: BinaryIO) -> None:
    """Write a request for a CA that your own root signs: constrained to the configured registries, path length 0.

    Nodes that trust the root need nothing. The key stays in the CA's directory; asking again uses the same key.
    """
    from mitm_cache.ca.signed import request

    config = config_of()
    output.write(request(config.ca_dir, permitted=config.permitted_names()))
    click.echo("Where the root is (OpenSSL 3; keep every extension that is asked for):", err=True)
    click.echo("  printf 'authorityKeyIdentifier=keyid' > aki.cnf", err=True)
    click.echo("  openssl x509 -req -in REQUEST -CA ROOT.crt -CAkey ROOT.key -days 1825 -sha256 \\", err=True)
    click.echo("    -copy_extensions copyall -extfile aki.cnf -out SIGNED.crt", err=True)
    click.echo("Then here: mitm-cache ca import SIGNED.crt --chain ROOT.crt", err=True)


@ca.command("import")
@click.argument("certificate", type=_File)
@click.option("--chain", type=_File, multiple=True, help="What signed it, up to the root; may be repeated.")
@click.option("--key", type=_File, help="Its key, if it is not the one of `ca csr`.")
@click.option("--at", type=click.DateTime(_DATES), help="It signs from this date on (UTC).", metavar="DATE")
@click.pass_obj
def import_(
    config_of: "Callable[[], Config]", certificate: Path, chain: tuple[Path, ...], key: Path | None, at: datetime | None
) -> None:
    """Take a CA that your own root has signed, with the certificates above it; leaves come with all of them.

    Where there is a CA already it becomes the next one of a rotation. What it may sign for is checked first.
    """
    from mitm_cache.ca.signed import take

    config = config_of()
    authority = take(
        config.ca_dir, (certificate, *chain), key_path=key, permitted=config.permitted_names(), now=_now(), at=_utc(at)
    )
    description = authority.describe()
    click.echo(f"certificate  {description.path}")
    for issuer in description.issuers:
        click.echo(f"signed by    {issuer}")
    click.echo(f"valid        until {_stamp(description.not_after)}")
    click.echo(f"fingerprint  {description.fingerprint}")
    if description.issuers:
        click.echo("Nodes that trust its root need nothing.")
    if key is not None:
        click.echo(f"The key was copied; remove {key}.")
    if description.path.name != "ca.crt":
        _tell_next(_utc(at), "The others" if description.issuers else "Nodes")


def _tell_next(at: datetime | None, who: str = "Nodes") -> None:
    when = f"from {_stamp(at)} on" if at else "from 'mitm-cache ca rotate --finish' on"
    click.echo(f"It signs {when}; until then the CA that is there does. {who} are to trust both by then:")
    click.echo("  mitm-cache ca export > ca.crt, and on each node: sudo sh install-ca.sh ca.crt")
    click.echo("'mitm-cache ca rotate --abort' undoes this.")


def _now() -> datetime:
    return datetime.now(UTC)


def _utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at else None


def _stamp(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
