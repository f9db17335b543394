"""Repository names, tags and references."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import MAX_NAME, Repository, Tag, parse_reference

HEX = "0" * 64


@pytest.mark.parametrize("name", ["alpine", "library/alpine", "a.b_c__d-e---f/0", "a" * MAX_NAME])
def test_repository_names(name: str) -> None:
    """Names as the specification has them are taken as they are."""
    assert str(Repository.parse(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("/", id="slash"),
        pytest.param("/a", id="leading slash"),
        pytest.param("a/", id="trailing slash"),
        pytest.param("a//b", id="empty part"),
        pytest.param("..", id="dots"),
        pytest.param("a/../b", id="traversal"),
        pytest.param("a/./b", id="single dot"),
        pytest.param("A", id="upper case"),
        pytest.param("a..b", id="two separators"),
        pytest.param("a___b", id="three underscores"),
        pytest.param("_digests", id="leading underscore"),
        pytest.param("a/_tags", id="leading underscore below"),
        pytest.param("a%2fb", id="encoded slash"),
        pytest.param("a\\b", id="backslash"),
        pytest.param("a\0", id="nul"),
        pytest.param("a\n", id="line feed at the end"),
        pytest.param("ä", id="not ASCII"),
        pytest.param("٣", id="digit of another script"),
        pytest.param("a" * (MAX_NAME + 1), id="over-long"),
    ],
)
def test_no_repository_names(name: str) -> None:
    """Anything else is refused with NAME_INVALID."""
    with pytest.raises(ClientError) as caught:
        Repository.parse(name)
    assert (caught.value.status, caught.value.code) == (400, "NAME_INVALID")


@given(st.one_of(st.text(max_size=20), st.text("ab0._-/", max_size=300)))
def test_no_name_climbs(text: str) -> None:
    """Whatever becomes a repository stays below the folder it is put in, and cannot be one of the cache's own."""
    try:
        name = Repository.parse(text).name
    except ClientError:
        return
    assert name == text
    for part in name.split("/"):
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", part)
        assert part.strip(".")
        assert len(part.encode()) <= 255


@pytest.mark.parametrize("name", ["latest", "_", "1.2-RC_3", "x" * 128])
def test_tags(name: str) -> None:
    """Tags as the specification has them."""
    assert str(Tag.parse(name)) == name
    assert parse_reference(name) == Tag(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "..", "a/b", "a b", "a%20", "ä", "a\n", "x" * 129])
def test_no_tags(name: str) -> None:
    """Anything else is refused with MANIFEST_INVALID."""
    with pytest.raises(ClientError) as caught:
        parse_reference(name)
    assert (caught.value.status, caught.value.code) == (400, "MANIFEST_INVALID")


def test_a_colon_means_a_digest() -> None:
    """No tag has a colon: what has one is a digest, or refused as one."""
    assert parse_reference(f"sha256:{HEX}") == Digest("sha256", HEX)
    with pytest.raises(ClientError) as caught:
        parse_reference("md5:00")
    assert caught.value.code == "DIGEST_INVALID"
