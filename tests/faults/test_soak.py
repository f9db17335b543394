"""The soak is a test that takes half an hour (`make soak`, `MINUTES=5`); that it can fail takes no time."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.registry import LyingUpstream
from tests.faults.conftest import Show
from tests.faults.pulls import CLEAN, Place, Verdict
from tests.faults.soak import SETTINGS, Sample, Soak, judge
from tests.lab.process import wait_until
from tests.serving import process

MINUTES = float(os.environ.get("MITM_CACHE_SOAK_MINUTES", "30"))
SEED = int(os.environ.get("MITM_CACHE_FAULTS_SEED", "1"))
RECORD = os.environ.get("MITM_CACHE_SOAK_RECORD")
STILL = Sample(0, 300_000_000, 30_000_000, 200, 80, 4, 1000, 10**9, 100, 1.0)


@pytest.mark.soak
def test_soak(tmp_path: Path, show: Show) -> None:
    """Nothing wrong, nothing grows, nothing is left."""

    with LyingUpstream(tmp_path) as upstream, process(tmp_path / "data", upstream, more=SETTINGS) as served:
        soak = Soak(served, upstream, Place.of(served), SEED, MINUTES * 60, show)
        try:
            soak.run()
        finally:
            if RECORD:
                soak.record(Path(RECORD))
        show("", *soak.lines())
        wait_until(lambda: not soak.in_hand(), "nothing in hand", seconds=30)
        assert soak.tally.words(*(set(Verdict) - CLEAN - {Verdict.RIGHT})) == []
        assert soak.tally.pulls[Verdict.RIGHT] > soak.tally.failed
        assert judge(soak.samples) == []


def test_growth_is_found() -> None:
    """Steady growth is told of, whatever grows; noise and what grew in the first third are not."""
    still = [replace(STILL, at=at) for at in range(90)]
    assert judge(still) == []
    assert judge([replace(each, pss=each.pss + (20_000_000 if each.at % 2 else 0)) for each in still]) == []
    assert judge([replace(each, pss=each.pss + min(int(each.at), 30) * 2_000_000) for each in still]) == []
    assert judge([replace(each, pss=each.pss + int(each.at) * 500_000) for each in still]) == [
        "pss has grown from 322250000 to 337250000"
    ]
    assert judge([replace(each, descriptors=200 + int(each.at)) for each in still]) == [
        "descriptors has grown from 244 to 274"
    ]
    assert judge([replace(each, processes=4 + (each.at > 70)) for each in still]) == ["processes has grown from 4 to 5"]
