"""Every case of the table in docs/hostile.md, against one cache that serves on all the while."""

import logging
from collections.abc import Iterator

import pytest

from tests.hostile.case import Case, Watch
from tests.hostile.scene import Scene, scene
from tests.hostile.table import FAMILIES, PAGE, render

ALL = [(family, case) for family in FAMILIES for case in family.cases]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("hostile")) as started:
        yield started


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{family.key}: {case.name}") for family, case in ALL])
def test_case(started: Scene, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """What must happen does, in time; nobody is led elsewhere, and the cache serves on."""
    caplog.set_level(logging.ERROR)
    started.begin()
    with Watch(case.seconds):
        case.run(started)
    started.caught[:] = [record.getMessage() for record in caplog.records]
    started.assert_unharmed(asks=case.asks)


def test_names_differ() -> None:
    """At least 200 cases, each with a name of its own in its family."""
    names = [(family.key, case.name) for family, case in ALL]
    assert len(set(names)) == len(names)
    assert len(names) >= 200


def test_the_table_is_current() -> None:
    """docs/hostile.md is what scripts/hostile_table makes of the cases."""
    assert PAGE.read_text() == render()
