"""Who may have what."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.cache.index import Index
from mitm_cache.oci.reference import Repository
from mitm_cache.rights import KEEP_SECONDS, Verdict, Verdicts, judge
from mitm_cache.wire.message import Credential
from tests.clock import Clock

HUB = "docker.io"
APP = Repository("team/app")
SECRET = "YW5uOnMzY3IzdA"
ANN, BOB = Credential(f"Basic {SECRET}"), Credential("Bearer bobs-token")


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        ((200, 201, 206, 301, 302, 307, 308), Verdict.YES),
        ((401, 403, 404), Verdict.NO),
        ((0, 100, 199, 400, 402, 405, 408, 410, 416, 429, 451, 500, 502, 503, 504, 508), Verdict.NONE),
    ],
    ids=["yes", "no", "none"],
)
def test_judge(statuses: tuple[int, ...], verdict: Verdict) -> None:
    """Only a registry's clear yes opens and only its clear no refuses; troubles say nothing about rights."""
    assert [judge(status) for status in statuses] == [verdict] * len(statuses)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def index(folder: Path) -> Iterator[Index]:
    index = Index(folder)
    yield index
    index.close()


@pytest.fixture
def verdicts(index: Index, clock: Clock) -> Verdicts:
    return Verdicts(index, clock)


@pytest.fixture
def another(index: Index, clock: Clock) -> Verdicts:
    """The verdicts of another process on the same index."""
    return Verdicts(index, clock)


def settle(index: Index) -> None:
    """Wait for what is being written: it is written in one thread, in order."""
    index.put("barrier", "x")


def test_unknown(verdicts: Verdicts) -> None:
    """Nobody is let in before a registry said so."""
    assert not verdicts.allow(HUB, APP, None)
    assert not verdicts.allow(HUB, APP, ANN)


def test_a_yes_is_for_one_credential(verdicts: Verdicts) -> None:
    """What Ann may read Bob and strangers may not, and Ann not elsewhere."""
    verdicts.keep(HUB, APP, ANN)
    assert verdicts.allow(HUB, APP, ANN)
    assert verdicts.allow(HUB, APP, Credential(ANN.header))
    assert not verdicts.allow(HUB, APP, BOB)
    assert not verdicts.allow(HUB, APP, None)
    assert not verdicts.allow(HUB, APP, Credential(ANN.header.lower()))
    assert not verdicts.allow("quay.io", APP, ANN)
    for name in ("team", "team/app2", "team/app/x", "app"):
        assert not verdicts.allow(HUB, Repository(name), ANN)


def test_what_strangers_may_read_everybody_may(verdicts: Verdicts) -> None:
    """A yes without a credential opens for every credential, in that repository only."""
    verdicts.keep(HUB, APP, None)
    assert verdicts.allow(HUB, APP, None)
    assert verdicts.allow(HUB, APP, ANN)
    assert not verdicts.allow(HUB, Repository("team/other"), ANN)
    assert not verdicts.allow("quay.io", APP, None)


def test_names_do_not_run_together(verdicts: Verdicts) -> None:
    """Registry and repository are kept apart, however they are cut."""
    verdicts.keep("h.example", Repository("a/b"), ANN)
    assert not verdicts.allow("h.example/a", Repository("b"), ANN)


@pytest.mark.parametrize("credential", [ANN, None], ids=["a credential", "anyone"])
def test_expiry(verdicts: Verdicts, another: Verdicts, index: Index, clock: Clock, credential: Credential) -> None:
    """A yes holds for its minutes and not a moment longer, in every process."""
    verdicts.keep(HUB, APP, credential)
    settle(index)
    clock.now += KEEP_SECONDS - 1
    assert verdicts.allow(HUB, APP, ANN)
    assert another.allow(HUB, APP, ANN)
    clock.now += 1
    assert not verdicts.allow(HUB, APP, ANN)
    assert not another.allow(HUB, APP, ANN)


def test_renewal(verdicts: Verdicts, clock: Clock) -> None:
    """Another yes begins the minutes anew."""
    verdicts.keep(HUB, APP, ANN)
    clock.now += KEEP_SECONDS - 1
    verdicts.keep(HUB, APP, ANN)
    clock.now += KEEP_SECONDS - 1
    assert verdicts.allow(HUB, APP, ANN)


def test_another_process_sees_it(verdicts: Verdicts, another: Verdicts, index: Index) -> None:
    """A yes is shared by all processes on the data directory."""
    verdicts.keep(HUB, APP, ANN)
    settle(index)
    assert another.allow(HUB, APP, ANN)
    assert not another.allow(HUB, APP, BOB)


def test_wipe(verdicts: Verdicts, another: Verdicts, index: Index) -> None:
    """At the start nothing is left of what was known, and nothing else in the index is lost."""
    index.put("link:x", "kept")
    verdicts.keep(HUB, APP, ANN)
    verdicts.keep(HUB, APP, None)
    settle(index)
    verdicts.wipe()
    assert not verdicts.allow(HUB, APP, ANN)
    assert not another.allow(HUB, APP, ANN)
    assert index.get("link:x") == "kept"


def test_bounded(verdicts: Verdicts, another: Verdicts, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory keeps a bounded number; what it drops the index still knows."""
    monkeypatch.setattr("mitm_cache.rights.MAX_KEPT", 10)
    repositories = [Repository(f"r{number}") for number in range(30)]
    for repository in repositories:
        verdicts.keep(HUB, repository, ANN)
    assert len(verdicts._kept) == 10
    settle(index)
    assert all(verdicts.allow(HUB, repository, ANN) for repository in repositories)
    assert len(verdicts._kept) == 10


@pytest.mark.parametrize("row", ["nonsense", "", "nan", "-1", b"1e99", 1 << 62])
def test_a_foreign_row_opens_nothing(verdicts: Verdicts, another: Verdicts, index: Index, row: str) -> None:
    """A row that is no verdict of ours lets nobody in."""
    verdicts.keep(HUB, APP, ANN)
    settle(index)
    [key] = [key for key in index._cache.iterkeys() if key.startswith("verdict:")]
    index.put(key, row)
    assert not another.allow(HUB, APP, ANN)


def test_no_credential_on_disk(verdicts: Verdicts, index: Index, folder: Path) -> None:
    """No part of a credential, nor of what it was used for, is in the index's files."""
    verdicts.keep(HUB, Repository("very/private-name"), ANN)
    verdicts.keep(HUB, APP, BOB)
    settle(index)
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"verdict:" in content
    for secret in (SECRET, "bobs-token", "s3cr3t", "Basic", "Bearer", "private-name", ANN.fingerprint):
        assert secret.encode() not in content
