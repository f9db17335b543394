"""One table of the configuration, out of which its keys are taken."""

from collections.abc import Callable
from typing import Any

from mitm_cache.errors import ConfigError


class Reader:
    """Takes keys out of one table; what is left over at the end is a mistake."""

    def __init__(self, table: Any, prefix: str) -> None:
        """`prefix`: what stands before the names of its keys, as in `cache.`. Raises ConfigError where it is none."""
        if not isinstance(table, dict):
            raise ConfigError(f"{prefix.rstrip('.')} is a table of keys, not {table!r}")
        self._table = dict(table)
        self._prefix = prefix

    def take[T, D](self, name: str, parse: Callable[[str, Any], T], default: D) -> T | D:
        """What is made of a key's value; `default` where the key is not there. Raises what `parse` does."""
        if name not in self._table:
            return default
        return parse(self._prefix + name, self._table.pop(name))

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def copy(self) -> dict[str, Any]:
        """What has not been taken, as it was written."""
        return dict(self._table)

    def finish(self, allowed: str) -> None:
        """Raise ConfigError where a key was not taken; `allowed` says which there are."""
        if self._table:
            name = next(iter(self._table))
            raise ConfigError(f"{self._prefix}{name} is not a key of this version; allowed here: {allowed}")
