"""The set-up script: under DESTDIR on every family and shell, and on this machine inside a mount namespace."""

import json
import os
import re
import subprocess
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mitm_cache.ca import CertificateAuthority
from mitm_cache.welcome.facts import Facts, Place
from mitm_cache.welcome.pages import Welcome
from mitm_cache.welcome.script import Script
from tests.certs.test_install_ca import FAMILIES
from tests.needs import find_tool, needs_root, needs_tool
from tests.welcome.places import ADDRESS, make_authority, make_facts

SHELLS = [
    "sh",
    pytest.param("dash", marks=needs_tool("dash", package="dash")),
    pytest.param("busybox sh", marks=needs_tool("busybox", package="busybox")),
]
every_shell = pytest.mark.parametrize("shell", SHELLS)
BLOCK = re.compile(rb"# BEGIN mitm-cache node.*?# END mitm-cache node\n", re.DOTALL)
NODE = "var/lib/mitm-cache-node"
CA_FILE = "usr/local/share/ca-certificates/mitm-cache.crt"
HOSTS_TOML = "etc/containerd/certs.d/_default/hosts.toml"
PODMAN = "etc/containers/registries.conf.d/mitm-cache.conf"
DAEMON_JSON = "etc/docker/daemon.json"


@pytest.fixture
def script(facts: Facts, tmp_path: Path) -> Path:
    file = tmp_path / "setup.sh"
    file.write_bytes(Script(facts).content)
    return file


def write(script: Path, facts: Facts) -> Path:
    """Another cache's script in the place of this one."""
    script.write_bytes(Script(facts).content)
    return script


