"""dockerd with folders and a socket of its own, driven by the docker command."""

import base64
import json
import shutil
from pathlib import Path

from tests.lab.clients import Arrived
from tests.lab.host import Host
from tests.lab.process import Process

_NO_NETWORK = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none")


class Docker:
    """One dockerd, started by the first pull. It reads its trust when it starts."""

    def __init__(
        self, host: Host, folder: Path, *, mirrors: tuple[str, ...] = (), insecure: tuple[str, ...] = ()
    ) -> None:
        self._host, self._folder = host, folder
        self._config = {"registry-mirrors": list(mirrors), "insecure-registries": list(insecure)}
        self._daemon: Process | None = None
        self.wipe()

    def _docker(self, *arguments: str, **env: str) -> str:
        own = {"DOCKER_CONFIG": str(self._folder / "cli"), **env}
        return self._host.run("docker", "-H", f"unix://{self._folder}/socket", *arguments, env=own).out

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
        if self._daemon is None:
            self._start()
        registry = reference.partition("/")[0]
        if registry == "docker.io":
            registry = "https://index.docker.io/v1/"  # what Docker calls it since its first version
        auths = {registry: {"auth": base64.b64encode(creds.encode()).decode()}} if creds else {}
        (self._folder / "cli").mkdir(exist_ok=True)
        (self._folder / "cli" / "config.json").write_text(json.dumps({"auths": auths}))
        self._docker("pull", "--quiet", *(["--platform", platform] if platform else []), reference)
        (seen,) = json.loads(self._docker("image", "inspect", reference))
        digests = {one.rpartition("@")[2] for one in seen["RepoDigests"]}
        assert len(digests) == 1, f"{reference} has {digests}"
        return Arrived(digests.pop(), seen["Id"])

    def run(self, reference: str) -> str:
        """What a container of the image prints."""
        return self._docker("run", "--rm", "--network", "none", reference)

    def said(self) -> str:
        """dockerd's own log."""
        return self._daemon.said() if self._daemon else ""

    def wipe(self) -> None:
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
