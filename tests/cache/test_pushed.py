"""Which tags were pushed through this cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.cache.index import Index
from mitm_cache.cache.pushed import Pushed
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Reference, Repository, Tag

APP, TAG = Repository("team/app"), Tag("1")
NOW = 1_000_000.0


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path)
    yield index
    index.close()


@pytest.fixture(scope="module")
def one_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    index = Index(tmp_path_factory.mktemp("index"))
    yield index
    index.close()


def since(index: Index, now: float, seconds: float, tag: Tag | None = TAG, repository: Repository = APP) -> bool:
    return Pushed(index, lambda: now).since("quay.io", repository, tag, seconds)


def test_a_push(index: Index) -> None:
    """It makes void what was known before it, and nothing that is learnt later; and nothing of other tags."""
    Pushed(index, lambda: NOW).keep("quay.io", APP, TAG)
    assert since(index, NOW + 30, 31)
    assert since(index, NOW + 30, 30)
    assert not since(index, NOW + 30, 29)
    assert not since(index, NOW + 1, 60, Tag("2"))
    assert not since(index, NOW + 1, 60, TAG, Repository("team/app/below"))


@pytest.mark.parametrize("reference", [TAG, Digest.of(b"an attestation")], ids=["by tag", "by digest"])
def test_lists(index: Index, reference: Reference) -> None:
    """A push of any manifest makes the repository's lists void: those of tags, and those of referrers."""
    assert not since(index, NOW, 60, None)
    Pushed(index, lambda: NOW).keep("quay.io", APP, reference)
    assert since(index, NOW + 1, 60, None)
    assert since(index, NOW + 1, 60, TAG) is isinstance(reference, Tag)


def test_put_back(index: Index) -> None:
    """A push that lies ahead has happened; once that was seen, what is learnt later is believed again."""
    Pushed(index, lambda: NOW + 5000).keep("quay.io", APP, TAG)
    assert since(index, NOW, 60)
    index.put("barrier", 1)
    assert since(index, NOW + 61, 62)
    assert not since(index, NOW + 61, 60)


@given(st.one_of(st.text(), st.binary(), st.integers(-(2**62), 2**62), st.floats().map(str)))
def test_any_row(one_index: Index, row: str | bytes | int) -> None:
    """What is no time is taken for a push: nothing is believed that was known before."""
    try:
        one_index.put(f"pushed:quay.io/{APP}:{TAG}", row)
    except UnicodeEncodeError:
        return  # half a character
    assert since(one_index, NOW, float("inf"))
