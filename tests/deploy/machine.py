"""A machine whose PID 1 is systemd, for units to be started by: namespaces over a folder of files, and a cgroup."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.host import Host
from tests.lab.process import LabError, Process, wait_until

# The control group is the root of what systemd sees. What is mounted vanishes with the last process.
_ENTER = """
echo $$ >"$2/cgroup.procs"
exec unshare --cgroup --pid --fork --kill-child --mount --propagation private --uts --ipc sh -ec "$3" boot "$1"
"""
_BOOT = """
root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/.old"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
for folder in dev/shm run tmp; do mount -t tmpfs tmpfs "$root/$folder"; done
cd "$root"
pivot_root . .old
umount -l /.old
rmdir /.old
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd systemd.unit=multi-user.target
"""


def cgroup2() -> Path | None:
    """Where this machine has the second version of control groups, on which systemd insists."""
    rows = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next((Path(row[1]) for row in rows if row[2] == "cgroup2"), None)


class Machine:
    """A booted machine on the network of a lab's host."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def _init(self) -> str:
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def attempt(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, whatever that is."""
        spaces = ["--mount", "--pid", "--net", "--cgroup", "--ipc", "--uts", "--root", "--wd=/"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"]
        enter = ["nsenter", "--target", self._init, *spaces, *clean]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=60, check=False)

    def run(self, *command: str) -> str:
        """Run a command that must succeed. Raises LabError with its own output."""
        done = self.attempt(*command)
        if done.returncode:
            raise LabError(f"machine$ {' '.join(command)}\nexit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def journal(self, unit: str) -> list[str]:
        """What a unit has said so far."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").splitlines()

    def wait_for(self, unit: str, line: str) -> None:
        """Wait until a unit says this line. Raises LabError with all that it has said."""
        try:
            wait_until(lambda: line in self.journal(unit), f"{line!r} of {unit}")
        except LabError as error:
            raise LabError("\n".join([str(error), *self.journal(unit)])) from None

    def started(self) -> bool:
        """Whether the boot is over. A minimal machine is "degraded": it has no kernel modules to load."""
        if not self._init:
            return False
        return self.attempt("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")


@contextmanager
def booted(root: Path, host: Host) -> Iterator[Machine]:
    """A machine with the files of `root` on `host`'s network."""
    groups = cgroup2()
    assert groups is not None
    group = groups / f"mitm-cache-test-{os.getpid()}"
    group.mkdir()
    try:
        process = host.start("machine", "sh", "-ec", _ENTER, "enter", str(root), str(group), _BOOT)
        try:
            machine = Machine(process)
            process.wait_until(machine.started, "systemd to boot")
            yield machine
        finally:
            process.popen.kill()
            process.popen.wait()
    finally:
        (group / "cgroup.kill").write_text("1")
        wait_until(lambda: _removed(group), f"the end of all in {group}")


def _removed(group: Path) -> bool:
    """Control groups go by rmdir, the inner ones first, and only when the last process has left."""
    for folder, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return False
    return True
