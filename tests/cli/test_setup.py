"""`mitm-cache setup` below a root of its own: what it writes, how often, what it says, and that it can be undone."""

import hashlib
import json
import os
import re
import shlex
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mitm_cache.ca import CertificateAuthority
from mitm_cache.cli import main
from mitm_cache.node.files import Container
from tests.needs import needs_root, needs_tool

type Run = Callable[..., str]
"""Runs setup: its arguments, and the exit status if it is not 0; what it says."""

HOSTS = "127.0.0.1 localhost\n192.0.2.9 r.example  # no end"
DAEMON = '{"log-driver":"json-file",\n\t"insecure-registries": ["r.example"] }'
CONTAINERD = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\n  bin_dir = "/opt/cni"\n'
RANCHER = "mirrors:\n    docker.io: {endpoint: ['https://m.example']}   # odd\n"


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", permitted=["quay.io"], now=datetime.now(UTC))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node's files: modes, links and bytes that are no text among them."""
    root = tmp_path / "root"
    for name, content in {
        "etc/hosts": HOSTS.encode() + b" \xff",
        "etc/docker/daemon.json": DAEMON.encode(),
        "etc/containerd/config.toml": CONTAINERD.encode(),
        "etc/rancher/k3s/registries.yaml": RANCHER.encode(),
        "usr/sbin/update-ca-certificates": b"",
        "opt/real.json": b"{}",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "etc/docker/daemon.json").chmod(0o600)
    (root / "etc/docker").chmod(0o711)
    (root / "var/lib").mkdir(parents=True)
    return root


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Every file, link and folder: content, mode and owner; of files when they were changed too."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        holds: object = path.read_bytes() if regular else path.readlink() if path.is_symlink() else None
        changed = status.st_mtime_ns if regular else 0
        found[str(path.relative_to(root))] = (holds, status.st_mode, status.st_uid, status.st_gid, changed)
    return found


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    (tmp_path / "config.toml").touch()

    def invoke(arguments: str, status: int = 0) -> str:
        options = ["--config", str(tmp_path / "config.toml"), "setup", *shlex.split(arguments), "--root", str(root)]
        result: Result = CliRunner().invoke(main, options)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == status, result.output
        return result.output

    return invoke


@pytest.fixture
def ca(authority: CertificateAuthority) -> str:
    return f"--ca {authority.certificate_path}"


EVERY = [
    f"{target} --way {way} --trust {trust} --store {store}"
    for target in ("docker", "containerd", "podman", "crio", "k3s", "rke2", "hosts")
    for way in ("hosts", "connect", "mirror")
    for trust, store in (("ca", "system"), ("ca", "client"), ("insecure", "system"))
    if target != "hosts" or (way, store) == ("hosts", "system")
]


@pytest.mark.parametrize("arguments", EVERY, ids=lambda text: re.sub(r"--\w+ ", "", text))
def test_there_and_back(run: Run, root: Path, ca: str, arguments: str) -> None:
    """A dry run and a second run change nothing, and the undo leaves every byte, mode and date as it was."""
    before = snapshot(root)
    arguments += f" --cache 10.0.0.5 {ca}"
    assert "Nothing was changed" in run(f"{arguments} --dry-run")
    assert snapshot(root) == before
    assert "Wrote" in run(arguments)
    after = snapshot(root)
    assert after != before
    assert "Nothing to change" in run(arguments)
    assert snapshot(root) == after
    assert "Put back" in run("--undo")
    assert snapshot(root) == before
    assert "Nothing to undo" in run("--undo")


def test_the_diff_is_shown(run: Run, root: Path, ca: str) -> None:
    said = run(f"docker --trust insecure --cache 10.0.0.5 {ca}")
    assert "--- /etc/docker/daemon.json\n+++ /etc/docker/daemon.json\n" in said
    assert "+10.0.0.5 quay.io\n" in said
    assert "systemctl reload docker" in said
    document = json.loads((root / "etc/docker/daemon.json").read_text())
    assert document["log-driver"] == "json-file"
    assert document["insecure-registries"][-1] == "r.example"
    assert stat.S_IMODE((root / "etc/docker/daemon.json").stat().st_mode) == 0o600


