"""Clients without a daemon: skopeo and podman. Each starts with nothing and keeps all in its own folder."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.lab.host import Host


@dataclass(frozen=True)
class Arrived:
    """What a client has after a pull, as far as it tells: the reference's digest and the config's."""

    digest: str
    config: str = ""


class Client(Protocol):
    """A real client on one host."""

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        """Pull a full reference (`quay.io/lab/tiny:1`). Raises LabError with the client's own output."""

    def wipe(self) -> None:
        """Forget every image and blob, so that the next pull is cold."""


def platform_flags(platform: str, system: str, architecture: str, variant: str) -> list[str]:
    """`linux/arm/v7` as the flags of a client, in this order."""
    parts = zip((system, architecture, variant), platform.split("/") if platform else (), strict=False)
    return [f"{flag}={value}" for flag, value in parts]


class Skopeo:
    """Copies to a `dir:`; every platform unless one is asked for. skopeo proves each digest itself."""

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder = host, folder

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        self.wipe()
        flags = ["--preserve-digests", *([f"--src-creds={creds}"] if creds else [])]
        which = platform_flags(platform, "--override-os", "--override-arch", "--override-variant")
        # Without a HOME of its own it would remember blobs between pulls.
        env = {"HOME": str(self._folder), "TMPDIR": str(self._folder)}
        source, target = f"docker://{reference}", f"dir:{self._folder / 'copy'}"
        # --override-* are flags of skopeo itself, --all of its copy.
        command = ["skopeo", *which, "copy", "--quiet", *flags, *([] if platform else ["--all"]), source, target]
        self._host.run(*command, env=env)
        manifest = (self._folder / "copy" / "manifest.json").read_bytes()
        config = json.loads(manifest).get("config", {}).get("digest", "")
        return Arrived(f"sha256:{hashlib.sha256(manifest).hexdigest()}", config)

    def wipe(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)


class Podman:
    """podman with a storage of its own."""

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder = host, folder
        self.wipe()

    def _podman(self, *arguments: str) -> str:
        own = ["--root", str(self._folder / "root"), "--runroot", str(self._folder / "run"), "--storage-driver", "vfs"]
        env = {"HOME": str(self._folder), "TMPDIR": str(self._folder)}
        quiet = ["--events-backend", "none", "--cgroup-manager", "cgroupfs"]
        return self._host.run("podman", *own, *quiet, *arguments, env=env).out

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        flags = [*([f"--creds={creds}"] if creds else []), *([f"--platform={platform}"] if platform else [])]
        self._podman("pull", "--quiet", *flags, reference)
        (seen,) = json.loads(self._podman("image", "inspect", reference))
        return Arrived(seen["Digest"], f"sha256:{seen['Id']}")

    def wipe(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
