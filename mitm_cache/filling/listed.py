"""What is to be in the cache: a file as `skopeo sync` reads it, or a plain list of images."""

import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mitm_cache.errors import ClientError, ConfigError
from mitm_cache.filling.versions import Constraint
from mitm_cache.oci.image import Image
from mitm_cache.oci.reference import Reference, Repository, parse_reference
from mitm_cache.registries import DOCKER_HUB

logger = logging.getLogger(__name__)

MAX_SIZE = 4 << 20
"""Bytes of a file."""
_KEYS = ("images", "images-by-tag-regex", "images-by-semver", "credentials", "tls-verify", "cert-dir")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Choice:
    """Tags of one repository: those that `takes` says yes to. `why` is for people."""

    registry: str
    repository: Repository
    takes: Callable[[str], bool] = field(compare=False)
    why: str


@dataclass(frozen=True, slots=True)
class Source:
    """How a registry is spoken to, as far as the file says it; `login` is user and password."""

    login: tuple[str, str] | None = field(default=None, repr=False)
    verify: bool | None = None
    certificates: Path | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """Images, choices of tags, and what is said of their registries."""

    images: tuple[Image, ...] = ()
    choices: tuple[Choice, ...] = ()
    sources: dict[str, Source] = field(default_factory=dict)

    @property
    def hosts(self) -> set[str]:
        """The registries that images are asked of."""
        return {image.registry for image in self.images} | {choice.registry for choice in self.choices}


def read_list(path: Path) -> Listed:
    """Read a file. Raises ConfigError, which names the place and shows no password."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        text = content.decode("utf-8-sig")  # some editors begin files with a mark
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8") from None
    if len(content) > MAX_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_SIZE >> 20} MiB")
    listed = parse_list(text, str(path))
    if mode & 0o077 and any(source.login for source in listed.sources.values()):
        logger.warning("%s holds a password, and others than its owner may read it: chmod 600 %s", path, path)
    return listed


def parse_list(text: str, name: str = "the list") -> Listed:
    """The meaning of a file's text. Raises ConfigError."""
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    if all(len(line.split()) == 1 and not line.endswith(":") for _, line in lines):
        return Listed(tuple(_image(f"{name}, line {number}", line) for number, line in lines))
    yaml = YAML(typ="base", pure=True)  # all text: 1.10 is a tag, and no number
    yaml.composer.warn_double_anchors = False  # the warning shows the lines about it, passwords too
    try:
        document = yaml.load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{name}{place} is neither YAML as skopeo sync reads it nor one image a line") from None
    if isinstance(document, list) and all(isinstance(item, str) for item in document):
        return Listed(tuple(_image(name, item) for item in document))
    return _registries(name, _mapping(name, document))


def _registries(name: str, document: dict[str, Any]) -> Listed:
    images: list[Image] = []
    choices: list[Choice] = []
    sources: dict[str, Source] = {}
    for registry, given in document.items():
        place = f"{name}: {registry}"
        fields = _mapping(place, given)
        if unknown := [key for key in fields if key not in _KEYS]:
            raise ConfigError(f"{place}: {unknown[0]} is not a key; allowed here: {', '.join(_KEYS)}")
        host = _image(place, f"{registry}/any/thing").registry
        if host != registry.lower() and registry.lower() not in DOCKER_HUB.names:
            raise ConfigError(f"{place} is not a registry's host, with :port or without")
        if host in sources:
            raise ConfigError(f"{place} is {host}, which is there already: one entry has all of it")
        sources[host] = _source(place, fields)
        for repository, references in _mapping(f"{place}.images", fields.get("images")).items():
            where = f"{place}.images.{repository}"
            if references in ("", []):
                choices.append(_choice(where, registry, repository, lambda _tag: True, "every tag"))
            images += [_of(where, registry, repository, reference) for reference in _texts(where, references)]
        for repository, pattern in _mapping(f"{place}.images-by-tag-regex", fields.get("images-by-tag-regex")).items():
            where = f"{place}.images-by-tag-regex.{repository}"
            matches = _pattern(where, pattern)
            choices.append(_choice(where, registry, repository, matches, f"tags that match {pattern}"))
        for repository, text in _mapping(f"{place}.images-by-semver", fields.get("images-by-semver")).items():
            where = f"{place}.images-by-semver.{repository}"
            admits = _versions(where, text)
            choices.append(_choice(where, registry, repository, admits, f"versions {text}"))
    return Listed(tuple(images), tuple(choices), sources)


def _source(place: str, fields: dict[str, Any]) -> Source:
    word = str(fields.get("tls-verify") or "").lower()
    if word not in ("", *_BOOLEANS):
        raise ConfigError(f"{place}.tls-verify is true or false")
    folder = fields.get("cert-dir") or ""
    try:
        _ = folder and os.listdir(folder)
    except (OSError, ValueError, TypeError) as error:
        why = f": {error.strerror}" if isinstance(error, OSError) else ""
        raise ConfigError(f"{place}.cert-dir: {folder!r} is not a directory that can be read{why}") from None
    login = None
    if credentials := fields.get("credentials"):
        given = _mapping(f"{place}.credentials", credentials)
        if set(given) != {"username", "password"} or not all(isinstance(one, str) and one for one in given.values()):
            raise ConfigError(f"{place}.credentials has a username and a password, both text (not shown here)")
        login = (given["username"], given["password"])
    return Source(login, _BOOLEANS.get(word), Path(folder) if folder else None)


def _choice(place: str, registry: str, repository: Any, takes: Callable[[str], bool], why: str) -> Choice:
    image = _of(place, registry, repository, "latest")
    return Choice(image.registry, image.repository, takes, why)


def _of(place: str, registry: str, repository: Any, reference: str) -> Image:
    image = _image(place, f"{registry}/{repository}")
    if str(repository).rpartition("/")[2].count(":") or "@" in str(repository):
        raise ConfigError(f"{place}: {repository!r} is a repository; its tags and digests stand below it")
    try:
        found: Reference = parse_reference(reference)
    except ClientError as error:
        raise ConfigError(f"{place}: {reference!r} is neither a tag nor a digest: {error.message}") from None
    return Image(image.registry, image.repository, found)


def _image(place: str, text: str) -> Image:
    try:
        return Image.parse(text)
    except ClientError as error:
        raise ConfigError(f"{place}: {error.message}") from None


def _pattern(place: str, text: Any) -> Callable[[str], bool]:
    try:
        pattern = re.compile(text) if isinstance(text, str) else None
    except (re.error, RecursionError, OverflowError):
        pattern = None
    if pattern is None:
        raise ConfigError(f"{place}: {text!r} is not a regular expression")
    return lambda tag: pattern.search(tag) is not None


def _versions(place: str, text: Any) -> Callable[[str], bool]:
    try:
        return Constraint.parse(str(text)).admits
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}") from None


def _texts(place: str, value: Any) -> Iterator[str]:
    if not isinstance(value, list) and value != "":
        raise ConfigError(f"{place} is a list of tags and digests, or [] for every tag")
    for item in value:
        if not isinstance(item, str):
            raise ConfigError(f"{place} is a list of tags and digests, each of them text")
        yield item


def _mapping(place: str, value: Any) -> dict[str, Any]:
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is a mapping")
    return {str(key): item for key, item in value.items()}


def named(texts: tuple[str, ...]) -> Listed:
    """Images as they are named on the command line. Raises ConfigError."""
    return Listed(tuple(_image("IMAGE", text) for text in texts))
