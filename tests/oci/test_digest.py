"""Digests: what is one, and that nothing else can become one."""

import hashlib
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import HEX_LENGTHS, Digest

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

digests = st.sampled_from(sorted(HEX_LENGTHS)).flatmap(
    lambda algorithm: st.text("0123456789abcdef", min_size=HEX_LENGTHS[algorithm], max_size=HEX_LENGTHS[algorithm]).map(
        lambda digits: Digest(algorithm, digits)
    )
)


@given(digests)
def test_every_form_leads_back(digest: Digest) -> None:
    """A digest is the same after its text and after its file name, and the file name is one path component."""
    assert Digest.parse(str(digest)) == digest
    assert re.fullmatch(r"[a-z0-9]+-[0-9a-f]+", digest.filename)


@given(st.one_of(st.text(), st.text("shae0123456789abcdef:+.-/% \n", max_size=140)))
@example("sha256:" + EMPTY + "\n")
@example("sha256:" + "٣" * 64)
def test_nothing_else_parses(text: str) -> None:
    """Any text is either exactly the digest it becomes, or refused with DIGEST_INVALID."""
    try:
        digest = Digest.parse(text)
    except ClientError as error:
        refusal = error
    else:
        assert str(digest) == text
        return
    assert (refusal.status, refusal.code) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "allowed: sha256, sha512", id="nothing"),
        pytest.param(EMPTY, "allowed: sha256, sha512", id="no algorithm"),
        pytest.param("md5:" + "0" * 32, "'md5' is not supported; allowed: sha256, sha512", id="unknown algorithm"),
        pytest.param("SHA256:" + EMPTY, "allowed: sha256, sha512", id="upper-case algorithm"),
        pytest.param("sha256:", "64 lower-case hex digits", id="no hex"),
        pytest.param("sha256:" + EMPTY[1:], "64 lower-case hex digits", id="a digit short"),
        pytest.param("sha256:" + EMPTY + "0", "64 lower-case hex digits", id="a digit over"),
        pytest.param("sha256:" + EMPTY.upper(), "64 lower-case hex digits", id="upper-case hex"),
        pytest.param("sha512:" + EMPTY, "128 lower-case hex digits", id="the other's length"),
        pytest.param("sha256:" + "../" * 21 + "x", "64 lower-case hex digits", id="traversal"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    """What is no digest is refused, and the message says what is one."""
    with pytest.raises(ClientError, match=re.escape(message)) as caught:
        Digest.parse(text)
    assert caught.value.code == "DIGEST_INVALID"


def test_long_algorithm_is_cut() -> None:
    """A message does not grow with what a client sends."""
    with pytest.raises(ClientError) as caught:
        Digest.parse("x" * 5000 + ":00")
    assert len(caught.value.message) < 200


@given(st.binary())
def test_of(content: bytes) -> None:
    """The digest of content is its SHA-256."""
    assert str(Digest.of(content)) == f"sha256:{hashlib.sha256(content).hexdigest()}"
