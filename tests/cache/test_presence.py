"""Blobs are told by their names, and looked at when somebody asks."""

import time

import pytest

from mitm_cache.cache.presence import BATCH, Presence
from mitm_cache.cache.survey import Survey
from mitm_cache.oci.digest import Digest
from tests.stored import Stored


def test_all(stored: Stored) -> None:
    """Whether one by one or all at once, it tells the same; who has left meanwhile is not here."""
    digests = [stored.keep(str(number).encode()) for number in range(BATCH + 10)]
    at = {digest: stored.blobs.path(digest).stat() for digest in digests}
    names = list(stored.blobs.names())
    single, whole = Presence(Survey(stored.root), names), Presence(Survey(stored.root), names)
    stored.blobs.remove(digests[0])
    whole.look_at_all()
    assert digests[0] in single  # by its name
    assert single.get(digests[0]) is None
    assert digests[0] not in single
    assert dict(single) == dict(whole)
    assert {digest: kept.used for digest, kept in whole.items()} == {d: at[d].st_mtime for d in digests[1:]}
    assert len(whole) == len(digests) - 1


def test_some(stored: Stored) -> None:
    """Where no names are known each is looked for, once."""
    here, away = stored.keep(b"here"), Digest.of(b"away")
    presence = Presence(Survey(stored.root), None)
    assert (here in presence, away in presence, presence[here].size) == (True, False, 4)
    assert presence.get(away) is None
    stored.keep(b"away")
    assert away not in presence
    assert presence.look(away)
    assert away in presence
    stored.use(away, 600)
    assert presence.look(away)
    assert time.time() - presence[away].used == pytest.approx(600, abs=60)
    stored.blobs.remove(away)
    assert not presence.look(away)
    assert set(presence) == {here}
