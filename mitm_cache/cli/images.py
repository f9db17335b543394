"""Images as they are named on a command line, found among those that are cached."""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from mitm_cache.errors import ClientError

if TYPE_CHECKING:
    from mitm_cache.cache.catalog import Cached
    from mitm_cache.config import Config
    from mitm_cache.oci.image import Image

_SHORT = re.compile(r"(?P<name>.+)@sha256:(?P<hex>[0-9a-f]{6,63})")
"""A digest as `ls` shows it on a terminal."""
SIMILAR = 5


def find(
    config: "Config",
    images: Sequence["Cached"],
    names: Iterable[str],
    *,
    whole: bool = False,
    others: Callable[[], Iterable[str]] = tuple,
) -> "list[Cached]":
    """The images of these names, each once; with `whole` a name is a repository's. Raises ClickException.

    `others`: names of images that are not among these, to tell of those that are like one that is not known.
    """
    found: dict[Cached, None] = {}
    for name in names:
        hits = _of_repository(config, images, name) if whole else _of_name(config, images, name)
        if not hits:
            raise click.ClickException(_unknown([*map(str, images), *others()], name))
        found |= dict.fromkeys(hits)
    return list(found)


def _of_repository(config: "Config", images: Sequence["Cached"], name: str) -> "list[Cached]":
    from mitm_cache.oci.image import LATEST

    image = parse(name)
    if image.reference != LATEST or name.endswith(f":{LATEST}"):
        raise click.UsageError(f"with --all-tags {name!r} is to be a repository, without a tag or a digest")
    place = _place(config, image)
    return [each for each in images if each.place == place]


def _of_name(config: "Config", images: Sequence["Cached"], name: str) -> "list[Cached]":
    from mitm_cache.oci.digest import Digest

    if short := _SHORT.fullmatch(name):
        place = _place(config, parse(short["name"]))
        hits = [each for each in images if each.place == place and each.digest.hex.startswith(short["hex"])]
        if len({each.digest for each in hits}) > 1:
            raise click.ClickException(f"{name} may be several images: {', '.join(str(hit.digest) for hit in hits)}")
        return hits
    image = parse(name)
    place, reference = _place(config, image), image.reference
    if isinstance(reference, Digest):
        return [each for each in images if each.place == place and each.digest == reference]
    return [each for each in images if each.place == place and each.tag == reference]


def parse(name: str) -> "Image":
    """An image's name. Raises BadParameter."""
    from mitm_cache.oci.image import Image

    try:
        return Image.parse(name)
    except ClientError as error:
        raise click.BadParameter(error.message, param_hint="IMAGE") from None


def _place(config: "Config", image: "Image") -> str:
    registry = config.known.find(image.registry)
    return f"{registry.name if registry is not None else image.registry}/{image.repository}"


def places(config: "Config", names: Iterable[str]) -> set[str]:
    """The repositories of images' names, each with its registry. Raises BadParameter."""
    return {_place(config, parse(short["name"] if (short := _SHORT.fullmatch(name)) else name)) for name in names}


def _unknown(known: Iterable[str], name: str) -> str:
    """What is said of a name that is not cached: names like it, of the same repository or spelt nearly so."""
    names = list(dict.fromkeys(known))
    last = re.split("[:@]", name.rpartition("/")[2])[0]
    same = [each for each in names if re.split("[:@]", each.rpartition("/")[2])[0] == last]
    near = get_close_matches(name, same, SIMILAR, 0) or get_close_matches(name, names, SIMILAR)
    return f"{name} is not cached" + (f"; these are: {', '.join(near)}" if near else "")
