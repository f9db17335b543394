"""The image, built for real from a Debian that debootstrap makes, and containers of it: buildah and podman.

Nothing is pulled and nothing is kept: images, containers and volumes are in one folder.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.needs import find_tool

ROOT = Path(__file__).parents[2]
SUITE = "trixie"
INCLUDE = ("python3", "python3-venv", "ca-certificates", "systemd")
"""What the Containerfile asks of a base, and systemd, which the same files are booted with."""
BASE, IMAGE = "localhost/base", "localhost/mitm-cache"
TOOLS = {"debootstrap": "debootstrap", "buildah": "buildah", "podman": "podman", "runc": "runc", "conmon": "conmon"}

_PIP = ("cert", "constraint", "default-timeout", "extra-index-url", "find-links", "index-url", "no-index", "proxy")


class EngineError(Exception):
    """A command failed; the message holds what it said."""


def run(*command: str, timeout: float = 300, env: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed; what it printed. Raises EngineError."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, check=False)
    if done.returncode:
        raise EngineError(
            f"{' '.join(command)}\nexit status {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done.stdout.strip()


class Engine:
    """The image in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.storage = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]

    def buildah(self, *arguments: str, timeout: float = 300) -> str:
        return run("buildah", *self.storage, *arguments, timeout=timeout)

    def podman(self, *arguments: str) -> list[str]:
        """A command line of podman, which runs where there is neither systemd nor a cgroup to be had."""
        runtime = find_tool("runc")
        assert runtime is not None
        quiet = ["--tmpdir", str(self._folder / "tmp"), "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        return ["podman", *self.storage, *quiet, "--runtime", runtime, *arguments]

    def make_base(self) -> None:
        """A minimal Debian with Python."""
        container = self.buildah("from", "scratch")
        mounted = self.buildah("mount", container)
        minimal = ["--variant=minbase", f"--include={','.join(INCLUDE)}"]
        run("debootstrap", *minimal, SUITE, mounted, timeout=900)
        shutil.rmtree(Path(mounted) / "var/cache/apt/archives")
        self.buildah("umount", container)
        self.buildah("commit", "--quiet", "--rm", container, BASE)

    def build(self) -> None:
        """What `make image` does, with that base, and with the package index that pip uses on this machine."""
        how = ["--isolation", "chroot", "--network", "host", "--format", "docker", "--pull-never", *self._index()]
        what = ["--build-arg", f"BASE={BASE}", "--file", str(ROOT / "Containerfile"), "--tag", IMAGE, str(ROOT)]
        self.buildah("build", *how, *what, timeout=900)

    def _index(self) -> list[str]:
        """pip's settings as the secret that the Containerfile takes, and the files they name."""
        settings = {}
        listed = run(sys.executable, "-m", "pip", "config", "list").splitlines()
        for line in sorted(listed, reverse=True):  # what the environment says (":env:.cert") comes last and wins
            name, _, value = line.partition("=")
            settings[name.rpartition(".")[2]] = " ".join(str(ast.literal_eval(value)).split())
        kept = {name: value for name, value in settings.items() if name in _PIP}
        secret = self._folder / "pip.conf"
        secret.write_text("".join(f"{line}\n" for line in ("[global]", *(f"{k} = {v}" for k, v in kept.items()))))
        secret.chmod(0o600)
        words = {word.removeprefix("file://") for value in kept.values() for word in value.split()}
        local = sorted(word for word in words if word.startswith("/") and Path(word).exists())
        return ["--secret", f"id=pip.conf,src={secret}", *(part for path in local for part in _mount(path))]

    def unpack(self) -> Path:
        """The files of the image, a copy that may be changed."""
        return Path(self.buildah("mount", self.buildah("from", "--pull-never", IMAGE)))

    def close(self) -> None:
        """Take away containers that are left, and everything else."""
        subprocess.run(self.podman("rm", "--all", "--force", "--time", "5"), capture_output=True, check=False)
        subprocess.run(["buildah", *self.storage, "rm", "--all"], capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def _mount(path: str) -> Sequence[str]:
    # An index of files links to what lies beside it.
    whole = Path(path).parent if Path(path).name == "simple" else Path(path)
    return ("--volume", f"{whole}:{whole}:ro")
