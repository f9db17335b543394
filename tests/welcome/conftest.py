"""A CA, and a root directory that looks like a node's."""

from pathlib import Path

import pytest

from mitm_cache.ca import CertificateAuthority
from mitm_cache.welcome.facts import Facts
from tests.welcome.places import make_authority, make_facts


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return make_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def facts(authority: CertificateAuthority) -> Facts:
    return make_facts(authority)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Debian's places, the daemons that read what is set up, and a hosts file."""
    root = tmp_path / "root"
    for directory in ("etc/docker", "etc/containerd", "etc/containers", "usr/local/share/ca-certificates", "var/lib"):
        (root / directory).mkdir(parents=True)
    for program in ("usr/sbin/update-ca-certificates", "usr/bin/dockerd", "usr/bin/containerd", "usr/bin/systemctl"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).touch(mode=0o755)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    return root
