"""`mitm-cache verify`, over a data directory that real pulls have filled."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mitm_cache.cli import main
from mitm_cache.demo.image import KIB, Image, generate
from tests.fakes.registry import LyingUpstream
from tests.serving import in_thread

NAME = "team/app"
IMAGE = generate(sizes=[100 * KIB, 200 * KIB], platforms=["linux/amd64"], seed="verify")


@pytest.fixture(scope="session")
def image() -> Image:
    return IMAGE


@pytest.fixture
def data(tmp_path: Path, upstream: LyingUpstream) -> Path:
    with in_thread(tmp_path / "data", upstream) as cache:
        cache.puller().pull(NAME, "1")
    return tmp_path / "data"


def verify(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--data-dir", str(data), "verify", *arguments])


def blobs(data: Path) -> list[Path]:
    return sorted((data / "blobs").glob("*/*/*"), key=lambda path: path.stat().st_size)


def test_all_sound(data: Path) -> None:
    """Nothing is wrong, nothing is changed, and the status says so."""
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    result = verify(data)
    assert result.exit_code == 0
    assert f"{len(blobs(data))} blobs" in result.stdout
    assert "all sound" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_damage_is_found_and_repaired(data: Path, upstream: LyingUpstream) -> None:
    """A bit, a cut, a broken link, a foreign file: each is told; --repair puts aside and drops."""
    *_, cut, flipped = blobs(data)
    os.truncate(cut, 1000)
    content = flipped.read_bytes()
    flipped.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    (cut.parent / "README").write_text("x")
    link = next(path for path in (data / "links").rglob("_digests/*"))
    link.write_text("{nonsense")

    document = json.loads(verify(data, "--json").stdout)
    assert not document["sound"]
    assert sorted(flaw["kind"] for flaw in document["flaws"]) == ["broken link", "damaged", "damaged", "foreign"]
    assert cut.exists()
    assert verify(data).exit_code == 1

    repaired = verify(data, "--repair")
    assert repaired.exit_code == 1  # the foreign file is nobody's to remove
    assert len(list((data / "quarantine").iterdir())) == 2
    assert not cut.exists()
    assert not link.exists()
    (cut.parent / "README").unlink()
    assert verify(data).exit_code == 0
    with in_thread(data, upstream) as cache:
        cache.puller().pull(NAME, "1")
    assert verify(data).exit_code == 0
    assert flipped.read_bytes() == content


def test_while_it_serves(data: Path, upstream: LyingUpstream) -> None:
    """The service goes on; what was repaired under it is fetched by the next pull."""
    with in_thread(data, upstream) as cache:
        damaged = blobs(data)[-1]
        os.truncate(damaged, 1000)
        assert verify(data, "--repair").exit_code == 0
        cache.puller().pull(NAME, "1")
        assert damaged.stat().st_size > 1000


def test_a_size_that_is_not_the_blobs(data: Path) -> None:
    """A link that says another size than its blob has is dropped."""
    largest = blobs(data)[-1]
    link = next(path for path in (data / "links").rglob(f"_digests/sha256-{largest.name}"))
    link.write_text(json.dumps(json.loads(link.read_text()) | {"size": 7}))
    assert "wrong size" in verify(data).stdout
    assert verify(data, "--repair").exit_code == 0
    assert not link.exists()
    assert verify(data).exit_code == 0


def test_nothing_there(tmp_path: Path) -> None:
    """A wrong directory is told as such, and not made."""
    result = verify(tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "no data directory of mitm-cache" in result.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("what", ["blobs/sha256/00/" + "0" * 64, "links/registry.demo/team/app/_tags/1/odd"])
def test_what_cannot_be_read(data: Path, what: str) -> None:
    """It is told, and no repair: neither a traceback nor a status that says all is well."""
    path = data / what
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path)
    for arguments in ((), ("--repair",)):
        result = verify(data, *arguments)
        assert result.exit_code == 1
        assert result.stdout.splitlines()[0].split() == ["unreadable", str(path)]
        assert "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)


def test_a_folder_that_cannot_be_read(data: Path) -> None:
    """What is below it is not called sound."""
    for name in ("blobs", "links"):
        folder = data / name
        folder.rename(data / "away")
        folder.write_text("no folder")
        result = verify(data)
        assert (result.exit_code, "all sound" in result.stdout) == (1, False)
        folder.unlink()
        (data / "away").rename(folder)
    assert verify(data).exit_code == 0
