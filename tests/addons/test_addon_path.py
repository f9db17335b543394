"""`mitm-cache addon-path`, in a checkout and installed from a wheel; and the names of the scripts."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.addons.mitmdump import ADDONS, NAMES, ROOT


def addon_path(*, cwd: Path, **environment: str) -> str:
    program = [sys.executable, "-m", "mitm_cache", "addon-path"]
    environ = {**os.environ, **environment}
    return subprocess.run(program, cwd=cwd, env=environ, check=True, capture_output=True, text=True).stdout


def test_in_a_checkout(tmp_path: Path) -> None:
    """The checkout's own folder, from wherever one asks."""
    assert addon_path(cwd=tmp_path, PYTHONPATH=str(ROOT)) == f"{ADDONS}\n"


def test_from_a_wheel(tmp_path: Path) -> None:
    """The wheel holds the scripts as they are, and the command finds where they went."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    prefix = tmp_path / "prefix"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--ignore-installed", f"--prefix={prefix}", str(wheel)], check=True, capture_output=True)
    [package] = prefix.glob("lib/python*/site-packages")
    found = Path(addon_path(cwd=tmp_path, PYTHONPATH=str(package)).strip())
    assert found == prefix / "share" / "mitm-cache" / "addons"
    assert {path.name: path.read_text() for path in found.iterdir() if path.is_file()} == {
        path.name: path.read_text() for path in ADDONS.iterdir() if path.is_file()
    }


def test_every_script_is_there() -> None:
    """The names that the documentation and the tests know are all there are."""
    assert {path.stem for path in ADDONS.glob("*.py")} == set(NAMES)
    for name in NAMES:
        assert f"{name}.py" in (ADDONS / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_no_name_hides_a_module(name: str) -> None:
    """mitmproxy puts a script's folder before all other modules."""
    assert importlib.util.find_spec(name) is None
    assert name not in sys.stdlib_module_names
