"""Versions among tags, and the constraints by which `images-by-semver` chooses them. Pure.

Rules as of the library that skopeo uses (Masterminds/semver 3): `1.2` is 1.2.0, a `v` may lead, and versions with a
suffix (1.2.3-alpine) are chosen only by constraints that have one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from mitm_cache.errors import ConfigError

type Numbers = tuple[int, ...]

_SUFFIX = r"(?:-(?P<suffix>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
_VERSION = re.compile(rf"v?(?P<numbers>[0-9]{{1,19}}(?:\.[0-9]{{1,19}}){{0,2}}){_SUFFIX}")
_WILD = r"(?:[0-9]{1,19}|[xX*])"
_ONE = re.compile(
    rf"\s*(?P<sign>!=|>=|=>|<=|=<|~>|[=<>~^]?)\s*v?(?P<numbers>{_WILD}(?:\.{_WILD}){{0,2}}){_SUFFIX}\s*(?:,\s*)?"
)
_SPAN = re.compile(r"(?<![^\s,|])([v0-9xX*][^\s,|]*)\s+-\s+([v0-9xX*][^\s,|]*)")


@dataclass(frozen=True, slots=True)
class Version:
    """Three numbers, and the suffix that makes it a prerelease."""

    numbers: Numbers
    suffix: str = ""

    @classmethod
    def of(cls, text: str) -> Self | None:
        """From a tag; None where it is no version."""
        found = _VERSION.fullmatch(text)
        if found is None:
            return None
        return cls(_filled(tuple(int(part) for part in found["numbers"].split("."))), found["suffix"] or "")

    @property
    def rank(self) -> tuple[Numbers, bool, tuple[tuple[bool, int, str], ...]]:
        """What versions are ordered by (Semantic Versioning 2.0, 11): a suffix comes before its release."""
        parts = self.suffix.split(".") if self.suffix else []
        return (
            self.numbers,
            not parts,
            tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts),
        )


@dataclass(frozen=True, slots=True)
class _Condition:
    sign: str
    given: Numbers
    suffix: str

    def admits(self, version: Version) -> bool:
        if version.suffix and not self.suffix and (self.sign != "!=" or len(self.given) < 3):
            return False
        return _SIGNS[self.sign](self, version)

    @property
    def base(self) -> Version:
        return Version(_filled(self.given), self.suffix)

    def below(self, version: Version, places: int) -> bool:
        """Whether a version has the same first numbers as this one."""
        return version.numbers[:places] == self.base.numbers[:places]


def _is(condition: _Condition, version: Version) -> bool:
    if len(condition.given) < 3:
        return condition.below(version, len(condition.given))
    return version.rank == condition.base.rank


def _is_over(condition: _Condition, version: Version) -> bool:
    places = len(condition.given)
    if places < 3:
        return version.numbers[:places] > condition.given
    return version.rank > condition.base.rank


def _is_like(condition: _Condition, version: Version) -> bool:
    """~1.2.3: the patch may rise; ~1: the minor too."""
    return version.rank >= condition.base.rank and condition.below(version, min(2, len(condition.given)))


def _is_compatible(condition: _Condition, version: Version) -> bool:
    """^1.2.3: all but the first number that is not zero may rise."""
    given = condition.given
    places = next((place for place, number in enumerate(given, 1) if number), len(given))
    return version.rank >= condition.base.rank and condition.below(version, places)


_SIGNS: dict[str, Callable[[_Condition, Version], bool]] = {
    "": _is,
    "=": _is,
    "!=": lambda condition, version: not _is(condition, version),
    ">": _is_over,
    "<": lambda condition, version: version.rank < condition.base.rank,
    ">=": lambda condition, version: version.rank >= condition.base.rank,
    "=>": lambda condition, version: version.rank >= condition.base.rank,
    "<=": lambda condition, version: not _is_over(condition, version),
    "=<": lambda condition, version: not _is_over(condition, version),
    "~": _is_like,
    "~>": _is_like,
    "^": _is_compatible,
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """Alternatives (`||`) of conditions that hold together."""

    alternatives: tuple[tuple[_Condition, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `>= 3.12.0, < 4`, `~1.2`, `^1`, `1.x || 2.x`, `1.2 - 1.4`; raise ConfigError for anything else."""
        plain = _SPAN.sub(r">=\1 <=\2", text)
        return cls(tuple(_conditions(part, text) for part in plain.split("||")))

    def admits(self, tag: str) -> bool:
        """Whether a tag is a version, and such a one."""
        version = Version.of(tag)
        return version is not None and any(
            all(one.admits(version) for one in conditions) for conditions in self.alternatives
        )


def _conditions(part: str, text: str) -> tuple[_Condition, ...]:
    found: list[_Condition] = []
    place = 0
    while place < len(part) or not found:
        match = _ONE.match(part, place)
        if match is None:
            raise ConfigError(
                f"{text!r} is no condition on versions, such as '>= 3.12.0', '~1.2', '^1', '1.x || 2.x' or '1.2 - 1.4'"
            )
        if place and not part[:place].endswith((" ", ",", "\t")):
            raise ConfigError(f"{text!r} is no condition on versions: two of them with neither comma nor space between")
        place = match.end()
        numbers = []
        for number in match["numbers"].split("."):
            if not number.isdecimal():
                break
            numbers.append(int(number))
        found.append(_Condition(match["sign"], tuple(numbers), match["suffix"] or ""))
    return tuple(found)


def _filled(numbers: Numbers) -> Numbers:
    return (*numbers, 0, 0, 0)[:3]
