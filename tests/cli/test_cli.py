"""The command line as a whole: help, errors, examples."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mitm_cache.cli import main
from mitm_cache.registries import TABLE

ROOT = Path(__file__).parents[2]


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command there is, with its path."""
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk(inner, (*path, name))


COMMANDS = dict(walk(main))
every_command = pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "mitm-cache")


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Options for a data directory and a configuration of the test's own."""
    (tmp_path / "config.toml").touch()
    return f"--config {tmp_path / 'config.toml'} --data-dir {tmp_path / 'data'}"


@every_command
def test_help(path: tuple[str, ...]) -> None:
    """Every command helps, and asks for nothing to do so."""
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


@pytest.mark.parametrize("path", [path for path in COMMANDS if isinstance(COMMANDS[path], click.Group)], ids=" ".join)
def test_commands_in_whole_sentences(path: tuple[str, ...]) -> None:
    """A group's help says of each command what it does, and breaks off in no sentence."""
    told = " ".join(invoke(*path, "--help").output.partition("Commands:\n")[2].split())
    group = COMMANDS[path]
    assert isinstance(group, click.Group)
    for name, command in group.commands.items():
        assert command.help is not None
        sentence = re.split(r"\.\s", " ".join(command.help.split("\n\n")[0].split()) + " ")[0]
        assert f"{name} {sentence}".replace("-", "") in told.replace("- ", "").replace("-", "")


def test_short_help() -> None:
    """`-h` is understood by commands within commands too."""
    program = [sys.executable, "-m", "mitm_cache", "ca", "init", "-h"]
    assert "Usage: " in subprocess.run(program, capture_output=True, text=True, check=True).stdout


@every_command
def test_everything_is_described(path: tuple[str, ...]) -> None:
    """Every command and every option has a sentence that says what it is for."""
    command = COMMANDS[path]
    assert command.help
    assert command.help.split("\n\n")[0].rstrip().endswith((".", ":"))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.endswith("."), parameter.name


def test_commands() -> None:
    """The commands of this version."""
    assert {path for path in COMMANDS if len(path) == 1} == {
        ("serve",),
        ("reload",),
        ("demo",),
        ("status",),
        ("doctor",),
        ("why",),
        ("ca",),
        ("example",),
        ("addon-path",),
        ("setup",),
        ("user",),
        ("ls",),
        ("rm",),
        ("prune",),
        ("pin",),
        ("unpin",),
        ("completion",),
        ("verify",),
        ("export",),
        ("import",),
        ("pull",),
        ("sync",),
    }


@pytest.mark.parametrize(
    "program",
    [[sys.executable, "-m", "mitm_cache"], [str(Path(sys.executable).parent / "mitm-cache")]],
    ids=["-m", "script"],
)
def test_version(program: list[str], tmp_path: Path) -> None:
    """Both ways to start it tell the installed version."""
    done = subprocess.run([*program, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert version("mitm-cache") in done.stdout.split()
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            "[cache]\nsize = 1", "Error: cache.size is not a key of this version; allowed here: max_size", id="key"
        ),
        pytest.param('log.format = "xml"', "Error: log.format: 'xml' is not one of auto, text, json", id="value"),
        pytest.param("a = [", "is not TOML", id="syntax"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "ca show", "example hosts"])
