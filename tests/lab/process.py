"""Processes of the lab: started here, tracked here, ended by their own pid."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class LabError(Exception):
    """Something in the lab failed; the message carries what the program itself said."""


def wait_until(check: Callable[[], bool], what: str, *, seconds: float = 60, tick: float = 0.05) -> None:
    """Poll until `check` holds. Raises LabError naming `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:g} s: {what}")
        time.sleep(tick)


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


class Process:
    """One background program with its logs."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        end: signal.Signals = signal.SIGTERM,
        cwd: Path | None = None,
    ) -> None:
        self.name, self.end = name, end
        self.out, self.err = log / f"{name}.out", log / f"{name}.err"
        # A session of its own: ^C reaches the test run only, which then ends everything in order. If the run itself is
        # killed, the kernel sends `end` for it.
        leash = ["setpriv", "--pdeathsig", end.name.removeprefix("SIG")]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                [*leash, *command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                cwd=cwd,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def running(self) -> bool:
        return self.popen.poll() is None

    def said(self) -> str:
        """What the program wrote last."""
        return f"--- {self.name} stdout\n{tail(self.out)}\n--- {self.name} stderr\n{tail(self.err)}"

    def wait_until(self, check: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
        """Poll until `check` holds, giving up as soon as the program has ended."""

        def alive_and_ready() -> bool:
            if not self.running():
                raise LabError(f"{self.name} ended with {self.popen.returncode}\n{self.said()}")
            return check()

        try:
            wait_until(alive_and_ready, what, seconds=seconds)
        except LabError as error:
            raise error if self.name in str(error) else LabError(f"{error}\n{self.said()}") from None

    def ask_to_end(self) -> None:
        if self.running():
            os.kill(self.pid, self.end)

    def stop(self, *, seconds: float = 15) -> None:
        """End the program: asked first, killed after the limit."""
        self.ask_to_end()
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
