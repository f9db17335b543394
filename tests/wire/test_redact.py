"""Addresses fit for a log."""

from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.wire.redact import HARMLESS, redact

SECRET = "s3cr3t-" + "x" * 20

URLS = {
    "value": (f"https://s3.example/b?X-Amz-Signature={SECRET}&n=5", "https://s3.example/b?X-Amz-Signature=***&n=5"),
    "user": (f"https://{SECRET}@h.example/v2/", "https://h.example/v2/"),
    "password": (f"https://ann:{SECRET}@h.example:5000/v2/", "https://h.example:5000/v2/"),
    "at sign in it": (f"https://ann:{SECRET}@{SECRET}@h.example/", "https://h.example/"),
    "fragment": (f"https://h.example/#{SECRET}", "https://h.example/"),
    "no key": (f"https://cdn.example/b?{SECRET}", "https://cdn.example/b?***"),
    "no key, among others": (f"https://cdn.example/b?n=1&{SECRET}&sig={SECRET}", "https://cdn.example/b?n=1&***&sig=***"),
    "key of another case": (f"https://h.example/?NS={SECRET}", "https://h.example/?NS=***"),
    "empty value": ("https://h.example/?sig=&n=", "https://h.example/?sig=***&n="),
    "semicolon": (f"https://h.example/?a=1;sig={SECRET}", "https://h.example/?a=***"),
    "harmless key without a value": (f"https://h.example/?n&{SECRET}", "https://h.example/?n&***"),
    "no query": ("https://h.example/v2/a/blobs/sha256:0", "https://h.example/v2/a/blobs/sha256:0"),
}  # fmt: skip


@pytest.mark.parametrize(("url", "shown"), URLS.values(), ids=URLS.keys())
def test_redact(url: str, shown: str) -> None:
    """Host and path stay, harmless values stay, and nothing else does."""
    assert redact(url) == shown


words = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda key: key not in HARMLESS)


@given(st.lists(words, max_size=4), st.integers(0, 4), st.sampled_from(["=", "", "%3D", ";"]), st.booleans())
def test_no_secret_survives(keys: list[str], where: int, glue: str, encoded: bool) -> None:
    """Under any key, in any place of the query, with or without a key, a secret is not shown."""
    pairs = [f"{quote(key, safe='')}{glue}{SECRET}" for key in keys]
    pairs.insert(where, f"{SECRET}")
    pairs.append(urlencode({"sig": f"{SECRET}&x=1"}) if encoded else f"sig={SECRET}")
    shown = redact(f"https://{SECRET}:{SECRET}@h.example/path?{'&'.join(pairs)}#{SECRET}")
    assert SECRET not in shown
    assert shown.startswith("https://h.example/path?")


@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_harmless(key: str) -> None:
    """What helps to read a log is shown as it was sent: control characters stay encoded."""
    url = f"https://h.example/?{key}=a%0Ab%20c"
    assert redact(url) == url
