"""Who may read the key, and who may put another in its place."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mitm_cache.ca import CertificateAuthority
from mitm_cache.ca.files import is_exposed
from mitm_cache.errors import ConfigError
from tests.needs import needs_root

NOW = datetime.now(UTC)
SERVICE = 10001
"""A user and a group that need not be there."""


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", permitted=["quay.io"], now=NOW)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "exposed"),
    [
        (0o600, SERVICE, SERVICE, False),
        (0o400, SERVICE, SERVICE, False),
        (0o640, 0, SERVICE, False),
        (0o440, 0, SERVICE, False),
        (0o640, SERVICE, SERVICE, True),
        (0o640, 0, 0, True),
        (0o660, 0, SERVICE, True),
        (0o644, 0, SERVICE, True),
        (0o604, SERVICE, SERVICE, True),
    ],
)
def test_modes(mode: int, owner: int, group: int, exposed: bool) -> None:
    """The owner alone; or a group, read only, that root gave the key to."""
    facts = os.stat_result((0o100000 | mode, 0, 0, 1, owner, group, 0, 0, 0, 0))
    assert is_exposed(facts) is exposed


@needs_root()
def test_key_of_root_for_a_group(authority: CertificateAuthority) -> None:
    """The service starts with a key that root owns and its group may read."""
    os.chown(authority.key_path, 0, SERVICE)
    authority.key_path.chmod(0o640)
    loaded = CertificateAuthority.ensure(authority.directory, permitted=["quay.io"], now=NOW)
    assert loaded.fingerprint == authority.fingerprint


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702], ids=oct)
def test_directory_of_everybody(authority: CertificateAuthority, mode: int) -> None:
    """Who may write the directory may put a key of his own there: refused, with what to run."""
    authority.directory.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod go-w {authority.directory}"):
        CertificateAuthority.ensure(authority.directory, permitted=["quay.io"], now=NOW)


def test_new_key_in_a_directory_of_everybody(tmp_path: Path) -> None:
    """No key is made there either."""
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod go-w"):
        CertificateAuthority.ensure(tmp_path, permitted=["quay.io"], now=NOW)
    assert not list(tmp_path.glob("ca.key*"))


@needs_root()
def test_directory_of_a_group(authority: CertificateAuthority) -> None:
    """A directory that a group may write is refused, unless the group is the owner's own and his alone."""
    authority.directory.chmod(0o770)
    os.chown(authority.directory, 0, SERVICE)
    with pytest.raises(ConfigError, match="chmod go-w"):
        CertificateAuthority.load(authority.directory)
    os.chown(authority.directory, 0, 0)
    assert CertificateAuthority.load(authority.directory).fingerprint == authority.fingerprint
