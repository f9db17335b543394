"""`mitm-cache ls`: the images that are cached."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from mitm_cache.cli.data import complete_image
from mitm_cache.cli.telling import is_terminal
from mitm_cache.units import size

if TYPE_CHECKING:
    from mitm_cache.cache.catalog import Cached, Catalog
    from mitm_cache.config import Config

type Row = dict[str, Any]

HEADS = ("IMAGE", "DIGEST", "SIZE", "OWN", "LAST PULL", "PLATFORMS", "")
NAME, DIGEST, SIZE, OWN, PLATFORMS = 0, 1, 2, 3, 5
YIELDING = ((PLATFORMS, 12), (NAME, 40), (DIGEST, 0), (OWN, 0), (NAME, 16))
"""How narrow a field may become where the terminal is, and which are left out, in this order."""
RIGHT = (SIZE, OWN)
GAP = "  "


@click.command()
@click.argument("pattern", default="", shell_complete=complete_image)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def ls(config_of: "Callable[[], Config]", pattern: str, as_json: bool) -> None:
    """List the images that are cached, of all registries, or those whose name PATTERN matches.

    PATTERN may hold * and ?, and is a part of the name otherwise. OWN is what no other image shares, so what removing
    it would free. Where the output is no terminal there are tabs between fields, sizes in bytes and whole digests.
    The data directory is read, whether the service runs or not.
    """
    from mitm_cache.cache.catalog import Catalog

    config = config_of()
    pattern = canonical(config, pattern)
    catalog = Catalog(config.data_dir)
    catalog.blobs.look_at_all()
    rows = [describe(catalog, image) for image in catalog.images if is_match(str(image), pattern)]
    catalog.save()
    if as_json:
        click.echo(json.dumps({"images": rows}, indent=2))
    elif not rows:
        click.echo(f"no image that is cached matches {pattern!r}" if pattern else "no image is cached", err=True)
    elif is_terminal(sys.stdout):
        click.echo("\n".join(table(rows, shutil.get_terminal_size().columns)))
    else:
        click.echo("\n".join(plain(rows)))


def canonical(config: "Config", pattern: str) -> str:
    """A pattern that begins with another name of a registry, such as `localhost:5000/`, by the registry's own."""
    head, slash, rest = pattern.partition("/")
    registry = config.known.find(head)
    if registry is None or head == registry.name:
        return pattern
    return f"{registry.name}{slash or '/'}{rest}"


def is_match(name: str, pattern: str) -> bool:
    """Whether a name has the pattern: where it has wildcards all of it, with the registry or without."""
    if not set("*?[") & set(pattern):
        return pattern in name
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[2], pattern)


def describe(catalog: "Catalog", image: "Cached") -> Row:
    """One image; sizes in bytes of what is here."""
    own, shared = catalog.sizes(image)
    used = catalog.used(image)
    parts = [(catalog.platform(part), part) for part in catalog.parts(image)]
    return {
        "image": str(image),
        "registry": image.registry,
        "repository": str(image.repository),
        "tag": None if image.tag is None else str(image.tag),
        "digest": str(image.digest),
        "size": own + shared,
        "own": own,
        "shared": shared,
        "platforms": [
            {"platform": platform, "blobs": part.blobs, "blobs_cached": part.here, "complete": part.complete}
            for platform, part in parts
            if part.blobs is not None
        ],
        "not_cached": sorted({platform for platform, part in parts if platform and part.blobs is None}),
        "complete": catalog.is_complete(image),
        "last_pull": None if used is None else datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds"),
        "pinned": image.pinned,
        "origin": image.origin.value,
    }


def plain(rows: Iterable[Row]) -> Iterator[str]:
    """For programs: tabs between fields, nothing cut."""
    for row in rows:
        fields = [row["image"], row["digest"], row["size"], row["own"], row["last_pull"] or "-"]
        yield "\t".join(map(str, [*fields, _platforms(row) or "-", _notes(row) or "-"]))


def table(rows: Iterable[Row], width: int) -> Iterator[str]:
    """For people: no line is wider than the terminal, as long as that has room for a name at all."""
    cells = [HEADS, *(_cells(row) for row in rows)]
    widths = {column: max(len(line[column]) for line in cells) for column in range(len(HEADS))}
    for column, least in YIELDING:
        over = sum(widths.values()) + len(GAP) * (len(widths) - 1) - width
        if over > 0 and least:
            widths[column] = max(min(least, widths[column]), widths[column] - over)
        elif over > 0:
            del widths[column]
    for line in cells:
        fields = (
            _cut(line[column], room).rjust(room) if column in RIGHT else _cut(line[column], room).ljust(room)
            for column, room in widths.items()
        )
        yield GAP.join(fields).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    name = row["image"] if row["tag"] is not None else f"{row['image'].partition('@')[0]}@{row['digest'][:19]}"
    used = (row["last_pull"] or "-")[:16].replace("T", " ")
    digest = row["digest"].partition(":")[2][:12]
    return name, digest, size(row["size"]), size(row["own"]), used, _platforms(row), _notes(row)


def _platforms(row: Row) -> str:
    words = []
    for part in row["platforms"]:
        of = "" if part["complete"] else f"({part['blobs_cached']}/{part['blobs']})"
        if part["platform"] or of:
            words.append(f"{part['platform']}{of}")
    return ",".join(words)


def _notes(row: Row) -> str:
    notes = [] if row["complete"] else ["incomplete"]
    notes += ["pinned"] if row["pinned"] else []
    return ",".join([*notes, *([row["origin"]] if row["origin"] != "pulled" else [])])


def _cut(text: str, room: int) -> str:
    """A text's beginning and its end, where the tag is."""
    if len(text) <= room:
        return text
    head = (room - 1) // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"
