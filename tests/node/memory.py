"""A node's files in memory, and settings with the usual answers."""

from collections.abc import Mapping
from typing import Any

from mitm_cache.node.model import Cache, Certificate, Plan, Settings, Target, Trust, Way
from mitm_cache.node.plan import plan
from mitm_cache.registries import TABLE, Known

CA = Certificate("-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n", "AA")
DEBIAN = {"/usr/sbin/update-ca-certificates": ""}


class Memory:
    """Files by path."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = dict(files)

    def read(self, path: str) -> str | None:
        return self._files.get(path)

    def names(self, folder: str) -> tuple[str, ...]:
        inside = {path[len(folder) + 1 :].partition("/")[0] for path in self._files if path.startswith(f"{folder}/")}
        return tuple(sorted(inside))


def settings(target: str, way: str = "hosts", trust: str = "ca", *caches: str, **more: Any) -> Settings:
    given = tuple(Cache.parse(text) for text in caches or ("10.0.0.5",))
    more = {"certificate": CA, "names": ("docker.proxy",), "known": Known(TABLE), **more}
    return Settings(target=Target(target), way=Way(way), trust=Trust(trust), caches=given, **more)


def planned(wanted: Settings, files: Mapping[str, str] | None = None) -> tuple[dict[str, str], Plan]:
    """The texts that are planned, by path, and the plan."""
    made = plan(wanted, Memory({**DEBIAN, **(files or {})}))
    return {change.path: change.text for change in made.changes}, made


def steps(made: Plan) -> set[str]:
    return {str(step) for change in made.changes for step in change.steps}
