"""The index: small values, several processes, and no pickle in either direction."""

import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import diskcache
import pytest

from mitm_cache.cache.entry import Origin
from mitm_cache.cache.index import Index, StrictDisk, Value
from mitm_cache.errors import StoreError


class Bomb:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))

    def __hash__(self) -> int:
        return 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def index(folder: Path) -> Iterator[Index]:
    index = Index(folder)
    yield index
    index.close()


@pytest.fixture
def fuse(tmp_path: Path) -> Path:
    """The file that appears when a planted pickle is run."""
    return tmp_path / "exploded"


@pytest.mark.parametrize("value", ["", "text ü\n", "x" * 30_000, b"", b"\0\xff", 0, -1, 2**63 - 1])
def test_values(index: Index, value: Value) -> None:
    """Text, bytes and numbers come back as they went in, type included."""
    index.put("key", value)
    found = index.get("key")
    assert (type(found), found) == (type(value), value)


def test_a_large_value(index: Index) -> None:
    """It is not kept, which is nobody's error, nor is what was there before; what is written with it is."""
    index.put("large", "small")
    index.put("large", "x" * 40_000)
    index.put_all({"before": "a", "huge": "x" * 100_000, "after": "b"})
    assert [index.get(key) for key in ("large", "before", "huge", "after")] == [None, "a", None, "b"]


def test_nothing_is_mapped(index: Index, folder: Path) -> None:
    """Where the disk does not give back a page of a mapped file, the process would be ended by a signal."""
    index.put_all({f"key {number}": "x" * 1000 for number in range(1000)})
    assert index.get("key 500")
    maps = Path("/proc/self/maps").read_text()
    assert f"{folder}/cache.db\n" not in maps
    assert f"{folder}/cache.db-shm\n" in maps


def test_missing(index: Index) -> None:
    """A key that was never written, was dropped or has expired has nothing."""
    index.put("dropped", "x")
    index.drop("dropped")
    index.put("expired", "x", seconds=-1.0)
    index.put("kept", "x", seconds=60.0)
    assert [index.get(key) for key in ("never", "dropped", "expired", "kept")] == [None, None, None, "x"]


def test_put_soon(index: Index) -> None:
    """Writes without waiting happen in the order they were asked for."""
    for number in range(20):
        index.put_soon("key", number)
    index.put("last", "x")
    assert index.get("key") == 19


def test_drop_prefix(index: Index) -> None:
    """A prefix goes as a whole and takes nothing else; what a pattern would mean has no meaning here."""
    for key in ("a:1", "a:2", "b:1", "a", "A:1", "a%", "a_1"):
        index.put(key, "x")
    index.drop_prefix("a:")
    assert [key for key in ("a:1", "a:2", "b:1", "a", "A:1", "a%", "a_1") if index.get(key)] == [
        "b:1", "a", "A:1", "a%", "a_1",
    ]  # fmt: skip


