"""What the Containerfile says of its last stage."""

import re
from pathlib import Path

FILE = Path(__file__).parents[2] / "Containerfile"


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of that name in the last stage, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE))
    last = text.rpartition("\nFROM ")[2]
    return [line.partition(" ")[2] for line in last.splitlines() if line.startswith(f"{name} ")]
