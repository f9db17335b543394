"""`mitm-cache doctor` as it is typed: its exit status, its lines, its JSON."""

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mitm_cache.cli import main
from mitm_cache.demo.image import KIB, generate
from tests.fakes.registry import LyingUpstream
from tests.serving import LISTENERS, in_thread, settings


def invoke(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), "doctor", *arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose names are asked of nobody: no packet leaves this machine."""
    path = tmp_path / "doctor.toml"
    path.write_text(
        f'data_dir = "{tmp_path / "data"}"\n[upstream]\nresolvers = ["127.0.0.1:9"]\nproxy = ""\n'
        '[listen]\nadmin = ["127.0.0.1:9"]\n[registries."registry.demo"]\nurl = "https://127.0.0.1:9"\n'
    )
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--node", "--host"], "--node and --host exclude each other"),
        (["--cache", "not an address"], "is not an address or a host name"),
        (["--registry", "no/no registry!", "--node", "--registry", "-x"], "is not a registry or an image of one"),
        (["--ca", "/nowhere/ca.crt"], "does not exist"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_usage(config: Path, arguments: list[str], words: str) -> None:
    """A wrong command line is told, and ends with 2."""
    result = invoke(config, *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_nothing_here(config: Path) -> None:
    """A cache that does not run and never did fails with the cure; the end is 1."""
    result = invoke(config, "--host", "--registry", "registry.demo")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    for line, following in pairwise(lines):
        if line.startswith(("WARN", "FAIL", "SKIP")):
            assert following.strip().startswith("cure "), line
    assert any(line.startswith("FAIL  service") for line in lines)
    assert any("systemctl start mitm-cache" in line for line in lines)
    assert lines[-1].endswith("SKIP")


def test_well(tmp_path: Path) -> None:
    """A cache host that is well ends with 0, within its time; --json says the same for programs."""
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put("team/app", generate(sizes=[KIB], platforms=["linux/amd64"]), "1")
        with in_thread(tmp_path / "data", upstream, listen=(*LISTENERS, "admin")) as cache:
            host, port = cache.address("admin")
            text = settings(tmp_path / "data", upstream).replace("admin = []", f'admin = ["{host}:{port}"]')
            path = tmp_path / "doctor.toml"
            path.write_text(text)
            started = time.monotonic()
            result = invoke(path, "--host", "--registry", "registry.demo", "--json")
            assert time.monotonic() - started < 15
    assert result.exit_code == 0, result.output
    findings = json.loads(result.output)["findings"]
    assert {each["status"] for each in findings} <= {"OK", "SKIP", "WARN"}
    assert all(each["cure"] or each["status"] == "OK" for each in findings)
    assert {"check", "cure", "status", "subject", "words"} == set(findings[0])
    assert {each["check"] for each in findings} >= {"service", "loop", "upstream", "ca"}
