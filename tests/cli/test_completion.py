"""`mitm-cache completion`, and what the shells that are here make of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mitm_cache.cli import main
from mitm_cache.demo.image import KIB, generate
from tests.stored import Stored

ONE = generate(sizes=[KIB], platforms=["linux/amd64"])


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    with Stored(tmp_path / "data") as stored:
        for name, tag in (("team/app", "1.2"), ("team/app", "1.3"), ("team/web", "1")):
            stored.put(name, tag, ONE)
        stored.put("library/alpine", "3", ONE, registry="docker.io")
        yield stored


def script(shell: str) -> str:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with the program under its name."""
    program = tmp_path / "bin" / "mitm-cache"
    program.parent.mkdir()
    code = "from mitm_cache.cli import main; main(prog_name='mitm-cache')"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("rm quay.io/team/a", ["quay.io/team/app:1.2", "quay.io/team/app:1.3"]),
        ("rm quay.io/team/app:", ["1.2", "1.3"]),
        ("rm quay.io/team/web:1 quay.io/team/app:1.3", ["1.3"]),
        ("why alp", ["alpine:3"]),
        ("pin docker.io/", ["docker.io/library/alpine:3"]),
        ("ls --j", ["--json"]),
        ("unp", ["unpin"]),
        ("rm none", []),
    ],
)
def test_bash(stored: Stored, path: str, typed: str, words: list[str]) -> None:
    """Names are completed past their colons, at which bash takes them apart."""
    line = f"mitm-cache --data-dir {stored.root} {typed}"
    ask = """
        set -eu
        eval "$SCRIPT"
        COMP_LINE=$LINE COMP_POINT=${#LINE}
        COMP_WORDBREAKS=$' \\t\\n"\\'@><=;|&(:'
        _mitm_cache_completion mitm-cache
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    environ = {**os.environ, "PATH": path, "SCRIPT": script("bash"), "LINE": line}
    done = subprocess.run(["bash", "-c", ask], env=environ, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (words, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_syntax(shell: str) -> None:
    """Each shell that is here can read its script, which names the program and no place of this machine."""
    text = script(shell)
    assert "mitm-cache" in text
    assert f"_MITM_CACHE_COMPLETE={shell}_complete" in text
    assert sys.prefix not in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_other_shells() -> None:
    """Those that are known are named."""
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert result.exit_code == 2
    assert "'bash', 'fish', 'zsh'" in result.stderr
