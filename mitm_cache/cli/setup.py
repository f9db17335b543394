"""`mitm-cache setup`: make this node pull through the cache, and undo it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mitm_cache.config import Config
    from mitm_cache.node.apply import Work
    from mitm_cache.node.files import Place
    from mitm_cache.node.model import Certificate, Plan, Settings, Target
    from mitm_cache.node.state import State

TARGETS = ("docker", "containerd", "podman", "crio", "k3s", "rke2", "kind", "k3d", "hosts")
WAYS = ("hosts", "connect", "mirror")
FILES = {"kind": "kind-mitm-cache.yaml", "k3d": "k3d-registries.yaml"}
_PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("target", type=click.Choice(TARGETS), required=False)
@click.option("--cache", "caches", multiple=True, metavar="ADDRESS", help="The cache's address; once for each cache.")
@click.option("--way", type=click.Choice(WAYS), help="How pulls get to the cache; hosts unless the target has none.")
@click.option(
    "--trust",
    type=click.Choice(("ca", "insecure")),
    default="ca",
    show_default=True,
    help="Trust the cache's CA, or do not verify the registries.",
)
@click.option(
    "--store",
    type=click.Choice(("system", "client")),
    default="system",
    show_default=True,
    help="Put the CA into the node's store, or into the client's own folders.",
)
@click.option("--ca", "ca_file", type=click.Path(dir_okay=False, path_type=Path), help="The cache's CA certificate.")
@click.option(
    "--fingerprint", metavar="SHA256", help="The CA's fingerprint; without --ca it is fetched from the cache."
)
@click.option("--clear-port", type=_PORT, default=80, show_default=True, help="Where the cache hands out its CA.")
@click.option("--connect-port", type=_PORT, default=3128, show_default=True, help="The port of the connect listener.")
@click.option("--mirror-port", type=_PORT, default=5000, show_default=True, help="The port of the mirror listener.")
@click.option("--no-proxy", multiple=True, metavar="HOST", help="With --way connect: reached without the cache.")
@click.option("--no-egress", is_flag=True, help="With --way hosts: token hosts lead to the cache too.")
@click.option("--file", "file", type=click.Path(dir_okay=False), help="kind and k3d: the file to write or extend.")
@click.option(
    "--local",
    "local",
    multiple=True,
    metavar="NAME",
    help="kind and k3d: a name of the cache's own registry, such as localhost:5000; else what its configuration has.",
)
@click.option("--cluster", metavar="NAME", help="kind: set up the nodes of a cluster that runs.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--restart", is_flag=True, help="Restart the daemons that have to be, too.")
@click.option("--undo", is_flag=True, help="Put everything back; without TARGET, for every target.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="Set up the system below this directory, for building images; nothing is run.",
)
@click.pass_obj
def setup(
    config_of: "Callable[[], Config]",
    /,
    target: str | None,
    *,
    dry_run: bool,
    restart: bool,
    undo: bool,
    root: Path,
    cluster: str | None,
    file: str | None,
    **options: Any,
) -> None:
    """Make this node pull through the cache, with one command.

    Shows a diff of each file, writes it, and keeps what was there: --undo puts it back, byte for byte. Nothing is
    restarted without --restart. For a cache with [registries] of its own give its configuration, by --config.
    """
    from mitm_cache.node.apply import decide, decide_undo
    from mitm_cache.node.plan import plan

    if target is None and not undo:
        raise click.UsageError(f"say what to set up: {', '.join(TARGETS)}")
    if cluster and target != "kind":
        raise click.UsageError("--cluster is for kind")
    if file and target not in FILES:
        raise click.UsageError(f"--file is for {' and '.join(FILES)}")
    where = list(_places(root, cluster, everywhere=undo and target in (None, "kind")))
    if undo:
        chosen = None if target is None else {target}
        jobs = [(place, state, decide_undo(chosen, place, state)) for place, state in where]
        targets = chosen or set(TARGETS)
    else:
        assert target is not None
        path = "" if cluster else _absolute(file or FILES.get(target, ""))
        options["enter"] = f"{where[0][1].place.partition('-')[0]} exec {cluster}-control-plane" if cluster else ""
        options["containerd"] = (
            _containerd_version() if target == "containerd" and root.resolve() == Path("/") else None
        )
        settings = _settings(config_of(), target, path, options)
        planner: Callable[[Any], Plan] = lambda files: plan(settings, files)  # noqa: E731 - what each place is asked with
        jobs = [(place, state, decide(target, planner, place, state)) for place, state in where]
        targets = {target}
    _show(jobs)
    if dry_run:
        changes = any(work.edits for _, _, work in jobs)
        click.echo("Nothing was changed (--dry-run)." if changes else "Nothing to change.")
        _say_steps(jobs, "After the change:")
        return
    _do(jobs, targets, root, restart=restart, undo=undo)


def _places(root: Path, cluster: str | None, *, everywhere: bool) -> "list[tuple[Place, State]]":
    """Where files are: here, or in a kind cluster's nodes; for an undo, wherever something was set up."""
    from mitm_cache.errors import ConfigError
    from mitm_cache.node.apply import local
    from mitm_cache.node.files import Container, kind_nodes
    from mitm_cache.node.state import State, places

    here = local(root)
    nodes: list[tuple[Place, State]] = []
    for name in places(root) if everywhere and not cluster else ():
        tool, _, node = name.partition("-")
        nodes.append((Container(tool, node), State(root, name)))
    if cluster:
        tool = next((tool for tool in ("docker", "podman") if shutil.which(tool)), "")
        if not tool:
            raise ConfigError("a kind cluster's nodes are reached by docker or podman, and neither is installed here")
        return [(Container(tool, node), State(root, f"{tool}-{node}")) for node in kind_nodes(tool, cluster)]
    return [here, *nodes]


