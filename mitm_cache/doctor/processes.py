"""The daemons that run here, read from /proc: since when, with which environment, and what they listen on."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_LISTENING = "0A"


@dataclass(frozen=True, slots=True)
class Process:
    """`started` is in seconds of the epoch; `environ` is None where it may not be read."""

    pid: int
    name: str
    started: float
    arguments: tuple[str, ...] = ()
    environ: Mapping[str, str] | None = None

    def option(self, name: str) -> str:
        """The value of `--name VALUE` or `--name=VALUE`, or ""."""
        for index, text in enumerate(self.arguments):
            if text.startswith(f"{name}="):
                return text.partition("=")[2]
            if text == name and index + 1 < len(self.arguments):
                return self.arguments[index + 1]
        return ""


def find(proc: Path, names: Collection[str]) -> tuple[Process, ...]:
    """The processes of these names in this network namespace, but for those that another of them has started."""
    try:
        boot, mine, folders = _boot_time(proc), _namespace(proc / "self"), list(proc.iterdir())
    except OSError:
        return ()  # nothing is mounted there, as in some sandboxes
    found: dict[int, tuple[Process, int]] = {}
    for folder in folders:
        if not folder.name.isdecimal():
            continue
        try:
            name = (folder / "comm").read_text().strip()
            if name not in names or _namespace(folder) not in ("", mine):
                continue
            # Fields after the name, which may hold anything: state, parent, …; the 20th is the start in ticks.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            started = boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
            arguments = tuple((folder / "cmdline").read_bytes().decode(errors="replace").split("\0"))
            process = Process(int(folder.name), name, started, arguments, _environ(folder))
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
        found[process.pid] = process, int(fields[1])
    return tuple(process for process, parent in found.values() if parent not in found)


def _boot_time(proc: Path) -> float:
    lines = (proc / "stat").read_text().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), 0.0)


def _namespace(folder: Path) -> str:
    try:
        return os.readlink(folder / "ns" / "net")
    except OSError:
        return ""


def _environ(folder: Path) -> Mapping[str, str] | None:
    try:
        pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def open_files_limit(proc: Path, pid: int) -> int | None:
    """How many files a process may have open; None where that cannot be read or there is no limit."""
    try:
        lines = (proc / str(pid) / "limits").read_text().splitlines()
        return next(int(line.split()[3]) for line in lines if line.startswith("Max open files"))
    except (OSError, ValueError, StopIteration):
        return None


def owner(proc: Path, pid: int) -> int | None:
    """The user id that a process runs as."""
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
        return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))
    except (OSError, ValueError, StopIteration):
        return None


def groups(proc: Path, pid: int) -> frozenset[int] | None:
    """The groups that a process has; None where that cannot be read."""
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
        own = next(line.split()[2] for line in lines if line.startswith("Gid:"))
        others = next(line.split()[1:] for line in lines if line.startswith("Groups:"))
        return frozenset(map(int, (own, *others)))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def listeners(proc: Path) -> Mapping[int, frozenset[str]]:
    """Every TCP port that is listened on, with the names of the processes that hold it, as far as they can be seen."""
    inodes = dict(_listening_inodes(proc))
    holders = _holders(proc, set(inodes)) if inodes else {}
    ports: dict[int, set[str]] = {}
    for inode, port in inodes.items():
        ports.setdefault(port, set()).update(holders.get(inode, ()))
    return {port: frozenset(names) for port, names in ports.items()}


def _listening_inodes(proc: Path) -> Iterator[tuple[str, int]]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "self" / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue  # the kernel has no IPv6
        for row in map(str.split, lines):
            if row[3] == _LISTENING:
                yield row[9], int(row[1].rpartition(":")[2], 16)


def _holders(proc: Path, inodes: set[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            for link in (folder / "fd").iterdir():
                inode = os.readlink(link).removeprefix("socket:[").removesuffix("]")
                if inode in inodes:
                    found.setdefault(inode, set()).add(f"{(folder / 'comm').read_text().strip()} ({folder.name})")
        except OSError:
            continue  # another user's, or it has just ended
    return found
