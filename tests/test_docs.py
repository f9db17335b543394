"""The documentation says what there is, no less and no more."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from mitm_cache import config, parsing, policy
from mitm_cache.cli import main
from mitm_cache.config import load
from mitm_cache.config.registries import REGISTRY_KEYS

ROOT = Path(__file__).parents[1]
SYNC_KEYS = {f"sync.{name}" for name in parsing.SYNC_KEYS}
CONFIGURATION = ROOT / "docs" / "configuration.md"
LOCAL = ROOT / "docs" / "local.md"


def block() -> str:
    """The example that shows every key."""
    found = re.search(r"^```toml\n(.*?)^```", CONFIGURATION.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def keys(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            for row in value:
                yield from keys(row, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_is_documented() -> None:
    """The example in the documentation holds every key, those of a registry and of a policy too, and no other."""
    documented = {re.sub(r"^registries\..*\.(\w+)$", r"registries.*.\1", key) for key in keys(tomllib.loads(block()))}
    registry_keys = {f"registries.*.{name}" for name in REGISTRY_KEYS}
    assert documented == {*config.KEYS, *registry_keys, *(f"policy.{name}" for name in policy.KEYS), *SYNC_KEYS}


def test_every_key_is_explained() -> None:
    """Each line of it says what the key is for."""
    for line in block().splitlines():
        if "=" in line.partition("#")[0]:
            assert len(line.partition("#")[2].split()) >= 2, line


def test_the_example_is_good(tmp_path: Path) -> None:
    """Who copies the example has a configuration that loads, and has the defaults where it shows them."""
    file = tmp_path / "config.toml"
    file.write_text(block())
    copied, default = load(file=file, environ={}), load(file=Path("/dev/null"), environ={})
    for name in ("names", "permit", "allow", "max_size", "ca_file", "resolvers", "allow_http", "log_format"):
        assert getattr(copied, name) == getattr(default, name), name


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(\[\[policy.*?)^```", CONFIGURATION.read_text(), re.M | re.S))
def test_examples_of_policy(tmp_path: Path, text: str) -> None:
    """Each example of a policy loads, and has as many rows as it shows."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert len(load(file=file, environ={}).policy) == text.count("[[policy]]")


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```", LOCAL.read_text(), re.M | re.S))
def test_examples_of_a_registry(tmp_path: Path, text: str) -> None:
    """Each example of a registry of one's own loads, beside one that names it."""
    file = tmp_path / "config.toml"
    text = text.replace("# config.toml\n", "")
    file.write_text(text if "[local]" in text else f'[local]\nnames = ["localhost:5000"]\n{text}')
    config = load(file=file, environ={})
    assert config.known.named("local") is not None
    assert len(config.policy) == text.count("[[policy]]")


def commands(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")
    else:
        yield path


@pytest.mark.parametrize("command", list(commands(main, "mitm-cache")))
def test_every_command_is_documented(command: str) -> None:
    """Each command stands in the README or in docs/, written as it is typed; in a row of them without the program."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pattern = re.compile(rf"(`|mitm-cache ){re.escape(command.removeprefix('mitm-cache '))}\b")
    assert [page.name for page in pages if pattern.search(page.read_text())]


def documented_commands() -> list[str]:
    text = "\n".join(page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
    return sorted({match[1] for match in re.finditer(r"`(mitm-cache [a-z][a-z-]*(?: [a-z][a-z-]*)?)", text)})


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_exist(command: str) -> None:
    """What the documentation tells to type is there."""
    found: click.Command = main
    for name in command.split()[1:]:
        if isinstance(found, click.Group):
            assert name in found.commands
            found = found.commands[name]
