"""What to do for a tag."""

import pytest

from mitm_cache.cache.entry import Link
from mitm_cache.cache.freshness import Fetch, Serve, plan
from mitm_cache.oci.digest import Digest

OLD, NEW = Digest.of(b"old"), Digest.of(b"new")


@pytest.mark.parametrize(
    ("kept", "present", "expected"),
    [
        pytest.param(NEW, True, Serve(NEW, "tag unchanged"), id="unchanged"),
        pytest.param(OLD, True, Serve(NEW, "tag moved to a known manifest"), id="moved to what is here"),
        pytest.param(None, True, Serve(NEW, "tag moved to a known manifest"), id="new tag of what is here"),
        pytest.param(None, False, Fetch(NEW, "tag not known"), id="unknown"),
        pytest.param(OLD, False, Fetch(NEW, "tag moved"), id="moved"),
        pytest.param(NEW, False, Fetch(NEW, "manifest was evicted"), id="evicted"),
    ],
)
def test_plan(kept: Digest | None, present: bool, expected: Serve | Fetch) -> None:
    """What upstream has under the tag now is what is given, from here where it is here, and the reason says why."""
    link = Link(kept, "a/b", 3) if kept else None
    assert plan(link, NEW, present=present) == expected
