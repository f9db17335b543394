"""Marks for tests that need more than Python: `pytestmark = [needs_root(), needs_tool("skopeo", package="skopeo")]`."""

import os
import shutil

import pytest

# An unprivileged user's PATH leaves out where Debian keeps daemons.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find_tool(name: str) -> str | None:
    """The path of a program, `sbin` directories included."""
    return shutil.which(name, path=_PATH)


def needs_tool(name: str, *, package: str) -> pytest.MarkDecorator:
    """Skip without the program `name`, which Debian has in `package`."""
    return pytest.mark.skipif(find_tool(name) is None, reason=f"needs {name}: apt-get install {package}")


def needs_root() -> pytest.MarkDecorator:
    """Skip unless root: network namespaces, mounts, ports below 1024."""
    return pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
