"""The data directory."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mitm_cache.cache.layout import FORMAT, open_layout
from mitm_cache.errors import ConfigError, StoreError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "data"


def test_new(root: Path) -> None:
    """Everything that is missing is made, for the cache's own user alone."""
    layout = open_layout(root)
    for folder in (root, layout.blobs, layout.spool, layout.links, layout.index, layout.run):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert root in {folder, folder.parent}
    assert sorted(path.name for path in root.iterdir()) == ["FORMAT", "blobs", "index", "links", "run", "spool"]
    assert json.loads((root / "FORMAT").read_text()) == {"format": FORMAT, "identity": layout.identity}


def test_again(root: Path) -> None:
    """The identity stays, and what was lost is made again."""
    layout = open_layout(root)
    layout.run.rmdir()
    assert open_layout(root) == layout
    assert layout.run.is_dir()


def test_identities_differ(tmp_path: Path) -> None:
    """Two caches can be told apart."""
    assert open_layout(tmp_path / "a").identity != open_layout(tmp_path / "b").identity


@pytest.mark.parametrize("name", ["ca", "lost+found", "FORMAT.1a2b3c4d"])
def test_welcome(root: Path, name: str) -> None:
    """A CA made beforehand, a file system's own folder and an unfinished start are no foreign content."""
    (root / name).mkdir(parents=True)
    assert open_layout(root).identity


def test_foreign(root: Path) -> None:
    """A directory that holds something else is not touched, and the error names what it holds."""
    root.mkdir(parents=True)
    (root / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds 'thesis\.tex' and no FORMAT file") as caught:
        open_layout(root)
    assert str(root) in caught.value.message
    assert [path.name for path in root.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"format": 2, "identity": "x"}', f"says format 2; .* knows format {FORMAT}", id="newer"),
        pytest.param(b'{"format": 0, "identity": "x"}', "says format 0", id="older"),
        pytest.param(b"", "is damaged", id="empty"),
        pytest.param(b"{}", "is damaged", id="no fields"),
        pytest.param(b"[]", "is damaged", id="no object"),
        pytest.param(b'{"format": Infinity, "identity": "x"}', "is damaged", id="no number"),
        pytest.param(b"\xff\xfe\x00", "is damaged", id="no text"),
    ],
)
def test_format(root: Path, content: bytes, message: str) -> None:
    """A format that is not this version's stops the start, naming the file, and nothing is made."""
    root.mkdir(parents=True)
    (root / "FORMAT").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        open_layout(root)
    assert str(root / "FORMAT") in caught.value.message
    assert [path.name for path in root.iterdir()] == ["FORMAT"]


def test_a_file(tmp_path: Path) -> None:
    """Where no directory can be, the error names the place."""
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot be used") as caught:
            open_layout(root)
        assert str(root) in caught.value.message


RACE = """
import multiprocessing, sys
from pathlib import Path
from mitm_cache.cache.layout import open_layout

context = multiprocessing.get_context("fork")
barrier, results = context.Barrier(3), context.SimpleQueue()

def start():
    for number in range(300):
        barrier.wait()
        try:
            results.put((number, open_layout(Path(sys.argv[1], str(number))).identity))
        except Exception as error:
            results.put((number, repr(error)))

processes = [context.Process(target=start) for _ in range(3)]
for process in processes:
    process.start()
for _ in range(300 * 3):
    print(*results.get())
for process in processes:
    process.join()
"""


def test_processes_at_once(tmp_path: Path) -> None:
    """Processes that start together on a new directory agree on one identity, and none of them takes it for foreign."""
    done = subprocess.run([sys.executable, "-c", RACE, str(tmp_path)], capture_output=True, text=True, check=True)
    said = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
    assert len(said) == 900
    assert {(number, open_layout(tmp_path / number).identity) for number, _ in said} == set(said)
    assert not list(tmp_path.glob("*/FORMAT.*"))


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o701, 0o704])
def test_open_to_everybody(root: Path, mode: int) -> None:
    """A directory that others may look into is closed when it is taken into use, and refused from then on."""
    root.mkdir(parents=True)
    root.chmod(mode)
    open_layout(root)
    assert stat.S_IMODE(root.stat().st_mode) == mode & 0o770
    root.chmod(mode)
    with pytest.raises(ConfigError, match=rf"open to everybody \(mode {mode:04o}\).*chmod o= {root}"):
        open_layout(root)
