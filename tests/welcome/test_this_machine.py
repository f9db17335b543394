"""The set-up script as root on this machine, on copies of what it changes that are mounted over the real ones."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mitm_cache.ca import CertificateAuthority
from mitm_cache.welcome.facts import Facts
from mitm_cache.welcome.script import Script
from tests.needs import needs_root, needs_tool
from tests.welcome.places import ADDRESS, make_authority

pytestmark = [
    needs_root(),
    needs_tool("unshare", package="util-linux"),
    needs_tool("update-ca-certificates", package="ca-certificates"),
    needs_tool("openssl", package="openssl"),
]

# Three public CAs will do: update-ca-certificates hashes each of them every time. With a file "alone", the hosts file
# is a mount of its own, as in containers.
IN_COPY = """
set -eu
work=$1; shift
[ -d "$work/etc" ] || { mkdir -p "$work/local" "$work/lib"; cp -a /etc "$work/etc"
                        cp -a /usr/local/share/ca-certificates/. "$work/local/"
                        grep -v '^[#!]' /etc/ca-certificates.conf | head -n 3 >"$work/etc/ca-certificates.conf"; }
mount --bind "$work/etc" /etc
mount --bind "$work/local" /usr/local/share/ca-certificates
mount --bind "$work/lib" /var/lib
[ ! -e "$work/alone" ] || mount --bind "$work/alone" /etc/hosts
"$@"
"""


class Node:
    """This machine, with its own copies under a directory."""

    def __init__(self, work: Path, script: bytes) -> None:
        self.work = work
        self._script = work / "setup.sh"
        work.mkdir()
        self._script.write_bytes(script)

    def run(self, *command: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """A command inside."""
        enter: list[str | Path] = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            IN_COPY,
            "-",
            self.work,
        ]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=check)

    def set_up(self, *arguments: str) -> str:
        return self.run("sh", self._script, *arguments).stdout

    def trusts(self, authority: CertificateAuthority) -> bool:
        """Whether the store trusts a leaf of this CA."""
        leaf = self.work / "leaf.pem"
        leaf.write_bytes(authority.mint("quay.io", now=datetime.now(UTC)).certificate_chain_pem)
        command = ["openssl", "verify", "-x509_strict", "-no-CAfile", "-CApath", "/etc/ssl/certs", str(leaf)]
        return self.run(*command, check=False).returncode == 0

    def finds(self, name: str) -> str:
        """The address that the system's resolver has for a name, and no question leaves the machine."""
        return self.run("getent", "-s", "hosts:files", "ahosts", name, check=False).stdout.partition(" ")[0]

    def state(self) -> dict[str, tuple[int, bytes]]:
        """Everything, but for what the hooks of update-ca-certificates note for themselves under /var/lib."""
        found = {}
        for part in ("etc", "local", "lib/mitm-cache-node"):
            for path in (self.work / part).rglob("*"):
                content = path.readlink().as_posix().encode() if path.is_symlink() else b""
                if path.is_file() and not path.is_symlink():
                    content = path.read_bytes()
                found[str(path.relative_to(self.work))] = (path.lstat().st_mode, content)
        return found


@pytest.fixture
def node(facts: Facts, tmp_path: Path) -> Node:
    node = Node(tmp_path / "node", Script(facts).content)
    node.run("update-ca-certificates", "--fresh")  # the undo ends with it
    return node


def test_set_up_and_undo(node: Node, authority: CertificateAuthority, tmp_path: Path) -> None:
    """The store trusts the CA and no other, the names lead to the cache, and the undo leaves everything as it was."""
    outside = Path("/etc/hosts").read_bytes(), Path("/etc/ssl/certs/ca-certificates.crt").read_bytes()
    before = node.state()
    assert not node.trusts(authority)
    for way in ("hosts", "hosts", "mirror"):
        node.set_up(way)
        assert node.trusts(authority)
        assert node.finds("quay.io") == ADDRESS
    assert not node.trusts(make_authority(tmp_path / "other"))
    node.run("sh", "/var/lib/mitm-cache-node/setup.sh", "--undo")
    assert not node.trusts(authority)
    assert node.finds("quay.io") == ""
    assert node.state() == before
    assert not (node.work / "lib/mitm-cache-node").exists()
    assert (Path("/etc/hosts").read_bytes(), Path("/etc/ssl/certs/ca-certificates.crt").read_bytes()) == outside


def test_hosts_as_a_mount(node: Node) -> None:
    """In a container the hosts file is a mount: it is written in place, and comes back byte for byte."""
    alone = node.work / "alone"
    alone.write_bytes(b"127.0.0.1 localhost\n10.0.0.2 node")
    before = node.state()
    node.set_up()
    assert f"\n{ADDRESS} quay.io\n" in alone.read_text()
    assert node.finds("quay.io") == ADDRESS
    node.set_up("--undo")
    assert alone.read_bytes() == b"127.0.0.1 localhost\n10.0.0.2 node"
    assert node.state() == before
