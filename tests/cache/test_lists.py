"""Lists as upstream last gave them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.cache.lists import MAX_SIZE, KeptList, Lists
from mitm_cache.errors import StoreError
from mitm_cache.oci.reference import Repository

APP = Repository("team/app")
NOW = 1_000_000.0
TAGS = b'{"name":"team/app","tags":["1"]}\n'


def find(folder: Path, now: float = NOW, name: str = "tags") -> KeptList | None:
    return Lists(folder, lambda: now).find("quay.io", APP, name)


def keep(folder: Path, content: bytes = TAGS, at: float = NOW) -> None:
    Lists(folder, lambda: NOW).keep("quay.io", APP, "tags", content, "application/json", at)


@pytest.mark.parametrize(
    ("later", "age", "fresh"), [(0, 0.0, True), (59, 59.0, True), (60, 60.0, False), (-1, None, False)]
)
def test_age(tmp_path: Path, later: float, age: float | None, fresh: bool) -> None:
    """The bytes as they were; how old they are is not known where they lie ahead, and then they are not fresh."""
    keep(tmp_path)
    kept = find(tmp_path, NOW + later)
    assert kept == KeptList(TAGS, "application/json", age)
    assert kept is not None
    assert kept.is_fresh(60) is fresh
    assert find(tmp_path, name="referrers-x") is None


def test_too_long(tmp_path: Path) -> None:
    """A long list is not kept."""
    keep(tmp_path, json.dumps(["x" * MAX_SIZE]).encode())
    assert find(tmp_path) is None


def test_no_room(tmp_path: Path) -> None:
    """What cannot be written down is said."""
    (tmp_path / "quay.io").write_text("")
    with pytest.raises(StoreError, match="_lists"):
        keep(tmp_path)
    assert find(tmp_path) is None


heads = st.fixed_dictionaries({}, optional={"at": st.one_of(st.floats(), st.text(), st.none(), st.lists(st.none())),
                                            "media_type": st.one_of(st.text(), st.integers(), st.none())})  # fmt: skip
contents = st.one_of(st.binary(), st.just(TAGS))


@given(st.one_of(st.binary(), st.builds(lambda head, rest: json.dumps(head).encode() + b"\n" + rest, heads, contents)))
def test_any_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """A damaged file is no list, and its type can be put into a header."""
    folder = tmp_path_factory.mktemp("lists")
    path = folder / "quay.io" / "team" / "app" / "_lists" / "tags"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    kept = find(folder)
    if kept is not None:
        json.loads(kept.content)
        assert kept.media_type.isprintable()
        assert kept.media_type.isascii()
        assert kept.age is None or kept.age >= 0


def test_cut(tmp_path: Path) -> None:
    """A power cut leaves half a file."""
    keep(tmp_path)
    path = tmp_path / "quay.io" / "team" / "app" / "_lists" / "tags"
    whole = path.read_bytes()
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        assert find(tmp_path) is None, size
