"""The product on a disk of its own: a file system in a mount namespace that ends with it."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mitm_cache.demo.image import MIB
from tests.fakes.registry import LyingUpstream
from tests.serving import LISTENERS, ROOT, Process, settings

DISK = 20 * MIB


class OnDisk(Process):
    """The product on a disk of its own; `inside` is where that can be seen from here."""

    @property
    def inside(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.data}")

    def fill(self, leave: int) -> Path:
        """Have something else take the disk but for so many bytes."""
        status = os.statvfs(self.inside)
        path = self.inside / "filler"
        try:
            path.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - leave)))
        except OSError:
            pass  # the product has taken some meanwhile: it is full
        return path

    def protect(self) -> None:
        """Make it read-only, but for the index: a file system is that only while nobody has a file open to write."""
        for name in ("blobs", "links", "spool"):
            self._within("mount", "--bind", self.data / name, self.data / name)
            self._within("mount", "-o", "remount,bind,ro", self.data / name)

    def unprotect(self) -> None:
        for name in ("blobs", "links", "spool"):
            self._within("umount", self.data / name)

    def _within(self, *command: str | Path) -> None:
        subprocess.run(["nsenter", "-t", str(self.pid), "-m", *command], check=True)

    def kept(self) -> set[str]:
        return {f"sha256:{path.name}" for path in (self.inside / "blobs").glob("*/*/*")}

    def leftovers(self) -> set[str]:
        return {path.name for path in (self.inside / "spool").iterdir()}

    def metric(self, name: str) -> float:
        [address] = [line.split()[1] for line in self.said if line.startswith("admin ")]
        with urllib.request.urlopen(f"http://{address}/metrics") as response:
            for line in response.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[1])
        raise AssertionError(f"no {name}")

    @property
    def behind(self) -> Path:
        """Of a disk with something behind it: that."""
        return Path(f"/proc/{self.pid}/root{self.data}.behind")

    def check(self, config: Path) -> None:
        """Have every blob hashed and every link read."""
        verify = [sys.executable, "-m", "mitm_cache", "--config", str(config), "verify"]
        found = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", *verify], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stdout + found.stderr

    def cut_power(self, image: Path) -> None:
        """Keep what a disk would hold if its machine stopped at this instant: what the kernel has written to it."""
        crew = [self.popen.pid, *self.workers]
        for pid in crew:
            os.kill(pid, signal.SIGSTOP)
        try:
            subprocess.run(["cp", "--sparse=always", self.behind / "disk", image], check=True)
        finally:
            for pid in crew:
                os.kill(pid, signal.SIGCONT)


class Disk(NamedTuple):
    """How a disk is made (`$1` is what it is made of, `$2` where it is mounted), and what of."""

    script: str
    of: int | Path


def memory(size: int = DISK) -> Disk:
    """Bytes of memory."""
    return Disk('mount -t tmpfs -o "size=$1,mode=0700" tmpfs "$2"', size)


def backed(size: int = DISK, *, journal: bool = False) -> Disk:
    """An ext4 that takes itself for larger than these bytes: what the kernel took it cannot always write back."""
    options = "" if journal else "-O ^has_journal"
    make = f"""
mkdir "$2.behind" && mount -t tmpfs -o "size=$1" tmpfs "$2.behind" && truncate -s 256M "$2.behind/disk" &&
mkfs.ext4 -q {options} "$2.behind/disk" && {_MOUNT.format('"$2.behind/disk"')} && rmdir "$2/lost+found"
"""
    return Disk(make, size)


def kept(image: Path) -> Disk:
    """What `cut_power` has kept, in the next start of the machine."""
    return Disk(_MOUNT.format('"$1"'), image)


_MOUNT = 'mount -o loop,errors=continue {} "$2" && chmod 0700 "$2"'


@contextmanager
def on_disk(tmp_path: Path, upstream: LyingUpstream, *, disk: Disk | None = None, more: str = "") -> Iterator[OnDisk]:
    """The product with its data on a disk that ends with it, `DISK` bytes of memory unless another is given."""
    made = disk or memory()
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    config = tmp_path / "config.toml"
    text = settings(data, upstream, listen=(*LISTENERS, "admin"), more=f'[ca]\ndir = "{tmp_path / "ca"}"\n{more}')
    config.write_text(text)
    script = f'{made.script.strip()} && shift 2 && exec "$@"'
    serve = [sys.executable, "-m", "mitm_cache", "--config", str(config), "serve"]
    popen = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", str(made.of), str(data), *serve],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    served = OnDisk(popen, data, tmp_path / "ca" / "ca.crt", upstream.registry.name)
    served.start_reading()
    try:
        yield served
    finally:
        served.stop()
