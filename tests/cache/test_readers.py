"""Who could read a repository when its registry was last asked."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.cache.readers import Readers
from mitm_cache.errors import StoreError
from mitm_cache.oci.reference import Repository

APP, BELOW = Repository("team/app"), Repository("team/app/below")


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_seen_and_gone(tmp_path: Path) -> None:
    """What one process has seen every other knows at once, and so its end."""
    clock = Clock()
    one, other = Readers(tmp_path, clock), Readers(tmp_path, clock)
    assert other.age("quay.io", APP, "anyone") is None
    one.keep("quay.io", APP, "anyone")
    clock.now += 7
    assert other.age("quay.io", APP, "anyone") == pytest.approx(7)
    other.drop("quay.io", APP, "anyone")
    assert one.age("quay.io", APP, "anyone") is None
    one.keep("quay.io", APP, "anyone")
    assert other.age("quay.io", APP, "anyone") == pytest.approx(0)
    other.drop("quay.io", APP, "nobody")


@pytest.mark.parametrize(
    ("registry", "repository", "who"),
    [("ghcr.io", APP, "anyone"), ("quay.io", BELOW, "anyone"), ("quay.io", APP, "shared owner")],
)
def test_nobody_else(tmp_path: Path, registry: str, repository: Repository, who: str) -> None:
    """It is known of one reader of one repository of one registry."""
    readers = Readers(tmp_path)
    readers.keep("quay.io", APP, "anyone")
    assert readers.age(registry, repository, who) is None


def test_put_back(tmp_path: Path) -> None:
    """A clock that is put back makes nobody a reader, and nobody unread."""
    clock = Clock()
    readers = Readers(tmp_path, clock)
    readers.keep("quay.io", APP, "anyone")
    clock.now -= 5000
    assert readers.age("quay.io", APP, "anyone") == 0
    readers.keep("quay.io", APP, "anyone")
    clock.now += 3
    assert readers.age("quay.io", APP, "anyone") == pytest.approx(3)


@pytest.mark.parametrize("work", [Readers.keep, Readers.drop])
def test_a_folder_that_is_none(tmp_path: Path, work: Callable[[Readers, str, Repository, str], None]) -> None:
    """What cannot be written down is said; what is not there need not be removed."""
    (tmp_path / "quay.io").write_text("")
    readers = Readers(tmp_path)
    if work is Readers.keep:
        with pytest.raises(StoreError, match=r"quay\.io"):
            work(readers, "quay.io", APP, "anyone")
    else:
        work(readers, "quay.io", APP, "anyone")
    assert readers.age("quay.io", APP, "anyone") is None


@given(st.text())
def test_any_name(tmp_path_factory: pytest.TempPathFactory, who: str) -> None:
    """A name becomes a file of the repository's own, whatever is in it."""
    folder = tmp_path_factory.mktemp("readers")
    readers = Readers(folder)
    try:
        readers.keep("quay.io", APP, who)
    except UnicodeEncodeError:
        return  # half a character
    assert readers.age("quay.io", APP, who) is not None
    [file] = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    assert file.parent == folder / "quay.io" / "team" / "app" / "_readers"
