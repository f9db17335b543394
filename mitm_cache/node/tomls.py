"""TOML files that others wrote: read to decide, edited as text so that everything else stays as it is.

An edit is read again, to prove that it says what was meant and nothing else.
"""

import copy
import json
import re
import tomllib
from typing import Any

from mitm_cache.errors import ConfigError

type Table = dict[str, Any]

_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_HEADER = re.compile(rf"^\s*\[\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]\s*(?:#.*)?$")
_ANY_HEADER = re.compile(r"^\s*\[")


def quoted(text: str) -> str:
    """A basic string of TOML; JSON's escapes are among its own."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: str, text: str | None) -> Table:
    """The tables of a file; no file is an empty one. Raises ConfigError."""
    try:
        return tomllib.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def table_at(tables: Table, path: tuple[str, ...]) -> Table:
    """The table at a path, or an empty one."""
    for name in path:
        inner = tables.get(name)
        tables = inner if isinstance(inner, dict) else {}
    return tables


def tables_of(value: Any) -> list[Table]:
    """The tables of an array of tables; none of what is none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def set_text(file: str, text: str, path: tuple[str, ...], key: str, value: str) -> str:
    """The text of a file with one text value set in one table. Raises ConfigError where that cannot be done safely."""
    expected = copy.deepcopy(read_toml(file, text))
    inner: Any = expected
    for name in path:
        inner = inner.setdefault(name, {}) if isinstance(inner, dict) else {}
    if isinstance(inner, dict):  # else the edit cannot come to what is expected
        inner[key] = value
    edited = _edited(text, path, f"{key} = {quoted(value)}", key)
    try:
        good = tomllib.loads(edited) == expected
    except ValueError:
        good = False
    if not good:
        table = ".".join(name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quoted(name) for name in path)
        raise ConfigError(
            f"{file} is written in a way that cannot be edited safely: set {key} = {quoted(value)} in [{table}]"
        )
    return edited


def _edited(text: str, path: tuple[str, ...], line: str, key: str) -> str:
    lines = text.splitlines(keepends=True)
    at = next((number for number, one in enumerate(lines) if _names(one) == path), None)
    if at is None:
        gap = "" if not text or text.endswith("\n") else "\n"
        header = ".".join(name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quoted(name) for name in path)
        return f"{text}{gap}{'\n' if text.strip() else ''}[{header}]\n  {line}\n"
    end = next((number for number in range(at + 1, len(lines)) if _ANY_HEADER.match(lines[number])), len(lines))
    for number in range(at + 1, end):
        if re.match(rf"\s*{key}\s*=", lines[number]):
            indent = re.match(r"\s*", lines[number])
            lines[number] = f"{indent[0] if indent else ''}{line}\n"
            return "".join(lines)
    indent = re.match(r"[ \t]*", lines[at])
    if not lines[at].endswith("\n"):
        lines[at] += "\n"
    lines.insert(at + 1, f"{indent[0] if indent else ''}  {line}\n")
    return "".join(lines)


def _names(line: str) -> tuple[str, ...] | None:
    """The names in a table's header, or None where the line is none."""
    found = _HEADER.match(line.rstrip("\r\n"))
    if found is None:
        return None
    try:
        return tuple(json.loads(one) if one[0] == '"' else one.strip("'") for one in re.findall(_KEY, found[1]))
    except ValueError:  # an escape that JSON does not have: no name that is looked for
        return None
