"""A data directory read from outside: what is damaged or being written is passed over, and nothing is made."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.cache.entry import Link
from mitm_cache.cache.heard import Heard
from mitm_cache.cache.index import Index
from mitm_cache.cache.links import Links
from mitm_cache.cache.survey import Survey, Tagged
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST, Accept
from mitm_cache.oci.reference import Repository, Tag

APP, TAG = Repository("team/app"), Tag("1")
ONE, TWO, NEW = (Digest.of(name) for name in (b"one", b"two", b"new"))


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Links]:
    index = Index(tmp_path / "index")
    yield Links(tmp_path / "links", index)
    index.close()


def read(root: Path) -> list[Tagged]:
    return Survey(root).tagged("q.io", APP, TAG)


def hear(root: Path, digest: Digest, at: float) -> None:
    Heard(root / "links", clock=lambda: at).age("q.io", APP, TAG, digest)


def test_nothing(tmp_path: Path) -> None:
    """Of a directory that is not there nothing is known, and it is not made."""
    survey = Survey(tmp_path / "none")
    assert (survey.tagged("q.io", APP, TAG), survey.holds("q.io", APP, ONE)) == ([], None)
    assert (survey.kept(ONE), survey.manifest(ONE)) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_types(tmp_path: Path, links: Links) -> None:
    """Clients that take other types may be given another manifest; the same one counts once."""
    for accept, link in (
        (Accept(OCI_INDEX), Link(ONE, OCI_INDEX, 3)),
        (Accept("*/*"), Link(ONE, OCI_INDEX, 3)),
        (Accept(OCI_MANIFEST), Link(TWO, OCI_MANIFEST, 3)),
    ):
        links.tag("q.io", APP, TAG, accept, link)
    assert {(one.digest, one.media_type, one.asked) for one in read(tmp_path)} == {
        (ONE, OCI_INDEX, None),
        (TWO, OCI_MANIFEST, None),
    }
    assert Survey(tmp_path).holds("q.io", APP, ONE) is None
    links.hold("q.io", APP, Link(ONE, OCI_INDEX, 3))
    assert Survey(tmp_path).holds("q.io", APP, ONE) == Link(ONE, OCI_INDEX, 3)


def test_heard(tmp_path: Path, links: Links) -> None:
    """What was heard counts from then; what was heard since comes first, and what was before is past."""
    links.tag("q.io", APP, TAG, Accept(), Link(ONE, OCI_INDEX, 3))
    hear(tmp_path, TWO, 100)
    hear(tmp_path, ONE, 200)
    hear(tmp_path, NEW, 300)
    assert read(tmp_path) == [Tagged(NEW, "", 300), Tagged(ONE, OCI_INDEX, 200)]


def test_damage(tmp_path: Path, links: Links) -> None:
    """Files that are damaged, foreign, or drafts are passed over, and an index that is none too."""
    links.tag("q.io", APP, TAG, Accept(), Link(ONE, OCI_INDEX, 3))
    hear(tmp_path, ONE, 200)
    folder = tmp_path / "links/q.io/team/app"
    (folder / "_tags/1/0123").write_text("{")
    (folder / "_tags/1/.draft").write_text(Link(TWO, OCI_INDEX, 3).to_json())
    (folder / "_heard/1" / TWO.filename).write_text("")
    (folder / "_heard/1/foreign").write_text("300")
    (folder / "_digests").mkdir()
    (folder / "_digests" / ONE.filename).write_text("\0")
    assert read(tmp_path) == [Tagged(ONE, OCI_INDEX, 200)]
    assert Survey(tmp_path).holds("q.io", APP, ONE) is None
    other = tmp_path / "other"
    (other / "index").mkdir(parents=True)
    (other / "index/cache.db").write_bytes(b"no database")
    assert read(other) == []
    assert [path.name for path in other.rglob("*")] == ["index", "cache.db"]
