"""Archives by pipes: `export … -o - | ssh far mitm-cache import -`, and what comes of one that breaks."""

import os
import pty
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, MIB, generate
from tests.exchange.making import (
    Files,
    blob,
    cached,
    contents,
    docker_archive,
    done,
    layout,
    links,
    referrer,
    refused,
    write_folder,
    write_tar,
)

IMAGE = generate(sizes=[3 * KIB, 2 * MIB], seed="one")
OTHER = generate(sizes=[3 * KIB], platforms=["linux/amd64"], seed="other")
NAME, OTHER_NAME = "quay.io/team/app:1", "ghcr.io/team/other:2"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A cache with two images, and a signature of one of them."""
    signature, files = referrer(IMAGE.index.digest, len(IMAGE.index.body))
    made = layout({NAME: IMAGE, OTHER_NAME: OTHER}, referring=(signature,)) | files
    done(tmp_path / "data", "import", write_folder(tmp_path / "in", made))
    return tmp_path / "data"


def command(data: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "mitm_cache", "--data-dir", str(data), *arguments]


def spool(data: Path) -> list[str]:
    return [path.name for path in (data / "spool").iterdir()]


def test_from_one_cache_to_another(tmp_path: Path, data: Path) -> None:
    """Both ends go well, all arrives, and on the way there is nothing but the archive."""
    far = tmp_path / "far"
    writing = subprocess.Popen(
        command(data, "export", "--all", "-o", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    reading = subprocess.run(command(far, "import", "-"), stdin=writing.stdout, capture_output=True, check=True)
    assert writing.communicate()[1].endswith(b" MiB\n")
    assert writing.returncode == 0
    assert reading.stdout.decode().splitlines()[0] == f"{OTHER_NAME}  {OTHER.index.digest}"
    assert (cached(far), links(far), spool(far)) == (cached(data), links(data), [])


def test_a_pipe_that_does_not_block(tmp_path: Path, data: Path) -> None:
    """As some programs leave theirs: what has not come yet is waited for."""
    archive = done(data, "export", OTHER_NAME, "-o", "-").stdout_bytes
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    process = subprocess.Popen(command(tmp_path / "far", "import", "-"), stdin=reading, stderr=subprocess.PIPE)
    with open(writing, "wb") as pipe:
        while not os.get_blocking(reading) and process.poll() is None:
            os.sched_yield()
        os.close(reading)
        pipe.write(archive)
    assert (process.communicate()[1], process.returncode) == (b"", 0)


def test_an_archive_of_others(tmp_path: Path, data: Path) -> None:
    """The order does not matter: the documents may come last, and what they speak of is here by then."""
    files = layout({NAME: IMAGE})
    backwards: Files = {name: files[name] for name in reversed(files)}
    done(tmp_path / "far", "import", "-", stdin=write_tar(tmp_path / "a.tar", backwards).read_bytes())
    assert cached(tmp_path / "far") == contents(IMAGE)


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_of_docker_save(tmp_path: Path, packed: bool) -> None:
    """Layers that are not named by their digests are kept aside until it is known what they are."""
    archive = write_tar(tmp_path / "a.tar", docker_archive(IMAGE, [NAME], packed=packed))
    done(tmp_path / "one", "import", archive)
    done(tmp_path / "two", "import", "-", stdin=archive.read_bytes())
    assert cached(tmp_path / "one") == cached(tmp_path / "two")
    assert links(tmp_path / "one") == links(tmp_path / "two")
    assert spool(tmp_path / "two") == []


def test_folders_of_skopeo(tmp_path: Path, data: Path) -> None:
    """A tree of dir: in an archive, as --format dir writes it."""
    archive = done(data, "export", "--all", "--format", "dir", "-o", "-").stdout_bytes
    done(tmp_path / "far", "import", "-", stdin=archive)
    assert cached(tmp_path / "far") == cached(data)
    assert links(tmp_path / "far") == links(data)


def test_a_delta_beside_a_file(tmp_path: Path, data: Path) -> None:
    """One archive may come through the pipe, and others by their names."""
    done(data, "export", OTHER_NAME, "-o", tmp_path / "first.tar")
    delta = done(data, "export", "--all", "--since", tmp_path / "first.tar", "-o", "-").stdout_bytes
    done(tmp_path / "far", "import", "-", tmp_path / "first.tar", stdin=delta)
    assert links(tmp_path / "far") == links(data)
    assert "- stands for one archive" in refused(tmp_path / "far", "import", "-", "-", stdin=delta)


def test_what_is_here_is_not_written_again(tmp_path: Path, data: Path) -> None:
    """It is read and proven all the same."""
    archive = done(data, "export", "--all", "-o", "-").stdout_bytes
    done(tmp_path / "far", "import", "-", stdin=archive)
    assert '"blobs": 0' in done(tmp_path / "far", "import", "-", "--json", stdin=archive).stdout


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.99])
def test_one_that_is_cut_off(tmp_path: Path, data: Path, part: float) -> None:
    """Nothing of it is to be seen, nothing lies about, and the next one has the rest to write."""
    archive = done(data, "export", "--all", "-o", "-").stdout_bytes
    far = tmp_path / "far"
    assert "the archive is cut off" in refused(far, "import", "-", stdin=archive[: int(len(archive) * part)])
    assert (links(far), spool(far)) == (set(), [])
    before = cached(far)
    assert before.items() <= cached(data).items()
    said = done(far, "import", "-", "--json", stdin=archive).stdout
    assert f'"blobs": {len(cached(data)) - len(before)}' in said
    assert links(far) == links(data)


def test_an_end_in_the_middle(tmp_path: Path, data: Path) -> None:
    """Killed while it reads: what was kept aside is gone with the process, and another one goes on."""
    layer = max(contents(IMAGE).values(), key=len)
    archive = write_tar(tmp_path / "a.tar", {"aside": bytes(MIB), **dict([blob(layer)]), **layout({NAME: IMAGE})})
    content = archive.read_bytes()
    process = subprocess.Popen(
        command(tmp_path / "far", "import", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(content[: 2 * MIB])
    process.stdin.flush()  # all but a pipe's capacity has been read by now
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    left = {name.rpartition(".")[2] for name in spool(tmp_path / "far")}
    assert left <= {"part", "json"}
    assert links(tmp_path / "far") == set()
    write_tar(archive, layout({NAME: IMAGE}))
    done(tmp_path / "far", "import", "-", stdin=archive.read_bytes())
    assert (cached(tmp_path / "far"), spool(tmp_path / "far")) == (contents(IMAGE), [])


@pytest.mark.parametrize("form", ["layout", "blobs first", "docker"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """cache.min_free stays free of what comes, and of what is kept aside."""
    monkeypatch.setenv("MITM_CACHE_CACHE_MIN_FREE", "100%")
    files = docker_archive(IMAGE, [NAME]) if form == "docker" else layout({NAME: IMAGE})
    if form == "blobs first":
        files = {name: files[name] for name in sorted(files)}
    archive = write_tar(tmp_path / "a.tar", files).read_bytes()
    assert "the disk is full" in refused(tmp_path / "far", "import", "-", stdin=archive)
    assert (cached(tmp_path / "far"), spool(tmp_path / "far")) == ({}, [])


@pytest.mark.parametrize("name", [f"blobs/sha256/{'0' * 64}", "aside"])
def test_what_is_said_to_be_huge(data: Path, name: str) -> None:
    """It empties no cache: an archive in a pipe may say that it has any size."""
    path, content = blob(b"what somebody has pulled long ago")
    old = data / "blobs" / "sha256" / path[-64:-62] / path[-64:]
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(content)
    os.utime(old, (0, 0))
    member = tarfile.TarInfo(name)
    member.size = 1 << 60
    assert "the disk is full" in refused(data, "import", "-", stdin=member.tobuf(tarfile.PAX_FORMAT) + bytes(4096))
    assert old.read_bytes() == content


def test_nobody_reads_on(data: Path) -> None:
    """Who writes into a pipe that is closed is told so in a line."""
    process = subprocess.Popen(
        command(data, "export", "--all", "-o", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b"Error: the archive cannot be written: Broken pipe\n"
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize(("arguments", "words"), [(("export", "--all", "-o", "-"), "an archive is nothing for a"),
                                                  (("import", "-"), "no archive comes from a terminal")])  # fmt: skip
@pytest.mark.parametrize("closed", [False, True])
def test_a_terminal(data: Path, arguments: tuple[str, ...], words: str, closed: bool) -> None:
    """Nobody is shown an archive, or waited for to type one; nor where the stream is closed altogether."""
    screen, terminal = pty.openpty()
    line = f"exec {subprocess.list2cmdline(command(data, *arguments))} {'<&- >&-' if closed else ''}"
    try:
        ran = subprocess.run(line, shell=True, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, check=False)  # noqa: S602 - a shell closes them
    finally:
        os.close(screen)
        os.close(terminal)
    assert ran.returncode == 2
    assert words in ran.stderr.decode()
    assert b"Traceback" not in ran.stderr


def test_output_that_is_closed(data: Path) -> None:
    """Commands that nobody listens to do their work without a traceback."""
    line = f"exec {subprocess.list2cmdline(command(data, 'ls'))} >&- 2>&-"
    assert subprocess.run(line, shell=True, check=False).returncode == 0  # noqa: S602 - a shell closes them
