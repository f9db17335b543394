"""The compose files agree with the image, with the program and with each other."""

import json
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mitm_cache.config import LISTENERS, PORTS, SYSTEM_DATA, SYSTEM_FILE
from mitm_cache.config import load as configuration
from tests.deploy import containerfile

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LOCAL = ROOT / "docs" / "local.md"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(DEPLOY / name)
    return found


@pytest.fixture
def service() -> dict[str, Any]:
    found: dict[str, Any] = load("compose.yaml")["services"]["cache"]
    return found


def exposed() -> set[int]:
    return {int(port) for port in containerfile.instructions("EXPOSE")[0].split()}


def test_every_listener_is_exposed() -> None:
    """The image tells of each port that the program listens on."""
    assert {PORTS[name][0] for name in LISTENERS} <= exposed()


def test_published_ports(service: dict[str, Any]) -> None:
    """All of the image's ports but the admin listener's are published, each as itself."""
    pairs = [tuple(map(int, each.split(":"))) for each in service["ports"]]
    assert {inside for _, inside in pairs} == exposed() - {PORTS["admin"][0]}
    assert all(outside == inside for outside, inside in pairs)


def test_data_is_kept(service: dict[str, Any]) -> None:
    """A volume that is declared lies where the image and the program have their data."""
    mounts = dict(each.split(":")[:2] for each in service["volumes"])
    assert mounts == {"data": str(SYSTEM_DATA)}
    assert set(mounts) == set(load("compose.yaml")["volumes"])
    assert containerfile.instructions("VOLUME") == [str(SYSTEM_DATA)]
    assert f"XDG_DATA_HOME={SYSTEM_DATA.parent}" in containerfile.instructions("ENV")[0]


def test_the_hint_for_a_configuration(service: dict[str, Any]) -> None:
    """The line to take the comment off mounts the file that the program reads."""
    lines = (DEPLOY / "compose.yaml").read_text().splitlines()
    assert [line for line in lines if line.strip() == f"# - ./config.toml:{SYSTEM_FILE}:ro"]


def test_the_health_check_is_the_image_s(service: dict[str, Any]) -> None:
    """Said again for images in a format that knows none, and the same."""
    options, _, command = containerfile.instructions("HEALTHCHECK")[0].partition("CMD ")
    check = service["healthcheck"]
    assert check["test"] == ["CMD", *json.loads(command)]
    flags = dict(re.findall(r"--([a-z-]+)=(\S+)", options))
    assert flags == {key.replace("_", "-"): str(value) for key, value in check.items() if key != "test"}


def test_what_is_built(service: dict[str, Any]) -> None:
    """compose builds this repository's Containerfile."""
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == containerfile.FILE


def test_kind_is_the_same_service() -> None:
    """The override only adds networks to a service that there is, the cluster's as one made by somebody else."""
    override = load("compose.kind.yaml")
    assert set(override["services"]) <= set(load("compose.yaml")["services"])
    assert all(set(service) == {"networks"} for service in override["services"].values())
    assert override["networks"] == {"kind": {"external": True}}
    assert override["services"]["cache"]["networks"] == ["default", "kind"]


def test_the_one_for_clusters_is_as_safe(service: dict[str, Any]) -> None:
    """It differs in what is reached from where, and in the registry of one's own; in nothing that protects."""
    document = load("compose.local.yaml")
    local = document["services"]["cache"]
    other = {"ports", "networks", "container_name", "environment", "group_add", "volumes"}
    assert {key: value for key, value in local.items() if key not in other} == {
        key: value for key, value in service.items() if key not in other
    }
    assert local["ports"] == [f"127.0.0.1:{PORTS['mirror'][0]}:{PORTS['mirror'][0]}"]
    assert set(local["networks"]) == set(document["networks"])
    assert f"data:{SYSTEM_DATA}" in local["volumes"]


def test_its_names_are_what_it_is_called(tmp_path: Path) -> None:
    """The configuration that it sets loads; the names are where it is published, and what the nodes call it."""
    local = load("compose.local.yaml")["services"]["cache"]
    config = configuration(file=Path("/dev/null"), environ=local["environment"] | {"HOME": str(tmp_path)})
    registry = config.known.named("local")
    assert registry is not None
    port = PORTS["mirror"][0]
    assert registry.hosts == (f"localhost:{port}", f"{local['container_name']}:{port}")
    socket = config.local.daemon.removeprefix("unix://")
    assert f"{socket}:{socket}" in local["volumes"]


def test_the_line_in_the_documentation_is_the_same() -> None:
    """docs/local.md runs it by one command: the same settings, volumes and network."""
    (found,) = re.findall(r"^docker run .*?mitm-cache\n(?=```)", LOCAL.read_text(), re.MULTILINE | re.DOTALL)
    words = shlex.split(found)
    given = [(flag, value) for flag, value in pairwise(words) if flag.startswith("--")]
    local = load("compose.local.yaml")["services"]["cache"]
    assert {value for flag, value in given if flag == "--env"} == {
        f"{name}={value}" for name, value in local["environment"].items()
    }
    assert {value for flag, value in given if flag == "--volume"} == {
        each.replace("data:", "mitm-cache:") for each in local["volumes"]
    }
    assert ("--publish", local["ports"][0]) in given
    assert ("--name", local["container_name"]) in given
    assert ("--network", local["networks"][0]) in given


def test_the_build_gets_no_secret() -> None:
    """The context is a list of what is allowed, and all of it is in git: neither a CA nor .git can get in."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line.removeprefix("!") for line in lines[1:] if line.startswith("!")]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in allowed:
        assert any(each == path or each.startswith(f"{path}/") for each in tracked), path
    assert "certs" not in allowed