def run(
    script: Path, root: Path, *arguments: str, shell: str = "sh", **more: str
) -> "subprocess.CompletedProcess[str]":
    """The script under `root`."""
    environment = {**os.environ, "DESTDIR": str(root), **more}
    command = [*shell.split(), str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")


def succeed(script: Path, root: Path, *arguments: str, shell: str = "sh") -> str:
    done = run(script, root, *arguments, shell=shell)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def state(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a directory: mode, owner and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, content)
    return found


class TestHosts:
    @every_shell
    @pytest.mark.parametrize(("tool", "anchors"), FAMILIES.values(), ids=FAMILIES.keys())
    def test_set_up_and_undo(
        self, script: Path, authority: CertificateAuthority, root: Path, tool: str, anchors: str, shell: str
    ) -> None:
        """Every family trusts the CA and finds the names; again it changes nothing; the undo leaves no trace."""
        (root / "usr/sbin/update-ca-certificates").unlink()
        (root / anchors).mkdir(parents=True, exist_ok=True)
        (root / tool).touch(mode=0o755)
        (root / "etc/hosts").chmod(0o640)
        before = state(root)
        said = succeed(script, root, shell=shell)
        assert f"In the image still to be run: {Path(tool).name}" in said
        assert "systemctl restart docker containerd" in said
        assert (root / anchors / "mitm-cache.crt").read_bytes() == authority.export()
        hosts = (root / "etc/hosts").read_text()
        assert hosts.startswith("127.0.0.1 localhost\n# BEGIN mitm-cache node\n")
        assert f"\n{ADDRESS} docker.io registry-1.docker.io " in hosts
        assert f"\n{ADDRESS} quay.io\n" in hosts
        assert hosts.endswith("\n# END mitm-cache node\n")
        after = state(root)
        assert "already" in succeed(script, root, "hosts", shell=shell)
        assert state(root) == after
        assert after["etc/hosts"][:2] == before["etc/hosts"][:2]
        assert "Removed" in succeed(script, root, "--undo", shell=shell)
        assert state(root) == before
        assert "was not set up" in succeed(script, root, "--undo", shell=shell)
        assert state(root) == before

    @every_shell
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n",
            b"127.0.0.1 localhost",
            b"127.0.0.1 localhost\r\n::1 x\r\n",
            b"127.0.0.1 caf\xe9 # \xff\n\n\n",
            b"a\n\nno end \t",
            b"# END of it\n# BEGIN\n",
            b"# BEGIN mitm-cache setup\n10.0.0.9 quay.io\n# END mitm-cache setup\n",
        ],
        ids=["empty", "a line", "no end", "CRLF", "Latin-1", "blank lines", "words", "the command's block"],
    )
    def test_any_file(self, script: Path, root: Path, content: bytes, shell: str) -> None:
        """Any hosts file comes back byte for byte, also after a second address, and the block is whole."""
        hosts = root / "etc/hosts"
        hosts.write_bytes(content)
        succeed(script, root, shell=shell)
        once = hosts.read_bytes()
        succeed(script, root, "--cache", "192.0.2.77", "--cache", "2001:db8::7", shell=shell)
        twice = hosts.read_bytes()
        assert twice.startswith(content)
        assert len(BLOCK.findall(twice)) == 1
        assert b"\n192.0.2.77 quay.io\n" in twice
        assert b"\n2001:db8::7 quay.io\n" in twice
        assert ADDRESS.encode() not in twice
        succeed(script, root, shell=shell)
        assert hosts.read_bytes() == once
        succeed(script, root, "--undo", shell=shell)
        assert hosts.read_bytes() == content

    def test_added_since(self, script: Path, root: Path) -> None:
        """What was added below the block stays, on lines of its own."""
        hosts = root / "etc/hosts"
        hosts.write_bytes(b"127.0.0.1 localhost")
        succeed(script, root)
        with hosts.open("ab") as file:
            file.write(b"10.0.0.1 printer\n")
        succeed(script, root)
        succeed(script, root, "--undo")
        assert hosts.read_bytes() == b"127.0.0.1 localhost\n10.0.0.1 printer\n"

    @pytest.mark.parametrize(
        "content",
        [
            "# BEGIN mitm-cache node\n",
            "# END mitm-cache node\n",
            "# END mitm-cache node\n# BEGIN mitm-cache node\n",
            "# BEGIN mitm-cache node\n# END mitm-cache node\n" * 2,
        ],
    )
    def test_damaged_block(self, script: Path, root: Path, content: str) -> None:
        """A block that is not whole is left for a person, by the set-up and by the undo."""
        (root / "etc/hosts").write_text(content)
        for arguments in ((), ("--undo",)):
            done = run(script, root, *arguments)
            assert done.returncode == 1
            assert "by hand" in done.stderr
            assert (root / "etc/hosts").read_text() == content

    def test_link(self, script: Path, root: Path) -> None:
        """A hosts file that is a link stays one."""
        hosts = root / "etc/hosts"
        hosts.rename(root / "etc/hosts.real")
        hosts.symlink_to("hosts.real")
        before = state(root)
        succeed(script, root)
        assert hosts.is_symlink()
        assert "quay.io" in hosts.read_text()
        succeed(script, root, "--undo")
        assert state(root) == before

    def test_by_itself(self, script: Path, root: Path) -> None:
        """The undo works by the copy on the node, when the cache and its script are gone."""
        before = state(root)
        said = succeed(script, root)
        script.unlink()
        copy = root / NODE / "setup.sh"
        assert str(copy) in said
        succeed(copy, root, "--undo")
        assert state(root) == before

    def test_new_ca(self, script: Path, root: Path, tmp_path: Path) -> None:
        """A new CA of the cache takes the old one's place."""
        before = state(root)
        succeed(script, root)
        new = make_authority(tmp_path / "new")
        succeed(write(script, make_facts(new)), root)
        assert (root / CA_FILE).read_bytes() == new.export()
        succeed(script, root, "--undo")
        assert state(root) == before

    def test_foreign_ca(self, script: Path, root: Path) -> None:
        """A CA that install-ca.sh put there is not replaced, and no name leads to the cache then."""
        (root / CA_FILE).write_text("another")
        hosts = (root / "etc/hosts").read_bytes()
        done = run(script, root)
        assert done.returncode == 1
        assert "another CA" in done.stderr
        assert (root / "etc/hosts").read_bytes() == hosts
        assert (root / CA_FILE).read_text() == "another"

    def test_ca_that_was_there(self, script: Path, root: Path, authority: CertificateAuthority) -> None:
        """The same CA, put there by install-ca.sh, is still there after the undo."""
        (root / CA_FILE).write_bytes(authority.export())
        before = state(root)
        assert "stays after an undo" in succeed(script, root)
        succeed(script, root, "--undo")
        assert state(root) == before

    def test_high_port(self, authority: CertificateAuthority, script: Path, root: Path) -> None:
        """Where the cache cannot be reached by names, it says so and changes nothing."""
        before = state(root)
        done = run(write(script, make_facts(authority, tls=Place(ADDRESS, 8443))), root)
        assert done.returncode == 1
        assert "8443" in done.stderr
        assert state(root) == before


