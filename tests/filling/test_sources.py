"""How a file says a registry is spoken to: whom to trust, not at all, in clear text."""

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, generate
from tests.fakes.registry import LyingUpstream
from tests.filling.test_run import HOST, NAME, Cache

IMAGE = generate(sizes=[30 * KIB], platforms=["linux/amd64"], seed="sources")


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.blobs = "direct"
        upstream.registry.put(NAME, IMAGE, "1")
        yield upstream


@pytest.fixture
def distrustful(tmp_path: Path, upstream: LyingUpstream) -> Cache:
    """A cache that is not told of the registry's certificate."""
    cache = Cache(tmp_path, upstream)
    cache.file.write_text(re.sub("(?m)^ca_file = .*$", "", cache.file.read_text()))
    return cache


def sync(cache: Cache, more: str, host: str = HOST) -> str:
    """What is said of a file with this of one registry, "" where all went well."""
    listed = cache.file.with_name("images.yaml")
    listed.write_text(f"{host}:\n  images: {{{NAME}: ['1']}}\n  {more}\n")
    result = cache.run("sync", "-f", listed)
    return result.output if result.exit_code else ""


def test_certificates(distrustful: Cache, upstream: LyingUpstream, tmp_path: Path) -> None:
    """Without the certificate it is refused; those in cert-dir are trusted."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    assert "the TLS handshake with" in sync(distrustful, "tls-verify: true")
    assert distrustful.blobs() == set()
    shutil.copy(upstream.ca_file, folder / "own.crt")
    assert sync(distrustful, f"cert-dir: {folder}") == ""
    assert distrustful.blobs() == {*IMAGE.manifests, *IMAGE.blobs}


def test_unverified(distrustful: Cache) -> None:
    """With tls-verify: false anybody is believed."""
    assert sync(distrustful, "tls-verify: false") == ""
    assert distrustful.blobs() == {*IMAGE.manifests, *IMAGE.blobs}


def test_clear_text(tmp_path: Path) -> None:
    """A registry that the service does not know, and that speaks no TLS, is found where that is allowed."""
    with LyingUpstream(tmp_path, clear=True) as upstream:
        upstream.registry.blobs = "direct"
        upstream.registry.put(NAME, IMAGE, "1")
        cache = Cache(tmp_path, upstream)
        host = "{}:{}".format(*upstream.registry.address)
        assert sync(cache, "tls-verify: false", host) == ""
        assert cache.blobs() == {*IMAGE.manifests, *IMAGE.blobs}
        assert (cache.data / "links" / host / NAME / "_tags" / "1").is_dir()


def test_ctrl_c_while_nobody_answers(cache: Cache, tmp_path: Path) -> None:
    """Registries that take connections and say nothing hold up no run that is interrupted."""
    listed = tmp_path / "images.yaml"
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        hosts = ["{}:{}".format(*each.getsockname()) for each in silent]
        listed.write_text("".join(f"{host}:\n  tls-verify: false\n  images: {{a/b: [c]}}\n" for host in hosts))
        command = [sys.executable, "-m", "mitm_cache", "--config", str(cache.file), "sync", "-f", str(listed)]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        for each in silent:
            each.settimeout(30)
        silent[0].accept()[0].close()  # it speaks no TLS
        stack.enter_context(silent[0].accept()[0])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=18)  # each is given twice 10 seconds otherwise
    assert process.returncode == 130
    assert b"Interrupted; the same command goes on from here." in err
