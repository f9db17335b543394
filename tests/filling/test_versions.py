"""The constraints of `images-by-semver`, by the table of what they choose."""

import pytest

from mitm_cache.errors import ConfigError
from mitm_cache.filling.versions import Constraint, Version

TAGS = (
    "latest", "1", "1.1", "v1.2.0", "1.2.3", "1.2.3-alpine", "1.2.10", "1.3.0-rc.1", "1.3.0", "2.0.0", "2.1", "0.2.3",
    "0.2.9", "0.3.0", "0.0.3", "0.0.4", "3.12.0_1", "1.2.3.4",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (">= 2", "2.0.0 2.1"),
        (">=1.2.3, <1.3", "1.2.3 1.2.10"),
        (">=1.2.3 <1.3", "1.2.3 1.2.10"),
        ("=> 1.2.10, =< 1.3.0", "1.2.10 1.3.0"),
        ("1.2", "v1.2.0 1.2.3 1.2.10"),
        ("1.2.x", "v1.2.0 1.2.3 1.2.10"),
        ("v1.2.3", "1.2.3"),
        ("= 1.2.3-alpine", "1.2.3-alpine"),
        ("~1.2.3", "1.2.3 1.2.10"),
        ("~> 1.2", "v1.2.0 1.2.3 1.2.10"),
        ("~1", "1 1.1 v1.2.0 1.2.3 1.2.10 1.3.0"),
        ("^1.2.3", "1.2.3 1.2.10 1.3.0"),
        ("^0.2.3", "0.2.3 0.2.9"),
        ("^0.0.3", "0.0.3"),
        ("^0", "0.2.3 0.2.9 0.3.0 0.0.3 0.0.4"),
        ("> 1", "2.0.0 2.1"),
        ("> 1.2", "1.3.0 2.0.0 2.1"),
        ("<= 0.2", "0.2.3 0.2.9 0.0.3 0.0.4"),
        ("1.1 - 1.2.3", "1.1 v1.2.0 1.2.3"),
        ("^2 || 0.3.x", "2.0.0 2.1 0.3.0"),
        (">=1.3.0-0, <1.3.0-z", "1.3.0-rc.1"),
        ("1.x, != 1.2.3", "1 1.1 v1.2.0 1.2.10 1.3.0"),
        ("1.x, != 1.2", "1 1.1 1.3.0"),
        ("*", "1 1.1 v1.2.0 1.2.3 1.2.10 1.3.0 2.0.0 2.1 0.2.3 0.2.9 0.3.0 0.0.3 0.0.4"),
    ],
)
def test_constraint(text: str, chosen: str) -> None:
    """The tags that a constraint chooses, and no others."""
    assert [tag for tag in TAGS if Constraint.parse(text).admits(tag)] == chosen.split()


@pytest.mark.parametrize("text", ["", "latest", ">= ", "1.2.3.4", "~ ~1", "1 |", "1 || ", ">= 1; < 2", "1" * 30])
def test_no_constraint(text: str) -> None:
    """Anything else is refused in words."""
    with pytest.raises(ConfigError, match="no condition on versions"):
        Constraint.parse(text)


def test_order() -> None:
    """The order of Semantic Versioning 2.0, section 11."""
    texts = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
             "1.0.0-rc.1", "1.0.0", "1.0.1", "1.1", "2"]  # fmt: skip
    versions = [Version.of(text) for text in texts]
    assert [version.rank for version in versions if version] == sorted(version.rank for version in versions if version)
    assert None not in versions
