"""Header fields."""

from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.wire.headers import HOP_BY_HOP, Headers

FIELDS = Headers([("Accept", "a"), ("X-One", "1"), ("accept", "b"), ("Connection", "close")])
SECRET = "s3cr3t-value"


def test_get() -> None:
    """Names are found in any case: the first value, all values, or none."""
    assert FIELDS.get("ACCEPT") == "a"
    assert FIELDS.get_all("aCCept") == ["a", "b"]
    assert FIELDS.get("missing") is None
    assert FIELDS.get_all("missing") == []


def test_subsets() -> None:
    """Fields are taken or left by name, in any case, in the order they came."""
    assert list(FIELDS.only("accept", "missing")) == [("Accept", "a"), ("accept", "b")]
    assert list(FIELDS.without(["ACCEPT"])) == [("X-One", "1"), ("Connection", "close")]
    assert list(FIELDS.without(HOP_BY_HOP)) == list(FIELDS)[:3]
    assert list(FIELDS + Headers([("Z", "9")])) == [*FIELDS, ("Z", "9")]


@given(st.lists(st.tuples(st.sampled_from(["A", "a", "B", "C"]), st.text())), st.sets(st.sampled_from("abc")))
def test_only_and_without_are_complements(pairs: list[tuple[str, str]], names: set[str]) -> None:
    """Every field is in exactly one of the two."""
    headers = Headers(pairs)
    assert sorted(headers.only(*names) + headers.without(names)) == sorted(pairs)


def test_repr_holds_no_value() -> None:
    """A repr ends in logs: it names the fields and no value."""
    assert repr(Headers([("Authorization", SECRET), ("Location", SECRET)])) == "Headers(Authorization, Location)"
