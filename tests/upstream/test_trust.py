"""Whom the upstream leg trusts, judged by OpenSSL."""

import ssl
from pathlib import Path

import pytest
import trustme

from mitm_cache.errors import ConfigError, StoreError
from mitm_cache.upstream.trust import system_store, write_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def authority(path: Path, *, comment: bytes = b"") -> Path:
    path.write_bytes(comment + trustme.CA().cert_pem.bytes())
    return path


def subjects(bundle: Path) -> int:
    """How many authorities OpenSSL finds in a file."""
    return len(ssl.create_default_context(cafile=str(bundle)).get_ca_certs())


def test_bundle(folder: Path, tmp_path: Path) -> None:
    """The system's certificates and the operator's, all of them, in one file of the run folder."""
    system, one, two = (authority(tmp_path / name) for name in ("system", "one", "two"))
    bundle = write_bundle(folder, system=system, extra=[one, two])
    assert bundle.parent == folder
    assert subjects(bundle) == 3
    assert subjects(write_bundle(folder, system=system, extra=[])) == 1
    assert subjects(write_bundle(folder, system=None, extra=[one])) == 1


def test_no_line_break_at_the_end(folder: Path, tmp_path: Path) -> None:
    """Files that end without a line break do not run together."""
    files = [authority(tmp_path / name) for name in ("one", "two")]
    for file in files:
        file.write_bytes(file.read_bytes().rstrip())
    assert subjects(write_bundle(folder, system=files[0], extra=files[1:])) == 2


def test_same_content_same_name(folder: Path, tmp_path: Path) -> None:
    """Restarts leave one file for each content, and no draft."""
    one, two = authority(tmp_path / "one"), authority(tmp_path / "two")
    first = write_bundle(folder, system=one, extra=[])
    assert write_bundle(folder, system=one, extra=[]) == first
    assert write_bundle(folder, system=one, extra=[two]) != first
    assert len(list(folder.iterdir())) == 2


def test_comments(folder: Path, tmp_path: Path) -> None:
    """Comments between certificates, as distributions write them, may be in any script."""
    named = authority(tmp_path / "named", comment="# NetLock Arany (Főtanúsítvány)\n".encode())
    assert subjects(write_bundle(folder, system=None, extra=[named])) == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="no PEM"),
        pytest.param(b"\x30\x82\x01\xff", id="DER"),
        pytest.param(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", id="damaged"),
        pytest.param(trustme.CA().private_key_pem.bytes(), id="a key"),
    ],
)
def test_no_certificate(folder: Path, tmp_path: Path, content: bytes) -> None:
    """A ca_file without a certificate stops the start, by its name, and nothing is written."""
    file = tmp_path / "corporate.pem"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no PEM certificate") as caught:
        write_bundle(folder, system=None, extra=[file])
    assert str(file) in caught.value.message
    assert not list(folder.iterdir())


def test_missing(folder: Path, tmp_path: Path) -> None:
    """So does one that is not there."""
    with pytest.raises(ConfigError, match=r"missing\.pem cannot be read: No such file"):
        write_bundle(folder, system=None, extra=[tmp_path / "missing.pem"])


def test_cannot_be_written(tmp_path: Path) -> None:
    """Where the run folder is not there, the error is the store's."""
    with pytest.raises(StoreError, match="cannot be written"):
        write_bundle(tmp_path / "nowhere", system=None, extra=[])


def test_system_store(tmp_path: Path) -> None:
    """SSL_CERT_FILE outweighs the system's own bundle, if it is a file."""
    mine = authority(tmp_path / "mine.pem")
    default = system_store({})
    assert system_store({"SSL_CERT_FILE": str(mine)}) == mine
    assert system_store({"SSL_CERT_FILE": str(tmp_path)}) == default
    assert system_store({"SSL_CERT_FILE": ""}) == default
    assert default is None or subjects(default) > 10
