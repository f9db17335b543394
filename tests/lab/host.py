"""A host of the lab: a network namespace seen through an /etc of its own."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.network import Namespace
from tests.lab.process import LabError, Process

Trust = Literal["system", "perclient", "none"]

# What the host changes lies over the machine's own /etc, and what its programs write goes to memory of their own:
# nothing of the machine is touched. A host with a folder `run` has a /run of its own too. /sys is left alone (`ip netns
# exec` mounts it anew), or dockerd would miss its cgroups.
_ENTER = """
set -e
mount -t tmpfs lab "$1/rw"
mkdir "$1/rw/upper" "$1/rw/work"
mount -t overlay lab -o "lowerdir=$1/etc:/etc,upperdir=$1/rw/upper,workdir=$1/rw/work" /etc
[ ! -d "$1/run" ] || mount --bind "$1/run" /run
shift
exec "$@"
"""
# An unprivileged PATH leaves out where daemons are.
SEARCH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    out: str
    err: str


class Host:
    """Runs programs in a namespace, with its own names, trust and client settings."""

    def __init__(self, name: str, space: Namespace, folder: Path, stack: ExitStack) -> None:
        self.name, self.space, self.folder = name, space, folder
        self.etc, self.home, self.log = folder / "etc", folder / "home", folder / "log"
        for path in (self.etc, self.home, self.log, folder / "tmp", folder / "rw"):
            path.mkdir(parents=True)
        self._stack = stack
        self._starts = 0
        self.variables: dict[str, str] = {}
        self._write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
        # No dependence on what the machine's administrator set for podman and skopeo.
        self._write("containers/policy.json", json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self._write("containers/registries.conf", "")
        self.resolve({})
        self.trust("none", "")

    def _write(self, name: str, text: str) -> None:
        path = self.etc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def resolve(self, names: Mapping[str, str], *, server: str = "127.0.0.1") -> None:
        """Set /etc/hosts (name to address) and the name server for everything else."""
        lines = [f"127.0.0.1 localhost {self.name}", *(f"{address} {name}" for name, address in names.items())]
        self._write("hosts", "\n".join(lines) + "\n")
        self._write("resolv.conf", f"nameserver {server}\noptions timeout:1 attempts:1\n")

    def trust(self, how: Trust, ca: str, hosts: Iterable[str] = ()) -> None:
        """Trust the PEM `ca`: host-wide, in each client's own folder for `hosts`, or not at all.

        Programs that run already keep the trust they started with.
        """
        own = [self.etc / folder / "certs.d" for folder in ("docker", "containers", "containerd")]
        for path in own:
            shutil.rmtree(path, ignore_errors=True)
        machine = _BUNDLE.read_text() if _BUNDLE.exists() else ""
        self._write("ssl/certs/ca-certificates.crt", machine + (ca if how == "system" else ""))
        self._write("containerd/certs.d/README", "one folder for each registry\n")
        for host in hosts if how == "perclient" else ():
            for client in ("docker", "containers"):
                self._write(f"{client}/certs.d/{host}/ca.crt", ca)
            server = f"https://{'registry-1.docker.io' if host == 'docker.io' else host}"
            self._write(f"containerd/certs.d/{host}/ca.crt", ca)
            self._write(
                f"containerd/certs.d/{host}/hosts.toml",
                f'server = "{server}"\n[host."{server}"]\ncapabilities = ["pull", "resolve"]\n'
                f'ca = "/etc/containerd/certs.d/{host}/ca.crt"\n',
            )

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Nothing of the test run's own environment but PATH: it may name proxies, CA files and registries.

        `variables` are what the host's administrator has set for everybody.
        """
        own = {"HOME": str(self.home), "TMPDIR": str(self.folder / "tmp"), "LANG": "C.UTF-8"}
        return {"PATH": SEARCH, **own, **self.variables, **(env or {})}

    def _inside(self, command: Sequence[str]) -> list[str]:
        enter = ["nsenter", f"--net={self.space.path}", "unshare", "--mount", "--propagation", "slave"]
        return [*enter, "sh", "-c", _ENTER, "lab", str(self.folder), *command]

    def attempt(
        self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 60, text: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, whatever that is."""
        leash = ["setpriv", "--pdeathsig", "KILL"]
        try:
            return subprocess.run(
                [*leash, *self._inside(command)],
                env=self.environment(env),
                input=text or "",
                capture_output=True,
                text=True,
                errors="replace",  # curl may print a blob
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = b"".join(part for part in (error.stdout, error.stderr) if isinstance(part, bytes))
            raise LabError(f"{self.name}$ {' '.join(command)}\nno end in {timeout:g} s\n{said.decode()}") from None

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 60, text: str | None = None
    ) -> Ran:
        """Run a command that must succeed. Raises LabError with its own output."""
        done = self.attempt(*command, env=env, timeout=timeout, text=text)
        if done.returncode:
            line = f"{self.name}$ {' '.join(command)}\nexit status {done.returncode}\n"
            raise LabError(line + done.stdout + done.stderr)
        return Ran(done.stdout, done.stderr)

    def start(
        self,
        name: str,
        *command: str,
        env: Mapping[str, str] | None = None,
        end: signal.Signals = signal.SIGTERM,
        cwd: Path | None = None,
    ) -> Process:
        """Start a program in the background; it ends with the lab at the latest."""
        self._starts += 1
        inside = self._inside(command)
        process = Process(f"{name}-{self._starts}", inside, log=self.log, env=self.environment(env), end=end, cwd=cwd)
        self._stack.callback(process.stop)
        return process

    def listening(self, port: int) -> bool:
        """Whether something listens on this TCP port of the host's namespace, on any address."""
        table = Path(f"/proc/{self.space.holder.pid}/net/tcp").read_text().splitlines()[1:]
        rows = (line.split() for line in table)
        return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)