def test_another_process_sees_it(index: Index, folder: Path) -> None:
    """What one process writes another reads, and the other way round."""
    index.put("mine", "1")
    program = (
        "import sys, pathlib; from mitm_cache.cache.index import Index\n"
        "index = Index(pathlib.Path(sys.argv[1])); print(index.get('mine')); index.put('theirs', 2); index.close()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert index.get("theirs") == 2


def test_after_close(folder: Path) -> None:
    """A write that comes while the service ends is let go: the index can be rebuilt."""
    index = Index(folder)
    index.close()
    index.put("key", "x")
    index.put_soon("key", "x")
    index.drop("key")
    again = Index(folder)
    assert again.get("key") is None
    again.close()


@pytest.mark.parametrize("damage", ["no database", "a folder"])
def test_cannot_be_opened(folder: Path, damage: str) -> None:
    """An index that is no database stops the start with an error that names the folder."""
    folder.mkdir()
    if damage == "a folder":
        (folder / "cache.db").mkdir()
    else:
        (folder / "cache.db").write_text("not a database, whatever its name says " * 100)
    # In a process of its own, which ends: diskcache leaves the connection open that it could not use.
    program = """
import sys, pathlib
from mitm_cache.cache.index import Index
from mitm_cache.errors import StoreError
try:
    Index(pathlib.Path(sys.argv[1]))
except StoreError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert f"the index in {folder} cannot be opened" in done.stdout


def test_lost_table(index: Index, folder: Path) -> None:
    """A broken index has nothing, and writes to it are let go."""
    index.put("key", "x")
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute("DROP TABLE Cache")
    database.close()
    assert index.get("key") is None
    index.put("key", "x")
    index.drop("key")
    index.put("key", "x")
    with pytest.raises(StoreError, match="remove the index folder"):
        index.drop_prefix("key")


# Pickle.


class Word(StrEnum):
    ONE = "one"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(1.5, id="float"),
        pytest.param(None, id="none"),
        pytest.param(True, id="bool"),
        pytest.param(("a",), id="tuple"),
        pytest.param(2**63, id="number too large for SQLite"),
        pytest.param(-(2**63) - 1, id="number too small for SQLite"),
        pytest.param(Origin.PULLED, id="kind of text"),
        pytest.param(Word.ONE, id="another kind of text"),
        pytest.param(bytearray(b"x"), id="bytearray"),
        pytest.param("x" * 40_000, id="too long a text"),
        pytest.param(b"x" * 40_000, id="too many bytes"),
    ],
)
def test_strict_values(folder: Path, value: object) -> None:
    """What diskcache would pickle or put in a file of its own is refused, and nothing is written."""
    with diskcache.Cache(str(folder), disk=StrictDisk) as cache:
        with pytest.raises((TypeError, ValueError), match="an index value is"):
            cache.set("key", value)
        assert len(cache) == 0


@pytest.mark.parametrize("key", [1, 1.5, b"x", ("a",), None])
def test_strict_keys(folder: Path, key: object) -> None:
    """Keys are text: no other is written, nor looked up."""
    with diskcache.Cache(str(folder), disk=StrictDisk) as cache:
        with pytest.raises(TypeError, match="an index key is text"):
            cache.set(key, "x")
        with pytest.raises(TypeError, match="an index key is text"):
            cache.get(key)


def test_a_planted_value_is_not_run(folder: Path, fuse: Path) -> None:
    """A pickled value that somebody put into the database is refused on read; the same row explodes without that."""
    with diskcache.Cache(str(folder)) as plain:
        plain.set("key", Bomb(fuse))
    index = Index(folder)
    with pytest.raises(StoreError, match="remove the index folder"):
        index.get("key")
    index.drop_prefix("key")
    assert index.get("key") is None
    index.close()
    assert not fuse.exists()

    with diskcache.Cache(str(folder)) as plain:
        plain.set("key", Bomb(fuse))
        plain.get("key")
    assert fuse.exists()


def test_a_planted_value_in_a_file_is_not_run(folder: Path, fuse: Path) -> None:
    """Nor is one that lies in a file beside the database."""
    with diskcache.Cache(str(folder), disk_min_file_size=1) as plain:
        plain.set("key", Bomb(fuse))
        assert plain.volume() > 0
    index = Index(folder)
    with pytest.raises(StoreError, match="remove the index folder"):
        index.get("key")
    index.close()
    assert not fuse.exists()


def test_a_planted_key_is_not_run(folder: Path, fuse: Path) -> None:
    """A pickled key is refused wherever keys are read; the same row explodes without that."""
    with diskcache.Cache(str(folder)) as plain:
        plain.set(Bomb(fuse), "x")
    index = Index(folder)
    with pytest.raises(StoreError, match="remove the index folder"):
        index.drop_prefix("key")
    index.close()
    assert not fuse.exists()

    with diskcache.Cache(str(folder)) as plain:
        list(plain)
    assert fuse.exists()


def test_a_planted_setting_is_not_run(folder: Path, fuse: Path) -> None:
    """A pickle among diskcache's settings stays bytes."""
    Index(folder).close()
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute("UPDATE Settings SET value = ? WHERE key = 'size_limit'", (pickle.dumps(Bomb(fuse)),))
    database.close()
    index = Index(folder)
    index.put("key", "x")
    assert index.get("key") == "x"
    index.close()
    assert not fuse.exists()
