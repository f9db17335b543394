"""`mitm-cache ca` over a real directory."""

import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from mitm_cache.ca import CertificateAuthority
from mitm_cache.ca.rotation import Pair
from mitm_cache.cli.ca import ca
from mitm_cache.config import Config, load
from mitm_cache.errors import ConfigError


def configure(directory: Path, ca_dir: Path) -> Config:
    """The embedded defaults, with a directory for the CA and one address more."""
    file = directory / "config.toml"
    file.write_text(f'data_dir = "{directory}"\nnames = ["cache.example", "10.0.0.1"]\n[ca]\ndir = "{ca_dir}"\n')
    return load(file=file, environ={})


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return configure(tmp_path, tmp_path / "ca")


def invoke(settings: Config, *arguments: str) -> Result:
    return CliRunner().invoke(ca, arguments, obj=lambda: settings, catch_exceptions=False)


def test_init(settings: Config) -> None:
    """It makes the CA and prints where it is, its fingerprint, and how a node trusts it, with the undo beside it."""
    said = invoke(settings, "init").output
    authority = CertificateAuthority.load(settings.ca_dir)
    assert str(authority.key_path) in said
    assert authority.fingerprint in said
    assert "ssh NODE sudo sh install-ca.sh ca.crt" in said
    assert "ssh NODE sudo sh install-ca.sh --undo" in said
    copied = shlex.split(next(line for line in said.splitlines() if "scp" in line).partition("scp ")[2])[:2]
    assert [Path(path).name for path in copied if Path(path).is_file()] == ["install-ca.sh", "ca.crt"]


def test_init_again(settings: Config) -> None:
    """A CA that is there is replaced only with --force, which says that the old one is kept and the cache restarted."""
    invoke(settings, "init")
    first = CertificateAuthority.load(settings.ca_dir).fingerprint
    with pytest.raises(ConfigError, match="--force"):
        invoke(settings, "init")
    assert CertificateAuthority.load(settings.ca_dir).fingerprint == first
    said = invoke(settings, "init", "--force").output
    assert "is kept" in said
    assert "Restart the cache" in said
    assert CertificateAuthority.load(settings.ca_dir).fingerprint != first
    assert len(list(settings.ca_dir.glob("ca.key.*"))) == 1


def test_show(settings: Config) -> None:
    """It tells subject, validity, fingerprint, what is permitted and what is shut out."""
    invoke(settings, "init")
    said = invoke(settings, "show").output
    authority = CertificateAuthority.load(settings.ca_dir)
    assert authority.fingerprint in said
    assert "CN=mitm-cache CA " in said
    assert "docker.io" in said
    assert "cache.example 10.0.0.1" in said
    assert "all other DNS names, all IPv6 addresses, all e-mail names, all URI names" in said


def test_show_without_ca(settings: Config) -> None:
    """Without a CA the error names the command that makes one."""
    with pytest.raises(ConfigError, match="mitm-cache ca init"):
        invoke(settings, "show")


def test_export(settings: Config, tmp_path: Path) -> None:
    """The certificate comes as PEM or DER, on standard output or in a file, and never with the key."""
    invoke(settings, "init")
    authority = CertificateAuthority.load(settings.ca_dir)
    assert invoke(settings, "export").stdout_bytes == authority.export("pem")
    assert b"PRIVATE" not in authority.export("pem")
    file = tmp_path / "ca.der"
    assert invoke(settings, "export", "--der", "-o", str(file)).exit_code == 0
    assert x509.load_der_x509_certificate(file.read_bytes()) == x509.load_pem_x509_certificate(authority.export())


def test_export_keeps_the_file(settings: Config, tmp_path: Path) -> None:
    """A file is not emptied when there is no CA to write into it."""
    file = tmp_path / "ca.crt"
    file.write_text("before")
    with pytest.raises(ConfigError):
        invoke(settings, "export", "-o", str(file))
    assert file.read_text() == "before"


def test_checkout_ignores_the_ca(tmp_path: Path) -> None:
    """In a checkout git sees nothing of a CA kept in certs/."""
    certs = tmp_path / "certs"
    certs.mkdir()
    kept = (".gitignore", "README.md", "install-ca.sh")
    source = Path(__file__).parents[2] / "certs"
    for name in kept:
        (certs / name).write_bytes((source / name).read_bytes())
    settings = configure(tmp_path, certs)
    invoke(settings, "init")
    invoke(settings, "init", "--force")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    listing = ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard", "certs"]
    found = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    assert found == [f"certs/{name}" for name in kept]


def test_rotate(settings: Config) -> None:
    """The new CA is told of with what to do on the nodes; show and export hold both until the finish."""
    invoke(settings, "init")
    old = CertificateAuthority.load(settings.ca_dir)
    said = invoke(settings, "rotate").output
    pair = Pair.load(settings.ca_dir)
    assert pair.following
    assert pair.following.fingerprint in said
    assert "install-ca.sh" in said
    assert "--abort" in said
    shown = invoke(settings, "show").output
    assert old.fingerprint in shown
    assert f"fingerprint  {pair.following.fingerprint}" in shown
    assert "role         next, signs from 'mitm-cache ca rotate --finish' on" in shown
    assert invoke(settings, "export").stdout_bytes == old.export() + pair.following.export()
    assert invoke(settings, "export", "--der").stdout_bytes == old.export("der")
    assert "within seconds" in invoke(settings, "rotate", "--finish").output
    assert invoke(settings, "export").stdout_bytes == pair.following.export()


def test_rotate_at_a_date(settings: Config) -> None:
    """A date is taken as UTC, and shown."""
    invoke(settings, "init")
    day = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}"
    assert f"It signs from {day}T00:00:00Z on" in invoke(settings, "rotate", "--at", day).output
    assert f"role         next, signs from {day}T00:00:00Z on" in invoke(settings, "show").output


def test_rotate_undone(settings: Config) -> None:
    """After --abort all is as before."""
    invoke(settings, "init")
    before = invoke(settings, "export").stdout_bytes
    invoke(settings, "rotate")
    assert "as before" in invoke(settings, "rotate", "--abort").output
    assert invoke(settings, "export").stdout_bytes == before


def test_rotate_one_thing(settings: Config) -> None:
    """Two options at once are a mistake, and nothing happens."""
    invoke(settings, "init")
    result = invoke(settings, "rotate", "--finish", "--abort")
    assert result.exit_code == 2
    assert "exclude each other" in result.output
