"""How many workers `auto` is."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def processors(own: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> int:
    """The processors that this process may use: of its affinity mask, and of the quotas of its control group and of
    those above it (cgroup v2), one at least."""
    found = len(os.sched_getaffinity(0))
    try:
        path = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return found
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if folder != root and root not in folder.parents:
            break
        found = min(found, _quota(folder / "cpu.max"))
    return max(found, 1)


def _quota(file: Path) -> int:
    try:
        quota, period = file.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return 1 << 16  # there is none, or it is "max"