def test_other_settings_replace_the_old(run: Run, root: Path, ca: str) -> None:
    """Setting up again by another way leaves nothing of the first; one undo takes all back."""
    before = snapshot(root)
    run(f"docker --cache 10.0.0.5 {ca}")
    run("docker --trust insecure --cache 10.0.0.6")
    assert not (root / "usr/local").exists()
    assert "10.0.0.5" not in (root / "etc/hosts").read_bytes().decode(errors="replace")
    run("docker --way mirror --cache 10.0.0.6")
    assert (root / "etc/hosts").read_bytes() == HOSTS.encode() + b" \xff"
    run("--undo")
    assert snapshot(root) == before


def test_targets_share_files(run: Run, root: Path, ca: str) -> None:
    """A file goes with the last target that needs it, in whatever order."""
    before = snapshot(root)
    run(f"docker --cache 10.0.0.5 {ca}")
    run(f"containerd --store client --cache 10.0.0.5 {ca}")
    assert "stays as it is for containerd" in run("docker --undo")
    assert b"10.0.0.5 quay.io" in (root / "etc/hosts").read_bytes()
    assert not (root / "usr/local").exists()
    run("containerd --undo")
    assert snapshot(root) == before


def test_what_somebody_changed_since_stays(run: Run, root: Path, ca: str) -> None:
    run(f"docker --trust insecure --cache 10.0.0.5 {ca}")
    run("containerd --way mirror --cache 10.0.0.5")
    hosts, daemon = root / "etc/hosts", root / "etc/docker/daemon.json"
    hosts.write_bytes(hosts.read_bytes() + b"192.0.2.8 later.example\n")
    daemon.write_text(json.dumps({**json.loads(daemon.read_text()), "debug": True}))
    extra = root / "etc/containerd/certs.d/r.example/hosts.toml"
    extra.parent.mkdir()
    extra.write_text("[host]\n")
    assert run("--undo").count("was changed by somebody since") == 2
    assert hosts.read_bytes() == HOSTS.encode() + b" \xff\n192.0.2.8 later.example\n"
    assert json.loads(daemon.read_text()) == {**json.loads(DAEMON), "debug": True}
    assert extra.exists()
    assert (root / "etc/containerd/config.toml").read_text() == CONTAINERD


def test_lines_of_ours_that_somebody_changed(run: Run, root: Path) -> None:
    """Such a file is left alone, named with its backup, and undone once it is as it was."""
    before = snapshot(root)
    run("k3s --way mirror --cache 10.0.0.5")
    run("containerd --way mirror --cache 10.0.0.5")
    config = root / "etc/containerd/config.toml"
    ours = config.read_bytes()
    config.write_bytes(ours.replace(b"/etc/containerd/certs.d", b"/srv/certs.d"))
    said = run("--undo", 1)
    assert "/etc/containerd/config.toml: lines that setup wrote were changed since" in said
    assert (root / "etc/rancher/k3s/registries.yaml").read_text() == RANCHER
    backup = re.search(r"\((\S+) is how it was before\)", said)
    assert backup is not None
    assert Path(backup[1]).read_text() == CONTAINERD
    config.write_bytes(ours)
    run("--undo")
    assert snapshot(root) == before


def test_what_somebody_removed_is_not_put_back(run: Run, root: Path) -> None:
    run("docker --way mirror --cache 10.0.0.5")
    (root / "etc/docker/daemon.json").unlink()
    assert "was removed by somebody since" in run("--undo")
    assert not (root / "etc/docker/daemon.json").exists()


