"""What setup takes and what it refuses, with a word on what would do."""

from typing import Any

import pytest

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import Cache
from tests.node.memory import settings


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("10.0.0.5", "10.0.0.5", None, "10.0.0.5:5000"),
        ("10.0.0.5:5001", "10.0.0.5", 5001, "10.0.0.5:5001"),
        ("Cache.LAN", "cache.lan", None, "cache.lan:5000"),
        ("cache.lan:80", "cache.lan", 80, "cache.lan:80"),
        ("fd00::1", "fd00::1", None, "[fd00::1]:5000"),
        ("[fd00::1]", "fd00::1", None, "[fd00::1]:5000"),
        ("[FD00::1]:81", "fd00::1", 81, "[fd00::1]:81"),
    ],
)
def test_a_cache(text: str, host: str, port: int | None, shown: str) -> None:
    """Addresses of both families and names, with a port and without."""
    cache = Cache.parse(text)
    assert cache == Cache(host, port)
    assert cache.at(5000) == shown


@pytest.mark.parametrize(
    "text",
    ["", "http://10.0.0.5", "10.0.0.5:", "10.0.0.5:0", "10.0.0.5:99999", "10.0.0.256", "a b", "[10.0.0.5]:80",
     "[fd00::1", "[fd00::1]80", "[fd00::1]:", "fe80::1%eth0", "a..b", "-", "x\ny", "cache.lan/x", "1.2.3"],
)  # fmt: skip
def test_no_cache(text: str) -> None:
    """Anything else is refused with what is allowed."""
    with pytest.raises(ConfigError, match="is not the address of a cache"):
        Cache.parse(text)


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        (("kind", "hosts", "ca"), {}, "--way hosts is not for kind; allowed here: mirror"),
        (("hosts", "mirror", "ca"), {}, "allowed here: hosts"),
        (("docker", "hosts", "ca", "cache.lan"), {}, "holds addresses, not names"),
        (("docker", "hosts", "ca", "10.0.0.5:443"), {}, "holds no port"),
        (("docker", "connect", "ca", "10.0.0.5", "10.0.0.6"), {}, "takes one --cache"),
        (("docker", "hosts", "ca"), {"certificate": None}, "give --ca FILE"),
    ],
)
def test_settings_that_make_no_sense(arguments: tuple[str, ...], more: dict[str, Any], words: str) -> None:
    """Each says what is wrong and what to give instead."""
    with pytest.raises(ConfigError, match=words):
        settings(*arguments, **more)


def test_no_ca_is_needed_where_none_is_verified() -> None:
    """Neither for a mirror, which speaks plain HTTP, nor for registries that are not verified."""
    assert not settings("podman", "mirror", certificate=None).needs_ca
    assert not settings("podman", "hosts", "insecure", certificate=None).needs_ca
