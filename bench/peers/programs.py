"""Programs that the comparison runs: found by name, started on ports of loopback, ended by their pid."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.needs import find_tool

LOOPBACK = "127.0.0.1"
_PATIENCE = 60.0


class Missing(Exception):
    """A program is not installed; the text says which, and what has it."""


class Broken(Exception):
    """A program did not start, or did not do its work; the text says what happened."""


def find(name: str, *, package: str) -> str:
    """The path of a program, on PATH or beside this Python; raises Missing."""
    beside = Path(sys.executable).with_name(name)
    found = find_tool(name) or (str(beside) if beside.exists() else None)
    if found is None:
        raise Missing(f"needs {name}: {package}")
    return found


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without proxies: everything here is on loopback."""
    plain = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {**plain, **(more or {})}


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    address: tuple[str, int],
    environ: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """The pid of a program that accepts connections at `address`; what it says goes to `log`. Raises Broken."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment(environ)
        )
        try:
            _wait(process, address, log)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", address: tuple[str, int], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(address, 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise Broken(f"did not start: {log.read_text(errors='replace')[-500:]}")
