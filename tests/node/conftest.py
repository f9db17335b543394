"""A CA as nodes get it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mitm_cache.ca import CertificateAuthority


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The file with a CA's certificate."""
    made = CertificateAuthority.create(tmp_path / "ca", permitted=["quay.io"], now=datetime.now(UTC))
    return made.certificate_path
