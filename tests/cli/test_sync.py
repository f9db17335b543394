"""What `mitm-cache pull` and `sync` say, and refuse to do."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mitm_cache.cli.progress import line
from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.filling.report import Failure, Filled, Progress
from tests.fakes.registry import LyingUpstream
from tests.filling.test_run import HOST, NAME, Cache
from tests.needs import needs_root

IMAGE = generate(sizes=[30 * KIB], platforms=["linux/amd64"], seed="said")


@pytest.fixture(scope="session")
def image() -> Image:
    return IMAGE


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Cache:
    return Cache(tmp_path, upstream)


def test_the_report(cache: Cache) -> None:
    """What is new, what that cost, and nothing on standard error of a run that is quick."""
    result = cache.run("pull", f"{HOST}/{NAME}:1")
    assert result.exit_code == 0
    assert re.search(
        rf"^new      {HOST}/{NAME}:1  {IMAGE.index.digest[:19]}  [0-9.]+ KiB$", result.stdout, re.MULTILINE
    )
    assert "1 image: 1 new, 0 updated, 0 unchanged; 4 contents, " in result.stdout
    assert result.stderr == ""
    dry = cache.run("pull", "--dry-run", f"{HOST}/{NAME}:1")
    assert "0 contents, 0 B, would be fetched; 4 are here; 0 failed" in dry.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pull", "Not/An/Image"), "IMAGE: 'Not/An/Image' is not the name of an image"),
        (("pull", "--platform", "arm", "alpine"), "--platform: 'arm' is not one such as linux/amd64"),
        (("pull",), "Missing argument 'IMAGE…'"),
        (("sync",), "Missing option '-f'"),
        (("sync", "-f", "/nowhere"), "/nowhere cannot be read: No such file or directory"),
        (("pull", "--parallel", "0", "alpine"), "0 is not in the range"),
    ],
)
def test_wrong(cache: Cache, arguments: tuple[str, ...], words: str) -> None:
    """What is wrong is said in words, before anything is asked."""
    result = cache.run(*arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr


def test_a_registry_that_is_not_served(cache: Cache) -> None:
    """Nobody could pull it from here: a warning says what to do."""
    result = cache.run("pull", "localhost:1/team/app:1", "--dry-run")
    assert result.exit_code == 1
    assert 'localhost:1 is no registry that this cache serves; add [registries."localhost:1"]' in result.stderr


@needs_root()
def test_another_user(cache: Cache) -> None:
    """Files that the service could not read are not written."""
    cache.data.mkdir()
    os.chown(cache.data, 65534, 65534)
    for command, *rest in (["pull", f"{HOST}/{NAME}:1"], ["sync", "-f", os.devnull]):
        result = cache.run(command, *rest)
        assert result.exit_code == 1
        words = f"{command} writes files that the service must own: run it as its user, sudo -u 'nobody'"
        assert words in result.stderr
    assert list(cache.data.iterdir()) == []


def test_the_line_of_progress() -> None:
    """Counts, the rate, and what is left as far as it is known."""
    progress = Progress(began=0.0, images=3, expected=4 << 20, arrived=1 << 20)
    progress.filled.append(Filled("a", "sha256:0", "new"))
    progress.failures += [Failure("b", "away"), Failure("b", "away too")]
    assert progress.done == 2
    assert re.fullmatch(
        r"2 of 3 images, 1\.0 MiB of 4\.0 MiB, [0-9.]+ [KM]?i?B/s, [0-9]+ s left, 2 failed", line(progress)
    )
    assert "time left unknown" in line(Progress(images=1))


def test_on_a_terminal(cache: Cache, upstream: LyingUpstream) -> None:
    """A bar shows images, bytes and the time that is left, and leaves only the report behind."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(KIB))
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "mitm_cache", "--config", str(cache.file), "pull", f"{HOST}/{NAME}:1"]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environ) as process:
        os.close(terminal)
        shown = b""
        # The bar is drawn again and again while the gate is shut.
        while not re.search(rb"0 of 1 images [^\r]*[0-9.]+/[0-9.]+ kB[^\r]*:[0-9-]{2}", shown):
            shown += os.read(screen, 4096)
        gate.release()
        try:
            while piece := os.read(screen, 4096):
                shown += piece
        except OSError:
            pass  # Linux says so where nobody has the other end open any more
        assert process.stdout is not None
        report = process.stdout.read()
    os.close(screen)
    assert process.returncode == 0
    assert shown.rstrip().endswith(b"\x1b[2K")  # the line is wiped
    assert report.startswith(f"new      {HOST}/{NAME}:1  ".encode())
    assert b"\x1b" not in report
