"""What upstream last said a tag is, and when."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.cache.confirmed import KEEP_SECONDS, Confirmed
from mitm_cache.cache.entry import Link
from mitm_cache.cache.index import Index
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import Accept
from mitm_cache.oci.reference import Repository, Tag

APP, TAG, ANY = Repository("team/app"), Tag("1"), Accept()
LINK = Link(Digest.of(b"a manifest"), "a/b", 10)
NOW = 1_000_000.0
KEY = f"tag:quay.io/{APP}:{TAG} {ANY.key}"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    index = Index(tmp_path_factory.mktemp("index"))
    yield index
    index.close()


def found(index: Index, now: float) -> tuple[Link, float] | None:
    return Confirmed(index, lambda: now).find("quay.io", APP, TAG, ANY)


@pytest.mark.parametrize(
    ("later", "age"), [(0, 0.0), (59.5, 59.5), (-0.5, None), (-5000, None), (KEEP_SECONDS + 1, None)]
)
def test_age(index: Index, later: float, age: float | None) -> None:
    """It is as old as the question; what lies ahead was written by another clock, and is not believed."""
    Confirmed(index, lambda: NOW).keep("quay.io", APP, TAG, ANY, LINK, NOW)
    index.put("barrier", 1)
    assert found(index, NOW + later) == (None if age is None else (LINK, age))


def test_other_types(index: Index) -> None:
    """Who takes other manifest types may be given something else."""
    Confirmed(index, lambda: NOW).keep("quay.io", APP, TAG, ANY, LINK, NOW)
    index.put("barrier", 1)
    confirmed = Confirmed(index, lambda: NOW)
    assert confirmed.find("quay.io", APP, TAG, Accept("a/b")) is None
    assert confirmed.find("ghcr.io", APP, TAG, ANY) is None
    assert confirmed.find("quay.io", APP, Tag("2"), ANY) is None


rows = st.one_of(
    st.text(),
    st.binary(),
    st.integers(-(2**62), 2**62),
    st.builds("{} {}".format, st.one_of(st.floats(), st.text()), st.one_of(st.text(), st.just(LINK.to_json()))),
)


@given(rows)
def test_any_row(index: Index, row: str | bytes | int) -> None:
    """What is no row of ours is nothing."""
    try:
        index.put(KEY, row)
    except UnicodeEncodeError:
        return  # half a character
    result = found(index, NOW)
    assert result is None or (result[0] == LINK and 0 <= result[1] <= KEEP_SECONDS)


def test_the_index_is_lost(tmp_path: Path) -> None:
    """Then nothing is known, and upstream is asked."""
    index = Index(tmp_path)
    assert found(index, NOW) is None
    index.close()
