"""containerd with folders and a socket of its own, driven by `ctr` or, as a kubelet does, through its CRI plugin."""

import json
import os
import shutil
from pathlib import Path

from tests.lab import cri
from tests.lab.clients import Arrived
from tests.lab.host import Host
from tests.lab.process import Process

# Another containerd than the machine's own, for the tests that start one here; its ctr is beside it.
CONTAINERD = os.environ.get("MITM_CACHE_TEST_CONTAINERD") or "containerd"
CTR = str(Path(CONTAINERD).with_name("ctr")) if "/" in CONTAINERD else "ctr"
# The transfer service, by which containerd 2.x pulls, unpacks for overlayfs only unless told.
UNPACK = """[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "native"
"""
_CONFIG = """
version = 2
root = "{folder}/data"
state = "{folder}/state"
disabled_plugins = [{unwanted}]
[grpc]
  address = "{folder}/socket"
[plugins."io.containerd.grpc.v1.cri"]
  disable_cgroup = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    disable_snapshot_annotations = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{hosts}"
{unpack}
"""
_UNWANTED = ("snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper", "snapshotter.v1.aufs")
_HOSTS = "/etc/containerd/certs.d"


class _Daemon:
    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder = host, folder
        self._daemon: Process | None = None
        self.wipe()

    def _ctr(self, *arguments: str) -> str:
        return self._host.run(CTR, "-a", f"{self._folder}/socket", *arguments, timeout=300).out

    def _ensure(self) -> None:
        if self._daemon is not None:
            return
        config = self._folder / "config.toml"
        unwanted = ", ".join(f'"io.containerd.{name}"' for name in _UNWANTED)
        config.write_text(_CONFIG.format(folder=self._folder, unwanted=unwanted, hosts=_HOSTS, unpack=UNPACK))
        self._launch(str(config))

    def _launch(self, config: str) -> None:
        self._daemon = self._host.start("containerd", CONTAINERD, "-c", config)
        ask = (CTR, "-a", f"{self._folder}/socket", "--connect-timeout", "1s", "version")
        self._daemon.wait_until(lambda: self._host.attempt(*ask).returncode == 0, "containerd's answer")

    def said(self) -> str:
        """containerd's own log."""
        return self._daemon.said() if self._daemon else ""

    def wipe(self) -> None:
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)


class Ctr(_Daemon):
    """`ctr images pull`."""

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        self._ensure()
        flags = [*(["--user", creds] if creds else []), *(["--platform", platform] if platform else [])]
        self._ctr("images", "pull", "--hosts-dir", _HOSTS, "--snapshotter", "native", *flags, reference)
        return self._arrived(reference)

    def _arrived(self, reference: str) -> Arrived:
        rows = (line.split() for line in self._ctr("images", "list").splitlines())
        digest = next(row[2] for row in rows if row[0] == reference)
        top = json.loads(self._ctr("content", "get", digest))
        return Arrived(digest, top.get("config", {}).get("digest", ""))

    def load(self, path: Path, reference: str, *flags: str) -> Arrived:
        """`ctr images import`; what it then has by a name."""
        self._ensure()
        self._ctr("images", "import", "--no-unpack", *flags, str(path))
        return self._arrived(reference)

    def push(self, reference: str, *flags: str, creds: str = "") -> None:
        """`ctr images push` of what it has by this name."""
        login = ["--user", creds] if creds else []
        self._ctr("images", "push", "--hosts-dir", _HOSTS, *flags, *login, reference)

    def save(self, path: Path, reference: str, *flags: str) -> None:
        """`ctr images export`."""
        self._ctr("images", "export", *flags, str(path), reference)


class Cri(_Daemon):
    """PullImage through the CRI socket; the node's platform only."""

    def pull(self, reference: str, *, creds: str = "", platform: str = "") -> Arrived:
        assert not platform, "a kubelet pulls for its own platform"
        self._ensure()
        socket = self._folder / "socket"
        config = cri.pull_image(self._host, socket, reference, creds)
        return Arrived(cri.image_digest(self._host, socket, config), config)
