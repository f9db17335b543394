"""The table of registries, and how one is found."""

import re
from collections import Counter

import pytest

from mitm_cache.registries import DOCKER_HUB, TABLE, Known, Registry


def test_names_are_unique() -> None:
    """No host name means two registries, and no registry issues another's tokens by its own name."""
    names = Counter(name for registry in TABLE for name in registry.names)
    assert [name for name, count in names.items() if count > 1] == []
    for registry in TABLE:
        assert not set(registry.auth_hosts) & set(names)


@pytest.mark.parametrize("registry", TABLE, ids=[registry.name for registry in TABLE])
def test_names_are_host_names(registry: Registry) -> None:
    """Every name is a plain lower-case host name, so that DNS, certificates and folders take it."""
    for name in (*registry.names, *registry.auth_hosts):
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", name)


def test_names_without_repetition() -> None:
    """A registry whose API is at its own name has that name once."""
    assert Registry("a.example", "a.example", aliases=("b.example", "a.example")).names == ("a.example", "b.example")


@pytest.mark.parametrize(
    "host",
    ["docker.io", "registry-1.docker.io", "index.docker.io", "registry.hub.docker.com", "Registry-1.Docker.IO",
     "docker.io.", "INDEX.docker.io."],
)  # fmt: skip
def test_docker_hub(host: str) -> None:
    """Docker Hub's many names are one registry, in any case and as a full DNS name."""
    assert Known(TABLE).find(host) is DOCKER_HUB


KNOWN = Known([*TABLE, Registry("h.example:5000", "h.example:5000", aliases=("mirror.example",))])


@pytest.mark.parametrize(
    ("host", "name"),
    [
        pytest.param("h.example:5000", "h.example:5000", id="with its port"),
        pytest.param("H.Example:5000", "h.example:5000", id="in another case"),
        pytest.param("h.example.:5000", "h.example:5000", id="as a full DNS name"),
        pytest.param("mirror.example", "h.example:5000", id="alias"),
        pytest.param("h.example", None, id="without its port"),
        pytest.param("h.example:5001", None, id="another port"),
        pytest.param("quay.io:443", None, id="the usual port spelt out"),
        pytest.param("evil.quay.io", None, id="below"),
        pytest.param("auth.docker.io", None, id="token host"),
        pytest.param("", None, id="empty"),
        pytest.param(".", None, id="dot"),
    ],
)
def test_find(host: str, name: str | None) -> None:
    """A host means a registry by exactly one of its names, port included."""
    found = KNOWN.find(host)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("host", "port", "name"),
    [
        ("quay.io", 443, "quay.io"),
        ("Quay.IO.", 443, "quay.io"),
        ("quay.io", 8443, None),
        ("h.example", 5000, "h.example:5000"),
        ("h.example", 443, None),
        ("mirror.example", 443, "h.example:5000"),
        ("evil.example", 443, None),
    ],
)
def test_at(host: str, port: int, name: str | None) -> None:
    """What CONNECT names is a registry at its own port, which is 443 unless its name says otherwise."""
    found = KNOWN.at(host, port)
    assert (found and found.name) == name


def test_server_names() -> None:
    """TLS is asked for names without ports."""
    assert {"quay.io", "docker.io", "h.example", "mirror.example"} <= KNOWN.server_names
    assert not any(":" in name for name in KNOWN.server_names)


def test_named() -> None:
    """A canonical name finds its registry; an alias is none."""
    assert KNOWN.named("docker.io") is DOCKER_HUB
    assert KNOWN.named("index.docker.io") is None
    assert KNOWN.named("h.example") is None


def test_hosts() -> None:
    """A node may send here exactly what find knows, and each registry comes once."""
    assert all(KNOWN.find(host) for host in KNOWN.hosts)
    assert len(set(KNOWN.hosts)) == len(KNOWN.hosts)
    assert {name for registry in KNOWN for name in registry.names} == set(KNOWN.hosts)
    assert [registry.name for registry in KNOWN] == [*(registry.name for registry in TABLE), "h.example:5000"]


def test_the_registry_of_ones_own() -> None:
    """`local` means it here, and nodes are told of the names that are hosts."""
    known = Known([Registry("local", "localhost:5000", aliases=("registry.lan", "registry.lan:5000"), prefix="mine")])
    local = known.named("local")
    assert local is not None
    assert local.is_local
    assert not DOCKER_HUB.is_local
    assert all(known.find(name) is local for name in ("local", "localhost:5000", "registry.lan"))
    assert local.hosts == ("localhost:5000", "registry.lan", "registry.lan:5000")
    assert DOCKER_HUB.hosts == DOCKER_HUB.names
    assert known.local_hosts == ("localhost", "registry.lan")
    assert Known([DOCKER_HUB]).local_hosts == ()
    assert Registry("local", "local", prefix="mine").hosts == ()