def test_a_link_stays_a_link(run: Run, root: Path) -> None:
    """The file that it leads to is written; a link out of the root is refused."""
    daemon = root / "etc/docker/daemon.json"
    daemon.unlink()
    daemon.symlink_to("../../opt/real.json")
    before = snapshot(root)
    run("docker --way mirror --cache 10.0.0.5")
    assert daemon.is_symlink()
    assert "registry-mirrors" in (root / "opt/real.json").read_text()
    run("--undo")
    assert snapshot(root) == before
    daemon.unlink()
    daemon.symlink_to("/etc/passwd")
    assert "is a link that leads out of" in run("docker --way mirror --cache 10.0.0.5", 1)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("", 2, "say what to set up: docker, containerd"),
        ("docker", 1, "give the address of the cache"),
        ("docker --cache http://x", 1, "is not the address of a cache"),
        ("docker --cache 10.0.0.5", 1, "give --ca FILE"),
        ("docker --cache 10.0.0.5 --fingerprint 12", 1, "is not a SHA-256"),
        ("docker --cache 10.0.0.5 --ca /nowhere", 1, "--ca /nowhere cannot be read"),
        ("docker --cache 10.0.0.5 --ca /etc/hostname", 1, "is not one certificate"),
        ("docker --file x", 2, "--file is for kind and k3d"),
        ("docker --local localhost:5000 --way mirror --cache 10.0.0.5", 1, "--local is for kind and k3d"),
        ("kind --local app --cache 10.0.0.5", 1, "is not what an image's name begins with"),
        ("docker --cluster x", 2, "--cluster is for kind"),
        ("kind --way hosts --cache 10.0.0.5", 1, "--way hosts is not for kind"),
    ],
)
def test_what_is_refused(run: Run, root: Path, arguments: str, status: int, words: str) -> None:
    """Each mistake is told in one message that says what would do, and nothing is touched."""
    before = snapshot(root)
    assert words in run(arguments, status)
    assert snapshot(root) == before


def test_a_key_is_not_for_nodes(run: Run, authority: CertificateAuthority) -> None:
    said = run(f"docker --cache 10.0.0.5 --ca {authority.key_path}", 1)
    assert "private key, which must stay on the cache" in said
    assert "BEGIN" not in said


def test_a_damaged_record(run: Run, root: Path) -> None:
    run("podman --way mirror --cache 10.0.0.5")
    manifest = root / "var/lib/mitm-cache-setup/manifest.json"
    assert stat.S_IMODE(manifest.parent.stat().st_mode) == 0o700
    for content in ("{", '{"version": 2}', "[]", '{"version": 1, "files": {"/x": {}}}'):
        manifest.write_text(content)
        assert "is damaged" in run("--undo", 1)