class TestMirror:
    @every_shell
    def test_set_up_and_undo(self, script: Path, root: Path, shell: str) -> None:
        """Each client has a file of its own that says what it should; the undo leaves no trace."""
        before = state(root)
        succeed(script, root, "mirror", shell=shell)
        [(host, mirror)] = tomllib.loads((root / HOSTS_TOML).read_text())["host"].items()
        assert (host, mirror) == (f"http://{ADDRESS}:5000", {"capabilities": ["pull", "resolve"]})
        registries = tomllib.loads((root / PODMAN).read_text())["registry"]
        quay = {
            "prefix": "quay.io",
            "location": "quay.io",
            "mirror": [{"location": f"{ADDRESS}:5000/quay.io", "insecure": True}],
        }
        assert quay in registries
        assert len({registry["prefix"] for registry in registries}) == len(registries)
        assert json.loads((root / DAEMON_JSON).read_text()) == {"registry-mirrors": [f"http://{ADDRESS}:5000"]}
        assert not (root / CA_FILE).exists()
        after = state(root)
        succeed(script, root, "mirror", shell=shell)
        assert state(root) == after
        succeed(script, root, "--undo", shell=shell)
        assert state(root) == before

    def test_addresses(self, script: Path, root: Path) -> None:
        """Several caches are several mirrors, in that order."""
        succeed(script, root, "mirror", "--cache", "2001:db8::7", "--cache", "192.0.2.8")
        places = ["[2001:db8::7]:5000", "192.0.2.8:5000"]
        urls = [f"http://{place}" for place in places]
        assert list(tomllib.loads((root / HOSTS_TOML).read_text())["host"]) == urls
        registry = tomllib.loads((root / PODMAN).read_text())["registry"][0]
        assert [mirror["location"] for mirror in registry["mirror"]] == [f"{place}/docker.io" for place in places]
        assert json.loads((root / DAEMON_JSON).read_text()) == {"registry-mirrors": urls}

    @pytest.mark.parametrize("name", [HOSTS_TOML, PODMAN, DAEMON_JSON])
    def test_foreign_file(self, script: Path, root: Path, name: str) -> None:
        """A file that somebody else wrote stays, and what to add is printed; so it is with one changed since."""
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("theirs")
        before = state(root)
        said = succeed(script, root, "mirror")
        assert f"{root / name} is somebody else's" in said
        assert (root / name).read_text() == "theirs"
        assert f"{ADDRESS}:5000" in said or name == PODMAN
        succeed(script, root, "--undo")
        assert state(root) == before

    def test_changed_since(self, script: Path, root: Path) -> None:
        """A file of ours that somebody has changed is left by the undo, which says so."""
        succeed(script, root, "mirror")
        (root / DAEMON_JSON).write_text("{}")
        assert f"{root / DAEMON_JSON} was changed" in succeed(script, root, "--undo")
        assert (root / DAEMON_JSON).read_text() == "{}"
        assert not (root / HOSTS_TOML).exists()
        assert not (root / NODE).exists()

    def test_nothing_there(self, script: Path, tmp_path: Path) -> None:
        """On a machine without any of the clients nothing is written for them."""
        (tmp_path / "empty/var/lib").mkdir(parents=True)
        assert "nothing was set up" in succeed(script, tmp_path / "empty", "mirror")
        assert not (tmp_path / "empty/etc").exists()

    def test_containerd_without_config_path(self, script: Path, root: Path) -> None:
        """containerd is told of its directory only where it does not know it."""
        assert "config_path" in succeed(script, root, "mirror")
        (root / "etc/containerd/config.toml").write_text('  config_path = "/etc/containerd/certs.d"\n')
        assert "config_path" not in succeed(script, root, "mirror")

    def test_both_ways(self, script: Path, root: Path) -> None:
        """One undo takes both ways back."""
        before = state(root)
        succeed(script, root, "hosts")
        succeed(script, root, "mirror")
        succeed(script, root, "--undo")
        assert state(root) == before

    def test_no_listener(self, authority: CertificateAuthority, script: Path, root: Path) -> None:
        """A cache without that listener is no mirror."""
        done = run(write(script, make_facts(authority, mirror=None)), root, "mirror")
        assert done.returncode == 1
        assert "no mirror listener" in done.stderr


