"""dockerd with folders and a socket of its own, driven by the docker command: its own pulls, and BuildKit's."""

import json
import re
import shutil
from pathlib import Path

from tests.lab.clients import Arrived, docker_login
from tests.lab.host import Host, Ran
from tests.lab.process import LabError, Process

_NO_NETWORK = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none")


# Debian's command line, whichever others are on PATH: one of another version may ask for a plugin of its own to build.
BUILDKIT_COMMAND = "/usr/bin/docker"


class Docker:
    """One dockerd, started by the first pull. It reads its trust when it starts."""

    def __init__(
        self, host: Host, folder: Path, *, mirrors: tuple[str, ...] = (), insecure: tuple[str, ...] = ()
    ) -> None:
        self._host, self._folder = host, folder
        self._config = {"registry-mirrors": list(mirrors), "insecure-registries": list(insecure)}
        self._daemon: Process | None = None
        self._login_kept = False
        self.wipe()

    def _docker(self, *arguments: str, command: str = "docker", text: str = "", **env: str) -> Ran:
        own = {"DOCKER_CONFIG": str(self._folder / "cli"), **env}
        whole = (command, "-H", f"unix://{self._folder}/socket", *arguments)
        return self._host.run(*whole, env=own, text=text, timeout=300)

    def _ready(self, reference: str, creds: str) -> None:
        """Start dockerd if it does not run, and leave a login as `docker login` does, unless that was used itself."""
        if self._daemon is None:
            self._start()
        if not self._login_kept:
            docker_login(self._folder / "cli", reference, creds)

    def login(self, registry: str, creds: str) -> None:
        """`docker login`: dockerd tries the credential. Raises LabError where the registry does not take it."""
        self._ready(registry, "")
        self._login_kept = True
        user, _, password = creds.partition(":")
        flags = ("--username", user, "--password-stdin")
        self._docker("login", *flags, registry, text=password)

    def logout(self, registry: str) -> None:
        self._docker("logout", registry)

    def remove(self, reference: str) -> None:
        """Forget an image and its layers, and no login."""
        self._docker("image", "rm", "--force", reference)

    def _start(self) -> None:
        (self._folder / "daemon.json").write_text(json.dumps(self._config))
        self._daemon = self._host.start(
            "dockerd",
            *("dockerd", "-H", f"unix://{self._folder}/socket", "--config-file", str(self._folder / "daemon.json")),
            *("--data-root", str(self._folder / "data"), "--exec-root", str(self._folder / "exec")),
            *("-p", str(self._folder / "pid"), "--userland-proxy=false", *_NO_NETWORK),
        )
        ping = ("curl", "-sf", "--unix-socket", f"{self._folder}/socket", "http://docker/_ping")
        self._daemon.wait_until(lambda: self._host.attempt(*ping).returncode == 0, "dockerd's answer")

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        self._ready(reference, creds)
        self._docker("pull", "--quiet", *(["--platform", platform] if platform else []), reference)
        (seen,) = json.loads(self._docker("image", "inspect", reference).out)
        digests = {one.rpartition("@")[2] for one in seen["RepoDigests"]}
        assert len(digests) == 1, f"{reference} has {digests}"
        return Arrived(digests.pop(), seen["Id"])

    @property
    def socket(self) -> Path:
        """Where its API answers."""
        return self._folder / "socket"

    def build(self, reference: str, content: bytes, *, buildkit: bool = False) -> str:
        """`docker build` of an image with one file; the image's id."""
        self._ready(reference, "")
        context = self._folder / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text("FROM scratch\nCOPY content /\n")
        (context / "content").write_bytes(content)
        way = "1" if buildkit else "0"
        self._docker("build", "-t", reference, str(context), command=BUILDKIT_COMMAND, DOCKER_BUILDKIT=way)
        return self._docker("image", "inspect", "--format={{.Id}}", reference).out.strip()

    def push_built(self, reference: str) -> None:
        """`docker push` of what was built under this name."""
        self._docker("push", "--quiet", reference)

    def push(self, reference: str, target: str, *, creds: str = "") -> None:
        """Push an image that it has under another name, with the login of its pull unless another is given."""
        if creds:
            self._ready(target, creds)
        self._docker("tag", reference, target)
        self._docker("push", "--quiet", target)

    def load(self, path: Path) -> None:
        """`docker load` of an archive."""
        self._ready("", "")
        self._docker("load", "--quiet", "--input", str(path))

    def save(self, reference: str, path: Path) -> None:
        """`docker save` of a pulled image."""
        self._docker("save", "--output", str(path), reference)

    def run(self, reference: str) -> str:
        """What a container of the image prints."""
        return self._docker("run", "--rm", "--network", "none", reference).out

    def said(self) -> str:
        """dockerd's own log."""
        return self._daemon.said() if self._daemon else ""

    def wipe(self) -> None:
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None
        self._login_kept = False
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)


class BuildKit(Docker):
    """The BuildKit inside dockerd, which resolves and pulls by itself: a build from the image, of one more file."""

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        self._ready(reference, creds)
        context = self._folder / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(f"FROM {reference}\nCOPY Dockerfile /\n")
        flags = ["--pull", "--no-cache", "--progress=plain", *([f"--platform={platform}"] if platform else [])]
        done = self._docker("build", *flags, str(context), command=BUILDKIT_COMMAND, DOCKER_BUILDKIT="1")
        found = re.search(re.escape(reference) + "@(sha256:[0-9a-f]{64})", done.err)
        if found is None:
            raise LabError(f"BuildKit does not say what it pulled\n{done.err}")
        return Arrived(found[1])
