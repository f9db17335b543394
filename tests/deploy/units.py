"""What the units in `deploy/systemd` say."""

from collections import defaultdict
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE = "mitm-cache.service"


def read(name: str) -> dict[str, list[str]]:
    """The settings of a unit, each with all its values, the sections thrown together."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (FOLDER / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[key].append(value)
    return found


def sockets() -> dict[str, dict[str, list[str]]]:
    """The socket units by name."""
    return {path.name: read(path.name) for path in sorted(FOLDER.glob("*.socket"))}
