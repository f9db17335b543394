"""certs/install-ca.sh: into the real store of this machine inside a mount namespace, and under DESTDIR for the rest."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mitm_cache.ca import CertificateAuthority, rotation
from tests.needs import needs_root, needs_tool

SCRIPT = Path(__file__).parents[2] / "certs/install-ca.sh"
NOW = datetime.now(UTC)

# The store is copied, and the copy mounted over it, for this shell and its children only. Three public CAs will do:
# the tool hashes each of them every time.
IN_COPY = """
set -eu
script=$1 work=$2; shift 2
[ -d "$work" ] || { mkdir -p "$work/ssl" "$work/local"; cp -a /etc/ssl/certs "$work/ssl/"
                    cp -a /usr/local/share/ca-certificates/. "$work/local/"
                    grep -v '^[#!]' /etc/ca-certificates.conf | head -n 3 >"$work/conf"; }
mount --bind "$work/conf" /etc/ca-certificates.conf
mount --bind "$work/ssl" /etc/ssl
mount --bind "$work/local" /usr/local/share/ca-certificates
sh "$script" "$@"
"""
BUNDLE, CERTS = Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/ssl/certs")


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", permitted=["quay.io"], now=NOW)


def run(*arguments: str | Path, program: str = "sh", **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*program.split(), SCRIPT, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


class TestThisMachine:
    """On Debian and its kin, with the real update-ca-certificates."""

    pytestmark = [  # noqa: RUF012 - read by pytest only
        needs_root(),
        needs_tool("unshare", package="util-linux"),
        needs_tool("update-ca-certificates", package="ca-certificates"),
        needs_tool("openssl", package="openssl"),
    ]

    @pytest.fixture
    def work(self, tmp_path: Path) -> Path:
        return tmp_path / "work"

    def install(self, work: Path, *arguments: str | Path) -> str:
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_COPY, "-", SCRIPT, work, *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def trusts(self, work: Path, authority: CertificateAuthority) -> tuple[bool, bool]:
        """Whether the store trusts a leaf of this CA, looked up in the bundle and in the directory of hashes."""
        leaf = work / "leaf.pem"
        leaf.write_bytes(authority.mint("quay.io", now=NOW).certificate_chain_pem)
        # The directory's links are relative to /etc/ssl or absolute into the two mounted places.
        mounted = (
            'mount --bind "$1/ssl" /etc/ssl; mount --bind "$1/local" /usr/local/share/ca-certificates; shift; "$@"'
        )
        ways = (("-no-CApath", "-CAfile", str(BUNDLE)), ("-no-CAfile", "-CApath", str(CERTS)))
        commands = (["openssl", "verify", "-x509_strict", *way, str(leaf)] for way in ways)
        bundle, directory = (
            subprocess.run(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", mounted, "-", work, *command],
                capture_output=True,
                check=False,
            ).returncode
            == 0
            for command in commands
        )
        return bundle, directory

    def state(self, work: Path) -> tuple[list[str], bytes]:
        """The names in the store, links included, and the bundle."""
        names = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.name != "leaf.pem")
        return names, (work / "ssl/certs/ca-certificates.crt").read_bytes()

    def test_install_and_undo(self, authority: CertificateAuthority, work: Path) -> None:
        """The store trusts the CA after installing, also twice, and not after the undo, which may be repeated too."""
        outside = BUNDLE.read_bytes()
        self.install(work, "--undo")
        before = self.state(work)
        said = self.install(work, authority.certificate_path)
        assert authority.fingerprint in said
        assert "Restart dockerd and containerd" in said
        assert self.trusts(work, authority) == (True, True)
        assert "is this CA already" in self.install(work, authority.certificate_path)
        assert self.trusts(work, authority) == (True, True)
        assert "Removed" in self.install(work, "--undo")
        assert self.trusts(work, authority) == (False, False)
        assert "is not there" in self.install(work, "--undo")
        assert self.state(work) == before
        assert BUNDLE.read_bytes() == outside  # this machine's own store

    def test_replace(self, authority: CertificateAuthority, work: Path) -> None:
        """A new CA takes the place of the old one, which is trusted no more."""
        self.install(work, authority.certificate_path)
        new = CertificateAuthority.create(authority.directory, permitted=["quay.io"], now=NOW, force=True)
        self.install(work, new.certificate_path)
        assert self.trusts(work, new) == (True, True)
        assert self.trusts(work, authority) == (False, False)

    def test_two(self, authority: CertificateAuthority, work: Path) -> None:
        """While the CA is changed both are trusted, then the new one only; the undo takes both."""
        pair = rotation.begin(authority.directory, permitted=["quay.io"], now=NOW)
        assert pair.following
        both = authority.directory / "both.crt"
        both.write_bytes(pair.export(NOW))
        said = self.install(work, both)
        assert authority.fingerprint in said
        assert pair.following.fingerprint in said
        assert self.trusts(work, authority) == self.trusts(work, pair.following) == (True, True)
        self.install(work, "--undo")
        assert self.trusts(work, authority) == self.trusts(work, pair.following) == (False, False)
        self.install(work, both)
        new = rotation.finish(authority.directory, permitted=["quay.io"], now=NOW)
        self.install(work, new.certificate_path)
        assert self.trusts(work, new) == (True, True)
        assert self.trusts(work, authority) == (False, False)


FAMILIES = {
    "Debian": ("usr/sbin/update-ca-certificates", "usr/local/share/ca-certificates"),
    "SUSE": ("usr/sbin/update-ca-certificates", "etc/pki/trust/anchors"),
    "RHEL": ("usr/bin/update-ca-trust", "etc/pki/ca-trust/source/anchors"),
    "Arch": ("usr/bin/update-ca-trust", "etc/ca-certificates/trust-source/anchors"),
}


class TestFamilies:
    """Under DESTDIR, in a tree that has the tool and the directories of the family."""

    @pytest.mark.parametrize(
        "program", ["sh", pytest.param("busybox sh", marks=needs_tool("busybox", package="busybox"))]
    )
    @pytest.mark.parametrize(("tool", "anchors"), FAMILIES.values(), ids=FAMILIES.keys())
    def test_install_and_undo(
        self, authority: CertificateAuthority, tmp_path: Path, tool: str, anchors: str, program: str
    ) -> None:
        """The file goes where the family looks for it, readable by all, and the undo takes it and nothing else."""
        root = tmp_path / "root"
        (root / anchors).mkdir(parents=True)
        (root / tool).parent.mkdir(parents=True, exist_ok=True)
        (root / tool).touch(mode=0o755)
        other = root / anchors / "corporate.crt"
        other.touch()
        installed = root / anchors / "mitm-cache.crt"
        done = run(authority.certificate_path, program=program, DESTDIR=str(root))
        assert done.returncode == 0, done.stderr
        assert installed.read_bytes() == authority.export()
        assert installed.stat().st_mode & 0o777 == 0o644
        assert Path(tool).name in done.stdout
        assert run("--undo", program=program, DESTDIR=str(root)).returncode == 0
        assert sorted((root / anchors).iterdir()) == [other]

    def test_unknown_system(self, authority: CertificateAuthority, tmp_path: Path) -> None:
        """A system without either tool is told which package it lacks, and gets no file."""
        done = run(authority.certificate_path, DESTDIR=str(tmp_path / "root"))
        assert done.returncode == 1
        assert "ca-certificates" in done.stderr
        assert not (tmp_path / "root").exists()


class TestArguments:
    def test_help(self) -> None:
        """Help goes to standard output and tells of the undo."""
        done = run("--help")
        assert done.returncode == 0
        assert "--undo" in done.stdout

    @pytest.mark.parametrize("arguments", [(), ("--frob",), ("a.crt", "b.crt"), ("--undo", "a.crt")], ids=str)
    def test_usage(self, arguments: tuple[str, ...]) -> None:
        """Anything but one file or one option is answered with the usage."""
        done = run(*arguments)
        assert done.returncode == 2
        assert "usage:" in done.stderr

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no such file"),
            ("hello\n", "not one certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is not a certificate"),
            ("key", "private key"),
            ("three", "not one certificate"),
        ],
        ids=["missing", "text", "broken", "key", "three certificates"],
    )
    def test_no_certificate(
        self, authority: CertificateAuthority, tmp_path: Path, content: str | None, message: str
    ) -> None:
        """What is not one certificate or two is never put into the store."""
        (tmp_path / "root/usr/sbin").mkdir(parents=True)
        (tmp_path / "root/usr/sbin/update-ca-certificates").touch(mode=0o755)
        pem = authority.export().decode()
        contents = {"key": authority.key_path.read_text() + pem, "three": pem * 3}
        file = tmp_path / "file.crt"
        if content is not None:
            file.write_text(contents.get(content, content))
        done = run(file, DESTDIR=str(tmp_path / "root"))
        assert done.returncode == 1
        assert message in done.stderr
        assert not (tmp_path / "root/usr/local").exists()

    @needs_root()
    @needs_tool("setpriv", package="util-linux")
    def test_needs_root(self, authority: CertificateAuthority) -> None:
        """Without root it says so and changes nothing."""
        with SCRIPT.open() as script:  # which a stranger may not be allowed to reach by its path
            done = subprocess.run(
                ["setpriv", "--reuid", "65534", "--clear-groups", "sh", "-s", "--", "--undo"],
                stdin=script,
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
            )
        assert done.returncode == 1
        assert "needs root" in done.stderr

    @needs_tool("shellcheck", package="shellcheck")
    def test_shellcheck(self) -> None:
        """The script is plain POSIX shell."""
        done = subprocess.run(["shellcheck", "-s", "sh", SCRIPT], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
