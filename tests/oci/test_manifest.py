"""Media types, Accept headers, and what a manifest calls itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    SCHEMA_1,
    Accept,
    is_schema_1,
    media_type_of,
)

TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)


@pytest.mark.parametrize("content_type", [OCI_INDEX, OCI_INDEX.upper(), f" {OCI_INDEX} ; charset=utf-8; x=y"])
def test_media_type(content_type: str) -> None:
    """Parameters, case and space are not part of a media type."""
    assert media_type_of(content_type) == OCI_INDEX


def test_schema_1() -> None:
    """Both types of the old schema are known for it, and no other is."""
    assert all(is_schema_1(f"{kind}; charset=utf-8") for kind in SCHEMA_1)
    assert not any(is_schema_1(kind) for kind in (*TYPES, ""))


@given(st.lists(st.sampled_from(TYPES), unique=True), st.data())
def test_one_normal_form(types: list[str], data: st.DataObject) -> None:
    """However a client orders, repeats, splits, spaces, weighs and spells its types, the key is the same."""
    shuffled = data.draw(st.permutations(types + types[:1]))
    spelt = [
        data.draw(st.sampled_from(["{}", " {} ", "{};q=0.5", "{} ; q=1", "{};v=b3"])).format(
            data.draw(st.sampled_from([kind, kind.upper()]))
        )
        for kind in shuffled
    ]
    cut = data.draw(st.integers(0, len(spelt)))
    assert Accept(",".join(spelt[:cut]), ", ".join(spelt[cut:])).key == Accept(*types).key


def test_keys_differ() -> None:
    """Different sets of types have different keys, fit for a file name."""
    keys = {accept.key for accept in (Accept(), *map(Accept, TYPES), Accept(*TYPES), Accept("*/*"))}
    assert len(keys) == 3 + len(TYPES)
    assert all(len(key) == 16 and key.isalnum() for key in keys)


@pytest.mark.parametrize(
    ("headers", "header"),
    [
        pytest.param((), "", id="none"),
        pytest.param(("",), "", id="empty"),
        pytest.param((" , ,",), "", id="only commas"),
        pytest.param(("b/b, a/a",), "a/a, b/b", id="sorted"),
        pytest.param(("a/a;q=0", "b/b;q=0.0", "c/c;q=0.001"), "c/c", id="q=0 is a refusal"),
        pytest.param(("a/a; Q=0",), "", id="parameters ignore case"),
    ],
)
def test_header(headers: tuple[str, ...], header: str) -> None:
    """The normal form names what the client takes and not what it refuses."""
    assert Accept(*headers).header == header
    assert repr(Accept(*headers)) == f"Accept({header!r})"


@pytest.mark.parametrize(
    ("accept", "taken"),
    [
        pytest.param("", True, id="no header"),
        pytest.param(OCI_INDEX, True, id="named"),
        pytest.param(f"{OCI_MANIFEST}, {DOCKER_LIST}", False, id="others named"),
        pytest.param("*/*", True, id="any"),
        pytest.param("application/*", True, id="any application"),
        pytest.param("text/*", False, id="any text"),
    ],
)
def test_takes(accept: str, taken: bool) -> None:
    """A stored manifest is given only to who takes its type."""
    assert Accept(accept).takes(f"{OCI_INDEX}; charset=utf-8") is taken
