"""`mitm-cache doctor`: what is wrong here, and its cure."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitm_cache.errors import ConfigError
from mitm_cache.parsing import host as parse_host
from mitm_cache.parsing import is_address
from mitm_cache.registries import TABLE, Known, Registry

if TYPE_CHECKING:
    from mitm_cache.config import Config
    from mitm_cache.doctor.finding import Finding
    from mitm_cache.doctor.scene import Wanted


@click.command()
@click.option("--node", is_flag=True, help="This machine is a node that pulls.")
@click.option("--host", is_flag=True, help="This machine is the cache host.")
@click.option("--cache", "caches", multiple=True, metavar="ADDRESS", help="The cache's address or name, for a node.")
@click.option("--registry", "names", multiple=True, metavar="NAME", help="A registry, or an image: quay.io/team/app:1.")
@click.option("--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The cache's CA, ca.crt.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    context: click.Context,
    node: bool,
    host: bool,
    caches: tuple[str, ...],
    names: tuple[str, ...],
    ca: Path | None,
    as_json: bool,
) -> None:
    """Find out what is wrong on a node or on the cache host, and tell the cure.

    Without --node or --host it looks what this machine is; it may be both. Nothing is changed. The exit status is 0
    when no check fails, 1 when one does, and 2 when the command line is wrong. Root sees more than others.
    """
    from mitm_cache.config import SYSTEM_FILE
    from mitm_cache.doctor.finding import Status
    from mitm_cache.doctor.rounds import visit
    from mitm_cache.doctor.scene import Scene

    if node and host:
        raise click.UsageError("--node and --host exclude each other; without them this machine may be both")
    config_of: Callable[[], Config] = context.obj
    known = _known(config_of)
    scene = Scene(
        config=config_of,
        known=known,
        file=(context.parent.params.get("file") if context.parent else None) or SYSTEM_FILE,
        caches=tuple(map(_cache, caches)),
        wanted=tuple(_wanted(known, name) for name in names),
        ca=ca,
    )
    findings = visit(scene, node=node, host=host)
    if as_json:
        click.echo(json.dumps({"findings": [asdict(each) for each in findings]}, indent=2))
    else:
        click.echo("\n".join(render(findings)))
    sys.exit(1 if any(each.status is Status.FAIL for each in findings) else 0)


def _known(config_of: "Callable[[], Config]") -> Known:
    """The registries of the configuration; those of the table where it cannot be loaded, which is a finding."""
    try:
        return config_of().known
    except ConfigError:
        return Known(TABLE)


def _cache(text: str) -> str:
    address = text.removeprefix("[").removesuffix("]")
    try:
        return address if is_address(address) else parse_host("--cache", text.lower())
    except ConfigError:
        raise click.BadParameter(f"{text!r} is not an address or a host name", param_hint="--cache") from None


def _wanted(known: Known, text: str) -> "Wanted":
    from mitm_cache.doctor.scene import Wanted

    name, _, image = text.partition("/")
    try:
        registry = known.find(name) or Registry(name, parse_host("--registry", name))
    except ConfigError:
        raise click.BadParameter(f"{text!r} is not a registry or an image of one", param_hint="--registry") from None
    if image and "@" not in image and ":" not in image:
        image += ":latest"
    return Wanted(registry, image)


def render(findings: "Iterable[Finding]") -> Iterator[str]:
    """A line for each finding, those that say the same of several subjects together; its cure stands below it."""
    from mitm_cache.doctor.finding import Status, merge

    count = dict.fromkeys(Status, 0)
    for each in merge(findings):
        count[each.status] += 1
        yield f"{each.status:<5} {each.check:<9} {each.subject}: {each.words}"
        if each.cure:
            yield f"      {'cure':>9} {each.cure}"
    yield ", ".join(f"{number} {status}" for status, number in count.items())