class TestCutShort:
    @pytest.mark.parametrize("way", ["hosts", "mirror"])
    def test_killed_anywhere(self, script: Path, root: Path, tmp_path: Path, way: str) -> None:
        """Killed before any of the commands that change something, no file is half a file, and the undo undoes it."""
        before = state(root)
        succeed(script, root, way)
        whole = state(root)
        succeed(script, root, "--undo")
        shims = tmp_path / "shims"
        shims.mkdir()
        for name in ("mkdir", "cp", "chmod", "mv", "rm"):
            (shims / name).write_text(
                f'#!/bin/sh\necho x >>"$COUNT"\n[ "$(wc -l <"$COUNT")" != "$KILL_AT" ] || kill -9 $PPID\n'
                f'exec {find_tool(name)} "$@"\n'
            )
            (shims / name).chmod(0o755)
        path = f"{shims}:{os.environ['PATH']}"
        killed = 0
        while True:
            count = tmp_path / f"count-{killed}"
            done = run(script, root, way, PATH=path, COUNT=str(count), KILL_AT=str(killed + 1), TMPDIR=str(tmp_path))
            ours = {HOSTS_TOML, PODMAN, DAEMON_JSON, CA_FILE, "etc/hosts"}
            for name, content in state(root).items():
                assert name not in ours or content in (before.get(name), whole.get(name))
            if done.returncode == 0:
                break
            assert done.returncode == -9, done.stderr
            killed += 1
            succeed(script, root, "--undo")
            assert state(root) == before, killed
        assert killed > 5
        assert state(root) == whole

    @every_shell
    def test_readers(self, script: Path, root: Path, shell: str) -> None:
        """Files are replaced, not written over: who has one open reads it to its end as it was."""
        hosts = root / "etc/hosts"
        succeed(script, root, "mirror", shell=shell)
        with ExitStack() as stack:
            files = [root / HOSTS_TOML, root / PODMAN, root / DAEMON_JSON, hosts]
            readers = {path: (path.read_bytes(), stack.enter_context(path.open("rb"))) for path in files}
            succeed(script, root, "mirror", "--cache", "192.0.2.99", shell=shell)
            succeed(script, root, "hosts", shell=shell)
            for path, (content, reader) in readers.items():
                assert path.read_bytes() != content
                assert reader.read() == content


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["both"], "both is no argument"),
            (["hosts", "mirror"], "one way at a time"),
            (["--cache"], "--cache needs a value"),
            (["--fingerprint"], "--fingerprint needs a value"),
            (["--undo", "hosts"], "--undo takes no way"),
            (["--undo", "--cache", "192.0.2.1"], "--undo takes no way"),
        ],
        ids=str,
    )
    def test_misuse(self, script: Path, root: Path, arguments: list[str], message: str) -> None:
        """A mistake is told, with the usage, and changes nothing."""
        before = state(root)
        done = run(script, root, *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "usage:" in done.stderr
        assert state(root) == before

    @every_shell
    @pytest.mark.parametrize(
        "address", ["", "cache.example", "10.0.0", "1", "$(id)", "10.0.0.1 x", "10.0.0.1\nx", "'", "/", "*.*.*.*"]
    )
    def test_no_address(self, script: Path, root: Path, address: str, shell: str) -> None:
        """What is not an address does not get into a file."""
        before = state(root)
        for way in ("hosts", "mirror"):
            done = run(script, root, way, "--cache", address, shell=shell)
            assert done.returncode == 1
            assert "is not an address" in done.stderr
        assert state(root) == before

    @every_shell
    def test_fingerprint(self, script: Path, root: Path, facts: Facts, shell: str) -> None:
        """The CA's own fingerprint is taken in every usual form; any other stops it before anything is changed."""
        before = state(root)
        fingerprint = facts.fingerprint
        wrong = ("0" if fingerprint[0] != "0" else "1") + fingerprint[1:]
        for other in (wrong, "AA:BB", fingerprint[:-1]):
            done = run(script, root, "--fingerprint", other, shell=shell)
            assert done.returncode == 1
            assert fingerprint in done.stderr
            assert state(root) == before
        for form in (fingerprint, fingerprint.lower(), fingerprint.replace(":", "")):
            succeed(script, root, "--fingerprint", form, shell=shell)

    @every_shell
    def test_other_certificate(
        self, script: Path, root: Path, authority: CertificateAuthority, tmp_path: Path, shell: str
    ) -> None:
        """A certificate that is not the one of the fingerprint beside it is refused, whoever changed it."""
        other = make_authority(tmp_path / "other").export()
        script.write_bytes(script.read_bytes().replace(authority.export().strip(), other.strip()))
        before = state(root)
        done = run(script, root, "--fingerprint", authority.fingerprint, shell=shell)
        assert done.returncode == 1
        assert "damaged" in done.stderr
        assert state(root) == before

    def test_a_part(self, script: Path, root: Path, facts: Facts) -> None:
        """A part of the script does nothing, wherever it ends."""
        before = state(root)
        lines = Script(facts).content.splitlines(keepends=True)
        for length in range(1, len(lines) - 1, 7):
            script.write_bytes(b"".join(lines[:length]))
            run(script, root)
            assert state(root) == before

    def test_help(self, script: Path, root: Path) -> None:
        """Help goes to standard output, and tells of the undo."""
        assert "--undo" in succeed(script, root, "--help")

    @needs_root()
    @needs_tool("setpriv", package="util-linux")
    def test_needs_root(self, facts: Facts) -> None:
        """Without root it says so; by a pipe it works as from a file."""
        for arguments in ([], ["mirror"], ["--undo"]):
            done = subprocess.run(
                ["setpriv", "--reuid", "65534", "--clear-groups", "sh", "-s", "--", *arguments],
                input=Script(facts).content,
                capture_output=True,
                check=False,
                cwd="/",
            )
            assert done.returncode == 1
            assert b"needs root" in done.stderr

    @needs_tool("shellcheck", package="shellcheck")
    def test_shellcheck(self, script: Path) -> None:
        """The script is plain POSIX shell, with the facts in it."""
        done = subprocess.run(["shellcheck", "-s", "sh", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    def test_store_as_install_ca(self) -> None:
        """Both scripts find the store of a system in the same way."""
        top = Path(__file__).parents[2]
        both = [(top / name).read_text() for name in ("certs/install-ca.sh", "mitm_cache/welcome/setup.sh")]
        [one, other] = [re.search(r"^find_store\(\) \{\n.*?^\}\n", text, re.DOTALL | re.MULTILINE) for text in both]
        assert one is not None
        assert other is not None
        assert one[0] == other[0]


@contextmanager
def hand_out(script: list[bytes]) -> Iterator[int]:
    """An HTTP server that has this script, and its port. (The script holds the port: it comes into the list later.)"""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/setup.sh" else 404)
            self.send_header("Content-Length", str(len(script[0])))
            self.end_headers()
            self.wfile.write(script[0])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


DOWNLOADERS = [
    pytest.param("curl", marks=needs_tool("curl", package="curl")),
    pytest.param("wget", marks=needs_tool("wget", package="wget")),
    pytest.param("busybox", marks=needs_tool("busybox", package="busybox")),
]


class TestLine:
    """The line of the banner and of the page, pasted into a shell that has one downloader and a sudo."""

    @pytest.fixture
    def paste(self, root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> "Paste":
        return Paste(root, tmp_path, request.param)

    @pytest.mark.parametrize("paste", DOWNLOADERS, indirect=True)
    def test_right(self, authority: CertificateAuthority, root: Path, paste: "Paste") -> None:
        """The script is proven, run, and taken away again."""
        done = paste(authority)
        assert done.returncode == 0, done.stderr
        assert ": OK\n" in done.stdout
        assert b"quay.io" in (root / "etc/hosts").read_bytes()
        assert paste.left == []

    @pytest.mark.parametrize("paste", DOWNLOADERS, indirect=True)
    def test_other_script(self, authority: CertificateAuthority, root: Path, paste: "Paste") -> None:
        """Another script is not run, be it one byte longer."""
        before = state(root)
        done = paste(authority, change=lambda script: script + b"\n")
        assert done.returncode != 0
        assert ": FAILED\n" in done.stdout
        assert state(root) == before

    @pytest.mark.parametrize("paste", DOWNLOADERS, indirect=True)
    def test_nothing_there(self, authority: CertificateAuthority, root: Path, paste: "Paste") -> None:
        """Where no script comes, none is run."""
        before = state(root)
        assert paste(authority, path="/other.sh").returncode != 0
        assert state(root) == before

    @pytest.mark.parametrize("paste", DOWNLOADERS[:1], indirect=True)
    def test_other_ca(self, authority: CertificateAuthority, root: Path, tmp_path: Path, paste: "Paste") -> None:
        """Nor is one for another CA."""
        before = state(root)
        other = make_authority(tmp_path / "other")
        done = paste(authority, edit=lambda line: line.replace(authority.fingerprint, other.fingerprint))
        assert done.returncode == 1
        assert "nothing was changed" in done.stderr
        assert state(root) == before


class Paste:
    """Runs the line for a cache, with programs that a node may have."""

    def __init__(self, root: Path, directory: Path, downloader: str) -> None:
        self._root = root
        self._temporary = directory / "tmp"
        self._programs = directory / "programs"
        self._downloader = downloader
        self._temporary.mkdir()
        self._programs.mkdir()
        busybox = downloader == "busybox"
        for name in ("mktemp", "sha256sum", "rm"):
            self._link(name, "busybox" if busybox else name)
        self._link("wget" if busybox else downloader, downloader)
        sudo = self._programs / "sudo"
        sudo.write_text(f'#!/bin/sh\nPATH={os.environ["PATH"]} DESTDIR={root} exec "$@"\n')
        sudo.chmod(0o755)

    def _link(self, name: str, program: str) -> None:
        path = find_tool(program)
        assert path is not None
        (self._programs / name).symlink_to(path)

    def __call__(
        self,
        authority: CertificateAuthority,
        *,
        path: str = "/setup.sh",
        change: Callable[[bytes], bytes] = bytes,
        edit: Callable[[str], str] = str,
    ) -> "subprocess.CompletedProcess[str]":
        served: list[bytes] = [b""]
        with hand_out(served) as port:
            welcome = Welcome(make_facts(authority, clear=Place("127.0.0.1", port)), ready=lambda: True)
            served[0] = change(welcome.script.content)
            line = edit(welcome.script.line("hosts")).replace("/setup.sh", path)
            environment = {"PATH": str(self._programs), "TMPDIR": str(self._temporary)}
            shell = [find_tool("busybox") or "", "sh"] if self._downloader == "busybox" else [find_tool("sh") or ""]
            return subprocess.run([*shell, "-c", line], env=environment, capture_output=True, text=True, check=False)

    @property
    def left(self) -> list[Path]:
        """What is in its directory for temporary files."""
        return list(self._temporary.iterdir())
