"""What commands on the data directory say where they may not, or are interrupted: words, and never a traceback."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, generate
from tests.needs import needs_tool
from tests.stored import Stored

IMAGE = generate(sizes=[KIB], platforms=["linux/amd64"], seed="refused")
NAME = "quay.io/team/app:1"
# Root may read everything, unless it has given that up.
POWERLESS = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with Stored(tmp_path / "data") as stored:
        stored.put("team/app", "1", IMAGE)
    return tmp_path / "data"


def run(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [*POWERLESS, sys.executable, "-m", "mitm_cache", "--config", os.devnull, *arguments]
    environ = {**os.environ, "MITM_CACHE_DATA_DIR": str(data)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@needs_tool("setpriv", package="util-linux")
@pytest.mark.parametrize(
    "command",
    ["ls", f"rm {NAME}", f"rm --dry-run {NAME}", "prune --unused", f"pin {NAME}", f"unpin {NAME}", "verify",
     "verify --repair", "export --all -o x.tar"],
)  # fmt: skip
def test_a_data_directory_that_may_not_be_read(data: Path, command: str) -> None:
    """As it is for everybody but its owner and root: it is named, and who may."""
    data.chmod(0)
    try:
        result = run(data, *command.split())
    finally:
        data.chmod(0o700)
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert f"{data}" in line
    assert "cannot be read: Permission denied" in line


@needs_tool("setpriv", package="util-linux")
def test_the_owner_is_named(data: Path) -> None:
    """The cure is a line to paste."""
    data.chmod(0)
    try:
        result = run(data, "rm", NAME)
    finally:
        data.chmod(0o700)
    owner = data.owner()
    assert result.stderr == (
        f"Error: data_dir {data} cannot be read: Permission denied; run this as its user, sudo -u '{owner}'\n"
    )


@needs_tool("setpriv", package="util-linux")
def test_a_folder_that_may_not_be_written_to(data: Path, tmp_path: Path) -> None:
    """An export says so before it has read anything."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        result = run(data, "export", NAME, "-o", str(closed / "x.tar"))
    finally:
        closed.chmod(0o700)
    assert (result.returncode, result.stderr) == (
        1, f"Error: {closed}/x.tar cannot be written: Permission denied\n",
    )  # fmt: skip


def test_ctrl_c(data: Path, tmp_path: Path) -> None:
    """An export that is interrupted leaves nothing behind, and its exit status says so."""
    layer = json.loads(IMAGE.platforms["linux/amd64"].body)["layers"][0]["digest"].removeprefix("sha256:")
    path = data / "blobs" / "sha256" / layer[:2] / layer
    path.unlink()
    os.mkfifo(path)
    target = tmp_path / "x.tar"
    command = [sys.executable, "-m", "mitm_cache", "--config", os.devnull, "--data-dir", str(data)]
    with subprocess.Popen(
        [*command, "export", NAME, "-o", str(target)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        with path.open("wb"):  # it waits for a reader: the export has come to the layer
            assert list(tmp_path.glob(".x.tar.*"))
            process.send_signal(signal.SIGINT)
        # A signal that arrives just before the read does not interrupt it: its end does then.
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"Interrupted.\n")
    assert [*tmp_path.glob(".x.tar.*"), *tmp_path.glob("x.tar")] == []
