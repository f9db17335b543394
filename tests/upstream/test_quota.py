"""What registries say of their pull quotas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.upstream.quota import Quota, Quotas
from mitm_cache.wire.headers import Headers


def noted(left: str, limit: str) -> dict[str, Quota]:
    quotas = Quotas(clock=lambda: 5.0)
    quotas.note("docker.io", Headers([("RateLimit-Limit", limit), ("RateLimit-Remaining", left)]))
    return quotas.all()


@pytest.mark.parametrize(
    ("left", "limit", "quota"),
    [
        ("76;w=21600", "100;w=21600", Quota(76, 100, 21600, 5.0)),
        ("0;w=21600", "200", Quota(0, 200, 21600, 5.0)),
        (" 76 ; w=60 ; more", "", Quota(76, None, 60, 5.0)),
        ("76", "100;w=21600", Quota(76, 100, 21600, 5.0)),
        ("7", "many", Quota(7, None, 0, 5.0)),
    ],
)
def test_forms(left: str, limit: str, quota: Quota) -> None:
    """Docker Hub's form, and what comes near it."""
    assert noted(left, limit) == {"docker.io": quota}


@pytest.mark.parametrize("left", ["", "many", "-1", "7e3", "1234567890123", "1, 2", "٣"])
def test_nothing_is_said(left: str) -> None:
    """What is no number is no quota, and leaves what was said before."""
    assert noted(left, "100") == {}


@given(st.text(), st.text())
def test_any_header(left: str, limit: str) -> None:
    """A registry may say what it likes."""
    for quota in noted(left, limit).values():
        assert 0 <= quota.left < 10**9
