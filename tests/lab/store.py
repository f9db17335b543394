"""The S3 store behind the registries: SeaweedFS, on loopback of the internet's namespace."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from tests.lab.host import Host
from tests.lab.process import wait_until

ACCESS, SECRET, BUCKET = "labaccesskey", "labsecretkey", "registry"


def weed_binary() -> str | None:
    """The `weed` of the environment that runs the tests, or of PATH."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


class Store:
    """One S3 endpoint with one bucket, empty at the start."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # weed talks to itself by unix sockets in /tmp that are named after its ports: two labs must not share them.
        self._base = 12000 + os.getpid() % 1600 * 5
        self.port = self._base + 3

    def start(self) -> None:
        """Start the server; `ready` tells when it can be used."""
        folder = self._host.folder / "weed"
        folder.mkdir()
        keys = [{"accessKey": ACCESS, "secretKey": SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": [{"name": "lab", "credentials": keys, "actions": actions}]}))
        ports = {name: self._base + index for index, name in enumerate(("master", "volume", "filer", "s3"))}
        # It takes half a minute to end when asked; nothing in it is worth that.
        self._host.start(
            "weed",
            weed_binary() or "weed",
            *("-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-master.volumeSizeLimitMB=1024", "-volume.max=64", "-master.telemetry=false"),
            *("-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *(f"-{name}.port={port}" for name, port in ports.items()),
            end=signal.SIGKILL,
        )

    def _ask(self, *arguments: str) -> str:
        sign = ["--aws-sigv4", "aws:amz:us-east-1:s3", "-u", f"{ACCESS}:{SECRET}"]
        plain = ["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-m", "5"]
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *sign, *plain, *arguments]
        return self._host.attempt(*command).stdout

    def ready(self) -> None:
        """Wait until an object can be written and read: the port alone opens long before."""
        bucket = f"http://127.0.0.1:{self.port}/{BUCKET}"

        def works() -> bool:
            return (
                self._ask("-X", "PUT", bucket) in ("200", "409")
                and self._ask("-X", "PUT", "--data-binary", "x", f"{bucket}/probe") == "200"
                and self._ask(f"{bucket}/probe") == "200"
            )

        wait_until(works, "S3 store", seconds=60, tick=0.1)

    def remove_sockets(self) -> None:
        """Take away the sockets that a killed weed leaves."""
        ports = range(self._base, self._base + 4)
        for port in (*ports, *(port + 10000 for port in ports)):
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)
