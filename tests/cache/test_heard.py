"""Since when a tag is known to be a digest."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.cache.heard import Heard
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository, Tag

APP, TAG, ONE = Repository("team/app"), Tag("1"), Digest.of(b"one")
NOW = 1_000_000.0


def age(folder: Path, now: float, digest: Digest = ONE, known: float | None = None) -> float:
    return Heard(folder, lambda: now).age("quay.io", APP, TAG, digest, known)


def file(folder: Path) -> Path:
    return folder / "quay.io" / "team" / "app" / "_heard" / "1" / ONE.filename


def test_it_counts_from_the_first_time(tmp_path: Path) -> None:
    """For every process, and for each digest by itself; what was known before anybody wrote it down counts."""
    assert age(tmp_path, NOW) == 0
    assert age(tmp_path, NOW + 90) == 90
    assert age(tmp_path, NOW + 90, Digest.of(b"two")) == 0
    assert age(tmp_path, NOW + 90, Digest.of(b"three"), known=NOW - 10) == 100
    assert age(tmp_path, NOW + 90, ONE, known=NOW - 10) == 90


def test_put_back(tmp_path: Path) -> None:
    """A time that lies ahead is not believed: else nobody would get the tag until then."""
    assert age(tmp_path, NOW + 5000) == 0
    assert age(tmp_path, NOW) == 0
    assert age(tmp_path, NOW + 60) == 60
    assert age(tmp_path, NOW, Digest.of(b"two"), known=NOW + 5000) == 0


@given(st.one_of(st.text(), st.floats().map(str), st.floats(0, NOW).map("{:.0f}".format)))
def test_any_content(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """A damaged file ages nothing beyond belief, and is of use again afterwards."""
    folder = tmp_path_factory.mktemp("heard")
    file(folder).parent.mkdir(parents=True)
    try:
        file(folder).write_text(text)
    except UnicodeEncodeError:
        return  # half a character
    first = age(folder, NOW)
    assert 0 <= first <= 2 * NOW or float(text) < 0
    assert age(folder, NOW + 60) >= 60


def test_no_room(tmp_path: Path) -> None:
    """What cannot be written down is said."""
    (tmp_path / "quay.io").write_text("")
    with pytest.raises(StoreError, match="_heard"):
        age(tmp_path, NOW)
