"""Figures of several processes, added up."""

import time

import pytest

from mitm_cache.admin.metrics import Numbers
from mitm_cache.admin.report import Report, Tally
from mitm_cache.cache.evict import Swept


@pytest.mark.parametrize("fields", [{"away": []}, {"away": {"a": 1}}, {"numbers": {"novel": 1}}, {"usage": []}])
def test_a_report_of_another_version(fields: dict[str, object]) -> None:
    """Whatever it holds, it is told apart."""
    with pytest.raises(ValueError, match="no report: "):
        Report.from_json(Report().to_json() | fields)


def test_the_last_sweep_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock was when another process swept, which has ended since."""
    first, second, total = Numbers([]), Numbers([]), Numbers([])
    monkeypatch.setattr(time, "time", lambda: 2e9)
    first.sweep(Swept(total=10, freed=0, removed=0))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    second.sweep(Swept(total=20, freed=0, removed=0))
    tally = Tally(total)
    tally.retire(Report(numbers=first.counts()))
    tally.add_up([Report(numbers=second.counts())])
    assert total.stored == 20
