"""Links as text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest

FIELDS = {"digest": f"sha256:{'0' * 64}", "media_type": "a/b", "size": 1, "origin": "pulled"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(FIELDS)), inner),
    max_leaves=8,
)


@given(st.binary(), st.text(), st.integers(0, 1 << 60), st.sampled_from(Origin))
def test_round_trip(content: bytes, media_type: str, size: int, origin: Origin) -> None:
    """A link is the same after its one line of text."""
    link = Link(Digest.of(content), media_type, size, origin)
    assert "\n" not in link.to_json()
    assert Link.from_json(link.to_json()) == link


def test_text() -> None:
    """The form on disk: it outlives this program's version."""
    assert json.loads(Link(Digest("sha256", "0" * 64), "a/b", 1).to_json()) == FIELDS


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut"),
        pytest.param("[]", id="no object"),
        pytest.param("{}", id="no fields"),
        pytest.param("[" * 200_000, id="nested without end"),
        pytest.param(json.dumps(FIELDS | {"digest": "sha256:0"}), id="bad digest"),
        pytest.param(json.dumps(FIELDS | {"digest": 5}), id="a number for a digest"),
        pytest.param(json.dumps(FIELDS | {"size": "much"}), id="a word for a size"),
        pytest.param(json.dumps(FIELDS | {"size": float("inf")}), id="endless size"),
        pytest.param(json.dumps(FIELDS | {"origin": "stolen"}), id="unknown origin"),
    ],
)
def test_damaged(text: str) -> None:
    """Anything else is a StoreError that shows at most the beginning of it."""
    with pytest.raises(StoreError, match="a link is damaged") as caught:
        Link.from_json(text)
    assert len(caught.value.message) < 300


@given(st.one_of(json_values, st.fixed_dictionaries(dict.fromkeys(FIELDS, json_values))))
def test_any_json(value: object) -> None:
    """No JSON leads to another exception."""
    try:
        link = Link.from_json(json.dumps(value))
    except StoreError:
        return
    assert Link.from_json(link.to_json()) == link
