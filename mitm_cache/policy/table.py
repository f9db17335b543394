"""The rows as they are written, `[[policy]]`: a mistake is told with its row, its key, and what is allowed."""

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from mitm_cache import parsing
from mitm_cache.errors import ClientError, ConfigError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.policy.rule import ANY_USER, Action, Fill, Network, Rule
from mitm_cache.registries import DOCKER_HUB, Known

MATCHING = ("registry", "repository", "tag", "clients", "users")
"""The keys that say what a row is about."""
GIVING = ("fill", "freeze", "min_age", "tag_ttl")
"""The keys of a row that allows."""
KEYS = ("name", *MATCHING, "action", *GIVING)

_NAME = re.compile(r"(?! )[ !#-~]{1,64}(?<! )")
_REGISTRY = re.compile(r"[a-z0-9.*:-]+")
_REPOSITORY = re.compile(r"[a-z0-9._/*-]+")
_TAG = re.compile(r"[A-Za-z0-9._*-]+")
_USER = re.compile(r"[^\x00-\x1f\x7f:/]+")
_LIKE_A_NETWORK = re.compile(r"[0-9.]+|loopback|private|any|anyone|nobody")

type Parser = Callable[[str, Any], Any]


def read_rules(key: str, value: Any, known: Known) -> tuple[Rule, ...]:
    """All rows. Raises ConfigError; rows count from 1 in its messages, as they do everywhere."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ConfigError(f"{key} is rows of keys, each begun by [[{key}]], not {value!r}")
    rules = tuple(_rule(f"{key}[{number}]", number, row, known) for number, row in enumerate(value, 1))
    names: dict[str, int] = {}
    for rule in rules:
        if rule.name and names.setdefault(rule.name, rule.number) != rule.number:
            raise ConfigError(f"{key}[{rule.number}].name: {rule.name!r} is the name of row {names[rule.name]} already")
    return rules


def _rule(key: str, number: int, row: dict[str, Any], known: Known) -> Rule:
    parsers: dict[str, Parser] = {
        "name": _name,
        "registry": lambda key, value: _registries(key, value, known),
        "repository": lambda key, value: _patterns(key, value, _REPOSITORY, "a repository such as team/app"),
        "tag": lambda key, value: _patterns(key, value, _TAG, "a tag such as 3.20"),
        "clients": lambda key, value: parsing.networks(key, _texts(key, value)),
        "users": _users,
        "action": _action,
        "fill": _fill,
        "freeze": _digest,
        "min_age": parsing.duration,
        "tag_ttl": parsing.duration,
    }
    for name in row:
        if name not in parsers:
            raise ConfigError(f"{key}.{name} is not a key of this version; allowed here: {', '.join(KEYS)}")
    rule = Rule(number=number, **{name: parsers[name](f"{key}.{name}", value) for name, value in row.items()})
    _check_action(key, rule, row)
    _check_exact(key, rule)
    return rule


def _check_action(key: str, rule: Rule, row: dict[str, Any]) -> None:
    if rule.action is Action.DENY and (given := [name for name in GIVING if name in row]):
        allowed = ", ".join(("name", *MATCHING))
        raise ConfigError(
            f"{key}.{given[0]}: {row[given[0]]!r} is for a row that allows; allowed beside action = 'deny': {allowed}"
        )
    if rule.tag and "fill" in row:
        raise ConfigError(
            f"{key}.fill: {row['fill']!r} stands beside tag, and layers have no tag: the row would decide for all "
            "content of the repository; allowed is one of the two"
        )
    if rule.freeze is not None:
        if given := [name for name in ("min_age", "tag_ttl") if name in row]:
            raise ConfigError(
                f"{key}.{given[0]}: {row[given[0]]!r} says nothing beside freeze, by which the tag never changes; "
                "allowed is one of the two"
            )
        for name in ("registry", "repository", "tag"):
            patterns = getattr(rule, name)
            if len(patterns) != 1 or "*" in patterns[0]:
                shown = f"{name} is {', '.join(patterns)}" if patterns else f"there is no {name}"
                raise ConfigError(
                    f"{key}.freeze: {rule.freeze} is what one tag is, and {shown}; allowed are one registry, one "
                    "repository and one tag, each without *"
                )


def _check_exact(key: str, rule: Rule) -> None:
    """A name that can never be is a mistake, and a row that never matches protects nobody."""
    for name, patterns, parse in (("repository", rule.repository, Repository), ("tag", rule.tag, Tag)):
        for text in patterns:
            try:
                if "*" not in text:
                    parse.parse(text)
            except ClientError as error:
                raise ConfigError(f"{key}.{name}: {text!r} is none: {error.message}; or a pattern with *") from error
    if rule.registry == (DOCKER_HUB.name,):
        for text in rule.repository:
            if "/" not in text and "*" not in text:
                raise ConfigError(
                    f"{key}.repository: {text!r} is no repository of Docker Hub; its own images are 'library/{text}'"
                )


def _texts(key: str, value: Any) -> tuple[str, ...]:
    found = parsing.texts(key, value)
    if not found:
        raise ConfigError(f"{key}: {value!r} names nothing, so the row would never match; leave the key out for all")
    return found


def _name(key: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(f"{key}: {value!r} is not a name of up to 64 printable ASCII characters, quotes excepted")
    return value


def _patterns(key: str, value: Any, allowed: re.Pattern[str], words: str) -> tuple[str, ...]:
    found = _texts(key, value)
    for text in found:
        if not allowed.fullmatch(text):
            raise ConfigError(f"{key}: {text!r} is not {words}, nor a pattern in which * stands for any characters")
    return found


def _registries(key: str, value: Any, known: Known) -> tuple[str, ...]:
    found = []
    for given in _texts(key, value):
        text = given.lower()
        # A path prefix as it is written in local.names, `mine/`, too.
        registry = known.part(text.removesuffix("/"))
        if registry is None:
            _patterns(key, [text], _REGISTRY, "a registry such as quay.io")
        if registry is None and "*" in text:
            _check_pattern(key, text, known)
        if registry is None and "*" not in text:
            names = ", ".join(one.name for one in known)
            raise ConfigError(
                f"{key}: {text!r} is not a registry that this cache serves; known are {names}, and what [registries] "
                "adds; or a pattern with *"
            )
        found.append(text if registry is None else registry.name)
    return tuple(dict.fromkeys(found))


def _check_pattern(key: str, text: str, known: Known) -> None:
    """Raises ConfigError for a pattern of other names alone: a row that never matches protects nobody."""
    if any(fnmatchcase(one.name, text) for one in known):
        return
    meant = {one.name: host for one in known for host in one.names if fnmatchcase(host, text)}
    if meant:
        name, host = next(iter(meant.items()))
        raise ConfigError(
            f"{key}: {text!r} matches {host}, another name of {name}, and patterns are compared with a registry's own "
            f"name: the row would never match; say {name!r}"
        )


def _users(key: str, value: Any) -> tuple[str, ...]:
    found = _texts(key, value)
    for text in found:
        _user(key, text)
    return found


def _user(key: str, text: str, allowed: str = "") -> str:
    if text != ANY_USER and (not _USER.fullmatch(text) or _LIKE_A_NETWORK.fullmatch(text)):
        raise ConfigError(f"{key}: {text!r} is not {allowed}a name of the users file, nor * for any of them")
    return text


def _action(key: str, value: Any) -> Action:
    if not isinstance(value, str) or value not in tuple(Action):
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(Action)}")
    return Action(value)


def _fill(key: str, value: Any) -> Fill:
    if value == "anyone":
        return Fill()
    if value == "nobody":
        return Fill(anyone=False)
    if not (given := parsing.texts(key, value)):
        raise ConfigError(f"{key}: {value!r} is not anyone, nobody, or a list of networks and names of the users file")
    networks: list[Network] = []
    users = []
    for text in given:
        try:
            networks += parsing.networks(key, [text])
        except ConfigError:
            users.append(_user(key, text, "anyone or nobody by itself, a network such as 10.0.0.0/8, "))
    return Fill(anyone=False, clients=tuple(networks), users=tuple(users))


def _digest(key: str, value: Any) -> Digest:
    try:
        return Digest.parse(value if isinstance(value, str) else "")
    except ClientError as error:
        raise ConfigError(f"{key}: {value!r} is not a digest: {error.message}") from error
