"""Which of two images is the newer one: the daemon's, or what has been pushed here."""

import pytest

from mitm_cache.errors import StoreError
from mitm_cache.local.daemon import Held
from mitm_cache.local.newer import Brought, Ours, is_newer, is_same

OURS = Ours("sha256:manifest", frozenset({"sha256:config", "sha256:layer"}), given=1000.0)


def held(id_: str, *digests: str, given: float = 500.0) -> Held:
    return Held("localhost:5000/app:1", id_, frozenset(digests), (), given)


@pytest.mark.parametrize(
    "same",
    [
        held("sha256:config"),  # docker's own store
        held("sha256:manifest"),  # containerd's
        held("sha256:other", "sha256:manifest"),  # pushed or pulled by this name once
    ],
)
def test_the_same_is_not_pushed(same: Held) -> None:
    """However the daemon calls what we have."""
    assert is_same(same, OURS)
    assert not is_newer(same, OURS, None)


@pytest.mark.parametrize(
    ("theirs", "ours", "brought", "newer"),
    [
        (held("sha256:new", given=1001), OURS, None, True),
        (held("sha256:old", given=999), OURS, None, False),
        (held("sha256:old", given=0), None, None, True),
        # Nobody but the daemon has pushed: its clock and its images' times do not count.
        (held("sha256:new", given=0), OURS, Brought("sha256:before", OURS.digest), True),
        # Of an image for several platforms it has pushed the one it has.
        (held("sha256:index", given=2000), OURS, Brought("sha256:index", OURS.digest), False),
        # Somebody else has pushed since.
        (held("sha256:index", given=999), OURS, Brought("sha256:index", "sha256:theirs"), False),
        (held("sha256:index", given=1001), OURS, Brought("sha256:index", "sha256:theirs"), True),
    ],
)
def test_the_newer_is_pushed(theirs: Held, ours: Ours | None, brought: Brought | None, newer: bool) -> None:
    assert is_newer(theirs, ours, brought) is newer


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"Metadata": {"LastTagTime": "1970-01-01T00:01:00.123456789Z"}, "Created": "1970-01-01T00:00:30Z"}, 60.123456),
        ({"Metadata": {"LastTagTime": "1970-01-01T01:01:00+01:00"}}, 60),
        ({"Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"}, "Created": "1970-01-01T00:00:30Z"}, 30),
        ({"Metadata": None, "Created": "1970-01-01T00:00:30Z"}, 30),
        ({"Created": "0001-01-01T00:00:00Z"}, 0),
        ({}, 0),
    ],
)
def test_when_it_was_given(fields: dict[str, object], given: float) -> None:
    """Docker says when an image got its name; Podman has only when it was made."""
    assert Held.of("app:1", {"Id": "ab", **fields}) == Held("app:1", "sha256:ab", frozenset(), (), given)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "a"}', "null"])
def test_a_damaged_note(text: str) -> None:
    with pytest.raises(StoreError):
        Brought.from_json(text)
    assert Brought.from_json(Brought("a", "b").to_json()) == Brought("a", "b")