@needs_root()
def test_without_root() -> None:
    """The first file that cannot be written is named, and nothing was written before."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        arguments = ["setup", "podman", "--way", "mirror", "--cache", "10.0.0.5", "--root", name]
        assert CliRunner().invoke(main, [*arguments, "--dry-run"]).exit_code == 0  # everything is imported by now
        before = snapshot(Path(name))
        os.seteuid(65534)
        try:
            result = CliRunner().invoke(main, arguments)
        finally:
            os.seteuid(0)
        assert result.exit_code == 1
        ours = "/etc/containers/registries.conf.d/mitm-cache.conf"
        assert f"Error: {ours} cannot be written: run this as root" in result.output
        assert snapshot(Path(name)) == before


@needs_root()
def test_a_user_sets_up_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not root has a record of his own."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.chown(home, 65534, 65534)
        monkeypatch.setenv("XDG_STATE_HOME", name)
        arguments = ["setup", "kind", "--cache", "10.0.0.5", "--file", str(home / "kind.yaml")]
        assert CliRunner().invoke(main, [*arguments, "--dry-run"]).exit_code == 0  # everything is imported by now
        os.seteuid(65534)
        try:
            made = CliRunner().invoke(main, arguments)
            there = sorted(path.name for path in home.iterdir())
            undone = CliRunner().invoke(main, ["setup", "--undo"])
        finally:
            os.seteuid(0)
        assert made.exit_code == 0, made.output
        assert there == ["kind-certs.d", "kind.yaml", "mitm-cache-setup"]
        assert undone.exit_code == 0, undone.output
        assert list(home.iterdir()) == []


# The CA by its fingerprint.


class Door(BaseHTTPRequestHandler):
    content: bytes

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ca.crt" else 404)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def port(authority: CertificateAuthority) -> Iterator[int]:
    """A server that hands out the CA."""
    Door.content = authority.export("pem")
    with HTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_the_ca_by_its_fingerprint(run: Run, root: Path, port: int, authority: CertificateAuthority) -> None:
    """It is fetched from the cache and taken if it is the right one, in whatever form the fingerprint is given."""
    start = f"docker --cache 127.0.0.1 --clear-port {port}"
    before = snapshot(root)
    assert "this is not the cache's CA" in run(f"{start} --fingerprint {hashlib.sha256(b'x').hexdigest()}", 1)
    assert snapshot(root) == before
    run(f"{start} --fingerprint {authority.fingerprint}")
    assert (root / "usr/local/share/ca-certificates/mitm-cache.crt").read_bytes() == authority.export("pem")
    bare = authority.fingerprint.replace(":", "").lower()
    assert "Nothing to change" in run(f"{start} --fingerprint 'sha256 Fingerprint={bare}'")
    Door.content = b"<html>"
    assert "ca.crt is not one certificate" in run(f"{start} --fingerprint {bare}", 1)


def test_no_cache_answers(run: Run) -> None:
    said = run(f"docker --cache 127.0.0.1 --clear-port 1 --fingerprint {'0' * 64}", 1)
    assert "http://127.0.0.1:1/ca.crt cannot be fetched" in said
    assert "give --ca FILE" in said


# kind.


def test_files_for_new_clusters(run: Run, root: Path) -> None:
    before = snapshot(root)
    for target in ("kind", "k3d"):
        said = run(f"{target} --cache 10.0.0.5 --file /srv/{target}.yaml")
        assert f"/srv/{target}.yaml" in said
        assert (root / f"srv/{target}.yaml").exists()
    run("--undo")
    assert snapshot(root) == before


@pytest.mark.parametrize("given", ["--local localhost:5000", ""], ids=["given", "by the configuration"])
def test_the_local_registry_in_new_clusters(run: Run, root: Path, tmp_path: Path, given: str) -> None:
    """Its names are led to the cache, and told; a second set-up without them takes that out, the undo everything."""
    before = snapshot(root)
    settings = tmp_path / "config.toml"
    for target in ("kind", "k3d"):
        settings.write_text("" if given else '[local]\nnames = ["localhost:5000", "mine/"]\n')
        said = run(f"{target} --cache cache {given} --file /srv/{target}.yaml")
        hosting = root / f"srv/{target}-hosting.yaml"
        assert f"kubectl apply -f /srv/{target}-hosting.yaml" in said
        assert 'host: "localhost:5000"' in hosting.read_text()
        assert ("localhost:5000:" in (root / "srv/k3d.yaml").read_text()) if target == "k3d" else True
        settings.write_text("")
        run(f"{target} --cache cache --file /srv/{target}.yaml")
        assert not hosting.exists()
    assert not (root / "srv/kind-certs.d/localhost:5000").exists()
    run("--undo")
    assert snapshot(root) == before


# The node's commands run here, with an /etc of the node's own; it stands for `docker exec` alone.
_STAND_IN = """#!/bin/sh
[ ! -e "$0.says" ] || { cat "$0.says" >&2; exit 1; }
case $1 in
    ps) [ "$3" = label=io.x-k8s.kind.cluster=c1 ] && printf 'c1-control-plane\\nc1-external-load-balancer\\n'; exit 0 ;;
    exec) shift; [ "$1" != -i ] || shift; node=%s/$1; shift
        mkdir -p "$node/upper" "$node/work"
        exec unshare --mount sh -c '
            mount -t overlay node -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" /etc
            exec "$@"' "$node" "$@" ;;