def test_wrong_configuration(content: str, message: str, command: str, tmp_path: Path) -> None:
    """A wrong configuration ends every command with one line that says what is wrong: no traceback."""
    file = tmp_path / "config.toml"
    file.write_text(content)
    program = [sys.executable, "-m", "mitm_cache", "--config", str(file), *shlex.split(command)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("--config /nowhere.toml serve", "configuration /nowhere.toml cannot be read", id="no file"),
        pytest.param("--data-dir /dev/null/x ca show", "/dev/null/x", id="no folder"),
        pytest.param("--data-dir /proc serve", "data_dir /proc", id="foreign folder"),
    ],
)
def test_wrong_options(arguments: str, message: str, tmp_path: Path) -> None:
    """So it is with options."""
    program = [sys.executable, "-m", "mitm_cache", *shlex.split(arguments)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", ["serve --config /a.toml", "ca show --data-dir /a"])
def test_options_of_all_commands(arguments: str) -> None:
    """Behind the command they are refused, with a word on where they stand."""
    result = CliRunner().invoke(main, shlex.split(arguments))
    assert result.exit_code == 2
    option = next(word for word in arguments.split() if word.startswith("--"))
    command = arguments.partition(" ")[0]
    assert f"It stands before the command: mitm-cache {option} … {command}" in result.stderr


def test_environment(tmp_path: Path) -> None:
    """A wrong value in the environment is told by its key."""
    result = invoke("example", "hosts", MITM_CACHE_LOG_FORMAT="xml")
    assert result.exit_code == 1
    assert "log.format: 'xml'" in result.output


# Examples.


@pytest.mark.parametrize(
    ("command", "file"), [("hosts", "hosts.example"), ("daemon-json", "daemon.json.example")]
)  # fmt: skip
def test_examples_in_the_repository(command: str, file: str, data: str) -> None:
    """The files in the repository are what the command prints with the defaults."""
    assert invoke(*shlex.split(data), "example", command).output == (ROOT / file).read_text()


def hosts(options: str, *arguments: str) -> list[list[str]]:
    output = invoke(*shlex.split(options), "example", "hosts", *arguments).output
    return [line.split() for line in output.splitlines() if not line.startswith("#")]


def test_hosts_names_every_registry(data: str) -> None:
    """Each name of each registry leads to the address, once."""
    lines = hosts(data, "--address", "10.1.2.3")
    assert {line[0] for line in lines} == {"10.1.2.3"}
    names = [name for line in lines for name in line[1:]]
    assert sorted(names) == sorted({"docker.proxy", *(name for registry in TABLE for name in registry.names)})


def test_hosts_of_a_configuration(data: str, tmp_path: Path) -> None:
    """What is configured is in it: without ports, each name once, and no address where a name belongs."""
    (tmp_path / "config.toml").write_text(
        'names = ["cache.example", "10.0.0.5", "fd00::5"]\n'
        '[registries."r.example:5000"]\naliases = ["r.example:5001", "s.example"]\n'
        '[registries."10.0.0.9:5000"]\n'
    )
    lines = hosts(data, "--address", "fd00::1")
    assert ["fd00::1", "cache.example"] in lines
    assert ["fd00::1", "r.example", "s.example"] in lines
    for line in lines:
        assert len(line) > 1
        assert all(re.fullmatch(r"[a-z0-9.-]*[a-z][a-z0-9.-]*", name) for name in line[1:])


def test_the_registry_of_ones_own(data: str, tmp_path: Path) -> None:
    """Nodes are told of its names, but `localhost` stays their own, and `local` is no host."""
    (tmp_path / "config.toml").write_text('[local]\nnames = ["localhost:5000", "registry.lan", "mine/"]\n')
    names = [name for line in hosts(data) for name in line[1:]]
    assert "registry.lan" in names
    assert not {"local", "localhost", "mine"} & set(names)
    document = json.loads(invoke(*shlex.split(data), "example", "daemon-json").output)
    assert document["insecure-registries"][-2:] == ["localhost:5000", "registry.lan"]


def test_hosts_of_two_ports(data: str, tmp_path: Path) -> None:
    """Two registries on one host are one name: a hosts entry holds no port."""
    (tmp_path / "config.toml").write_text('[registries."r.example:1"]\n[registries."r.example:2"]\n')
    names = [name for line in hosts(data) for name in line[1:]]
    assert names.count("r.example") == 1


def test_daemon_json(data: str, tmp_path: Path) -> None:
    """Docker Hub by the mirror, every other registry insecure, with the ports that it is reached by."""
    (tmp_path / "config.toml").write_text('[registries."r.example:5000"]\n')
    arguments = ("example", "daemon-json", "--address", "fd00::1", "--port", "5001")
    document = json.loads(invoke(*shlex.split(data), *arguments).output)
    assert document["registry-mirrors"] == ["http://[fd00::1]:5001"]
    assert "r.example:5000" in document["insecure-registries"]
    assert "quay.io" in document["insecure-registries"]
    assert not [name for name in document["insecure-registries"] if "docker.io" in name]


def test_hosts_for_nodes_without_another_way_out(data: str) -> None:
    """With --no-egress the hosts that issue tokens lead to the cache as well, each once and beside its registry."""
    plain = invoke("--data-dir", data, "example", "hosts").output
    closed = invoke("--data-dir", data, "example", "hosts", "--no-egress").output
    assert "auth.docker.io" not in plain
    [hub] = [line for line in closed.splitlines() if " docker.io " in line]
    assert hub.endswith(" auth.docker.io")
    assert closed.count(" auth.docker.io") == 1
