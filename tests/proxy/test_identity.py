"""Whose request is it: the listener, the SNI and the Host header against the table of registries."""

import pytest

from mitm_cache.errors import ClientError
from mitm_cache.proxy.identity import Arrival, identify, split_host
from mitm_cache.registries import DOCKER_HUB, Known, Registry

QUAY = Registry("quay.io", "quay.io")
PORTED = Registry("registry.corp:5000", "registry.corp:5000")
TARGET = "/v2/team/app/manifests/1?a=b"
KNOWN = Known([DOCKER_HUB, QUAY, PORTED])


def tls(sni: str | None, port: int = 443) -> Arrival:
    return Arrival("tls", port, sni)


def clear(port: int = 80) -> Arrival:
    return Arrival("clear", port, None)


def mirror(port: int = 5000) -> Arrival:
    return Arrival("mirror", port, None)


@pytest.mark.parametrize(
    ("arrival", "host", "name"),
    [
        (tls("quay.io"), "quay.io", "quay.io"),
        (tls("quay.io"), "quay.io:443", "quay.io"),
        (tls("quay.io", 8443), "quay.io:8443", "quay.io"),
        (tls("quay.io", 8443), "quay.io:443", "quay.io"),
        (tls("quay.io"), "quay.io:", "quay.io"),
        (tls("quay.io"), "QUAY.io", "quay.io"),
        (tls("quay.io"), "quay.io.", "quay.io"),
        (tls("quay.io"), " quay.io ", "quay.io"),
        (tls("registry-1.docker.io"), "registry-1.docker.io", "docker.io"),
        (tls("index.docker.io"), "index.docker.io", "docker.io"),
        (tls("registry.corp"), "registry.corp:5000", "registry.corp:5000"),
        (clear(), "quay.io", "quay.io"),
        (clear(), "quay.io:80", "quay.io"),
        (clear(8080), "quay.io:8080", "quay.io"),
        (clear(), "registry.corp:5000", "registry.corp:5000"),
        (mirror(), "anything.example", "docker.io"),
        (mirror(), "192.0.2.7:5000", "docker.io"),
        (mirror(), "[2001:db8::1]:5000", "docker.io"),
        (mirror(), "quay.io", "quay.io"),
    ],
    ids=str,
)
def test_served(arrival: Arrival, host: str, name: str) -> None:
    """A known host, on the port of its scheme or the one that was bound; the mirror is Docker Hub's by other names."""
    place = identify(arrival, [host], TARGET, KNOWN)
    assert place is not None
    assert (place.registry.name, place.target) == (name, TARGET)


@pytest.mark.parametrize(
    ("arrival", "hosts", "status"),
    [
        (tls("quay.io"), ["evil.example"], 421),
        (tls("quay.io"), ["docker.io"], 421),
        (tls("quay.io"), ["registry.corp:5000"], 421),
        (tls("quay.io"), ["quay.io.evil.example"], 421),
        (tls("quay.io"), ["x.quay.io"], 421),
        (tls("quay.io"), ["127.0.0.1"], 421),
        (tls(""), ["quay.io"], 421),
        (tls("evil.example"), ["evil.example"], 404),
        (tls("quay.io"), ["quay.io:80"], 404),
        (tls("quay.io"), ["quay.io:5000"], 404),
        (tls("registry.corp"), ["registry.corp"], 404),
        (clear(), ["evil.example"], 404),
        (clear(), ["quay.io:443"], 404),
        (clear(), ["10.0.0.1"], 404),
        (tls("quay.io"), [], 400),
        (tls("quay.io"), ["quay.io", "quay.io"], 400),
        (tls("quay.io"), ["quay.io", "evil.example"], 400),
        (clear(), [], 400),
        (mirror(), [], 400),
        (mirror(), ["a", "b"], 400),
        (mirror(), [""], 400),
    ],
    ids=str,
)
def test_refused(arrival: Arrival, hosts: list[str], status: int) -> None:
    """421 where Host is not the name of the handshake, 404 for a stranger, 400 without exactly one Host."""
    with pytest.raises(ClientError) as caught:
        identify(arrival, hosts, TARGET, KNOWN)
    assert caught.value.status == status


def test_a_stranger_learns_what_to_do() -> None:
    """404 names the host, shortened, and where it would be configured."""
    with pytest.raises(ClientError, match=r"'x{128}' is not a registry .*\[registries\]") as caught:
        identify(clear(), ["x" * 300], TARGET, KNOWN)
    assert caught.value.code == "NAME_UNKNOWN"


@pytest.mark.parametrize(
    ("value", "split"),
    [
        ("quay.io", ("quay.io", None)),
        ("Quay.IO:443", ("quay.io", 443)),
        ("quay.io.:443", ("quay.io", 443)),
        ("[::1]", ("[::1]", None)),
        ("[::1]:5000", ("[::1]", 5000)),
        ("10.0.0.1:5000", ("10.0.0.1", 5000)),
    ],
)
def test_split_host(value: str, split: tuple[str, int | None]) -> None:
    """Name in lower case without its last dot, and port."""
    assert split_host(value) == split


@pytest.mark.parametrize(
    "value",
    [
        "", ":443", "quay.io:x", "quay.io:-1", "quay.io:4 3", "quay.io:\xb2", "quay.io:\uff14", "quay.io:" + "9" * 5000,
        "user@quay.io", "quay.io/v2", "quay.io?x", "quay.io#x", "quay io", "quay.io\\x", "quay.io,evil.example", "a\tb",
    ],
    ids=ascii,
)  # fmt: skip
def test_split_host_refuses(value: str) -> None:
    """Anything but a name and a port is 400, never an exception of another kind."""
    with pytest.raises(ClientError) as caught:
        split_host(value)
    assert caught.value.status == 400