esac
"""


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text(_STAND_IN % (tmp_path / "nodes"))
    (folder / "docker").chmod(0o755)
    return folder


@needs_root()
@needs_tool("unshare", package="util-linux")
def test_a_cluster_that_runs(
    run: Run,
    root: Path,
    tool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each node gets its hosts.toml by docker exec, the load balancer does not; the undo finds the nodes by itself."""
    monkeypatch.setenv("PATH", f"{tool}:{os.environ['PATH']}")
    before = snapshot(root)
    node = Container("docker", "c1-control-plane")
    path = "/etc/containerd/certs.d/_default/hosts.toml"
    said = run("kind --cluster c1 --cache 10.0.0.5")
    assert "# c1-control-plane\n--- /dev/null\n" in said
    assert '[host."http://10.0.0.5:5000"]' in (node.read(path) or "")
    assert "_default" in node.names("/etc/containerd/certs.d")
    assert not (tmp_path / "nodes/c1-external-load-balancer").exists()
    assert "Nothing to change" in run("kind --cluster c1 --cache 10.0.0.5")
    run("kind --cluster c1 --way mirror --cache 10.0.0.6")
    assert "10.0.0.6" in (node.read(path) or "")
    assert "Put back 1 file" in run("kind --undo")
    assert node.read(path) is None
    assert node.names("/etc/containerd/certs.d") == ()
    assert snapshot(root) == before
    assert "runs no node of a kind cluster 'c2'" in run("kind --cluster c2 --cache 10.0.0.5", 1)


@needs_root()
@needs_tool("unshare", package="util-linux")
def test_nodes_that_cannot_be_asked(run: Run, root: Path, tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the daemon is down their records stay, and the rest is undone; those of a deleted cluster are done with."""
    monkeypatch.setenv("PATH", f"{tool}:{os.environ['PATH']}")
    before = snapshot(root)
    run("kind --cluster c1 --cache 10.0.0.5")
    run("podman --way mirror --cache 10.0.0.5")
    says = tool / "docker.says"
    says.write_text("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n")
    said = run("--undo", 1)
    assert "Put back 1 file" in said
    assert "Cannot connect to the Docker daemon" in said
    assert list((root / "var/lib/mitm-cache-setup").iterdir()) == [
        root / "var/lib/mitm-cache-setup/docker-c1-control-plane"
    ]
    says.write_text("Error response from daemon: No such container: c1-control-plane\n")
    assert "c1-control-plane: It is there no more" in run("--undo")
    assert snapshot(root) == before


@needs_root()
@needs_tool("unshare", package="util-linux")
def test_the_local_registry_in_a_cluster_that_runs(
    run: Run, root: Path, tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control plane gets what kubectl applies there, and the command that does it is told."""
    monkeypatch.setenv("PATH", f"{tool}:{os.environ['PATH']}")
    before = snapshot(root)
    node = Container("docker", "c1-control-plane")
    node.write("/etc/kubernetes/admin.conf", "")
    path = "/etc/kubernetes/local-registry-hosting.yaml"
    said = run("kind --cluster c1 --cache 10.0.0.5 --local localhost:5000")
    assert f"docker exec c1-control-plane kubectl --kubeconfig /etc/kubernetes/admin.conf apply -f {path}" in said
    assert "local-registry-hosting" in (node.read(path) or "")
    assert 'server = "http://10.0.0.5:5000"' in (node.read("/etc/containerd/certs.d/localhost:5000/hosts.toml") or "")
    run("kind --undo")
    assert node.read(path) is None
    assert node.names("/etc/containerd/certs.d") == ()
    assert snapshot(root) == before


def test_no_tool_for_a_cluster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "reached by docker or podman, and neither is installed" in run("kind --cluster c1 --cache 10.0.0.5", 1)
