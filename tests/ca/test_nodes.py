"""What nodes are given while the CA is changed: both certificates, by the pages, the set-up script and `setup`."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mitm_cache.ca import CertificateAuthority, rotation
from mitm_cache.ca.custody import Custody
from mitm_cache.errors import ConfigError
from mitm_cache.node.trust import check, parse_certificate
from mitm_cache.welcome.facts import Facts
from mitm_cache.welcome.pages import Current
from tests.welcome.conftest import root as node_root
from tests.welcome.places import make_authority, make_facts
from tests.welcome.test_setup import state, succeed, write

NOW = datetime.now(UTC)
ANCHORS = "usr/local/share/ca-certificates"
root = node_root


@pytest.fixture
def old(tmp_path: Path) -> CertificateAuthority:
    return make_authority(tmp_path / "ca")


@pytest.fixture
def custody(old: CertificateAuthority) -> Custody:
    return Custody.open(old.directory, permitted=old.constraints.permitted)


def begin(old: CertificateAuthority) -> CertificateAuthority:
    following = rotation.begin(old.directory, permitted=old.constraints.permitted, now=NOW).following
    assert following
    return following


def facts_of(old: CertificateAuthority, custody: Custody) -> Facts:
    """The facts of a cache whose CA is what the custody says now."""
    return replace(make_facts(old), certificate=custody.export(), fingerprint=custody.fingerprint)


def test_pages_follow(old: CertificateAuthority, custody: Custody) -> None:
    """The pages of a cache that runs give both certificates during a rotation, and the new one alone after it."""
    pages = Current(lambda: facts_of(old, custody), ready=lambda: True, version=custody.export)
    assert pages.answer("GET", "/ca.crt").body == old.export()
    new = begin(old)
    custody.refresh()
    assert pages.answer("GET", "/ca.crt").body == old.export() + new.export()
    rotation.finish(old.directory, permitted=old.constraints.permitted, now=NOW)
    custody.refresh()
    assert pages.answer("GET", "/ca.crt").body == new.export()


def test_script(old: CertificateAuthority, custody: Custody, root: Path, tmp_path: Path) -> None:
    """The script installs both as a file each, checks the fingerprint of the one that signs, and undoes all of it."""
    before = state(root)
    file = tmp_path / "setup.sh"
    new = begin(old)
    custody.refresh()
    succeed(write(file, facts_of(old, custody)), root, "--fingerprint", old.fingerprint)
    assert (root / ANCHORS / "mitm-cache.crt").read_bytes() == old.export()
    assert (root / ANCHORS / "mitm-cache-next.crt").read_bytes() == new.export()
    during = state(root)
    assert "already" in succeed(file, root)
    assert state(root) == during
    rotation.finish(old.directory, permitted=old.constraints.permitted, now=NOW)
    custody.refresh()
    succeed(write(file, facts_of(old, custody)), root, "--fingerprint", new.fingerprint)
    assert [path.name for path in (root / ANCHORS).iterdir()] == ["mitm-cache.crt"]
    assert (root / ANCHORS / "mitm-cache.crt").read_bytes() == new.export()
    succeed(file, root, "--undo")
    assert state(root) == before


def test_setup(old: CertificateAuthority) -> None:
    """A file of both is taken with both; a fingerprint picks the one that it is of, and a stranger's is refused."""
    new = begin(old)
    both = parse_certificate("ca.crt", (old.export() + new.export()).decode())
    assert both.pem.encode() == old.export() + new.export()
    assert both.fingerprint == old.fingerprint
    for each in (old, new):
        assert check(both, each.fingerprint).pem.encode() == each.export()
    with pytest.raises(ConfigError, match="this is not the cache's CA"):
        check(both, "AA:" * 31 + "AA")