def _absolute(file: str) -> str:
    return os.path.abspath(file) if file else ""  # links stay; a root may be put before it


def _settings(config: "Config", target: str, file: str, options: dict[str, Any]) -> "Settings":
    from mitm_cache.node.model import WAYS as ALLOWED
    from mitm_cache.node.model import Cache, Settings, Store, Target, Trust, Way

    kind = Target(target)
    way = Way(options["way"]) if options["way"] else ALLOWED[kind][0]
    caches = tuple(dict.fromkeys(Cache.parse(text) for text in options["caches"]))
    return Settings(
        target=kind,
        way=way,
        trust=Trust(options["trust"]),
        store=Store(options["store"]),
        caches=caches,
        known=config.known,
        names=config.names,
        certificate=_certificate(options, caches) if way is not Way.MIRROR else None,
        token_hosts=options["no_egress"],
        no_proxy=tuple(host.strip() for text in options["no_proxy"] for host in text.split(",") if host.strip()),
        mirror_port=options["mirror_port"],
        connect_port=options["connect_port"],
        file=file,
        containerd=options["containerd"],
        local=_local(config, kind, options["local"]),
        enter=options["enter"],
    )


def _local(config: "Config", target: "Target", given: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the cache's own registry: as they are given, or where its configuration is here."""
    from mitm_cache.node.hosting import parse_local
    from mitm_cache.node.model import LOCAL
    from mitm_cache.registries import LOCAL as LOCAL_NAME

    if given or target not in LOCAL:
        return tuple(dict.fromkeys(map(parse_local, given)))
    found = config.known.named(LOCAL_NAME)
    return found.hosts if found else ()


def _certificate(options: dict[str, Any], caches: tuple[Any, ...]) -> "Certificate | None":
    """The CA, if one is asked for and told; a fetched one counts only with the right fingerprint."""
    from mitm_cache.node.trust import check, fetch_certificate, parse_fingerprint, read_certificate

    if options["trust"] != "ca":
        return None
    fingerprint = parse_fingerprint(options["fingerprint"]) if options["fingerprint"] else None
    if options["ca_file"] is not None:
        found = read_certificate(options["ca_file"])
    elif fingerprint is not None and caches:
        found = fetch_certificate(caches[0], options["clear_port"])
    else:
        return None  # the settings say what to give
    return check(found, fingerprint) if fingerprint else found


def _containerd_version() -> int | None:
    """The major version of the containerd that is installed; None where there is none."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["containerd", "--version"], capture_output=True, text=True, timeout=10, check=False)
        found = re.search(r"\sv?(\d+)\.\d+", done.stdout)
        return int(found[1]) if found else None
    return None


type Jobs = "list[tuple[Place, State, Work]]"


def _show(jobs: Jobs) -> None:
    for place, _, work in jobs:
        prefix = f"{place.name}: " if place.name else ""
        for edit in work.edits:
            click.echo((f"# {place.name}\n" if place.name else "") + edit.diff, nl=False)
        for note in work.notes:
            click.echo(f"{prefix}{note}")


def _do(jobs: Jobs, targets: set[str], root: Path, *, restart: bool, undo: bool) -> None:
    from mitm_cache.node.apply import perform, run

    for place, state, work in jobs:
        perform(work, targets, place, state)
    if not any(work.edits for _, _, work in jobs):
        click.echo("Nothing to undo." if undo else "Nothing to change: everything is set up already.")
    else:
        count = sum(len(work.edits) for _, _, work in jobs)
        click.echo(f"{'Put back' if undo else 'Wrote'} {count} file{'s' if count != 1 else ''}.")
    if root.resolve() == Path("/"):
        left = run(_steps(jobs), restart=restart)
        if left:
            click.echo("To take effect (or give --restart):")
            for step in left:
                click.echo(f"  {step}")
    else:
        _say_steps(jobs, "In the system below --root still to be run:")
    kept = [words for _, _, work in jobs for words in work.kept]
    for words in kept:
        click.echo(f"Error: {words}", err=True)
    if kept:
        sys.exit(1)


def _say_steps(jobs: Jobs, title: str) -> None:
    steps = _steps(jobs)
    for line in (title, *(f"  {step}" for step in steps)) if steps else ():
        click.echo(line)


def _steps(jobs: Jobs) -> list[Any]:
    return sorted({step for _, _, work in jobs for step in work.steps})
