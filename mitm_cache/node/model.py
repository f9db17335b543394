"""What `mitm-cache setup` is asked for, and what a plan is made of."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Protocol, Self

from mitm_cache.errors import ConfigError
from mitm_cache.registries import Known

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)


class Target(StrEnum):
    """What is set up: a client, or the node's names alone."""

    DOCKER = "docker"
    CONTAINERD = "containerd"
    PODMAN = "podman"
    CRIO = "crio"
    K3S = "k3s"
    RKE2 = "rke2"
    KIND = "kind"
    K3D = "k3d"
    HOSTS = "hosts"


class Way(StrEnum):
    """How pulls get to the cache."""

    HOSTS = "hosts"
    CONNECT = "connect"
    MIRROR = "mirror"


class Trust(StrEnum):
    """Why the client believes the cache: it has the CA, or it does not verify."""

    CA = "ca"
    INSECURE = "insecure"


class Store(StrEnum):
    """Where the CA goes: to the store that all programs of the node read, or to the client's own folders."""

    SYSTEM = "system"
    CLIENT = "client"


WAYS: Mapping[Target, tuple[Way, ...]] = {
    Target.KIND: (Way.MIRROR,),
    Target.K3D: (Way.MIRROR,),
    Target.HOSTS: (Way.HOSTS,),
} | dict.fromkeys(
    (Target.DOCKER, Target.CONTAINERD, Target.PODMAN, Target.CRIO, Target.K3S, Target.RKE2),
    (Way.HOSTS, Way.CONNECT, Way.MIRROR),
)
"""The ways that there are for each target, the usual one first."""
LOCAL = (Target.KIND, Target.K3D)
"""Clusters whose nodes are containers: `localhost` is themselves there, not the machine that images are pushed on."""


@dataclass(frozen=True, slots=True)
class Cache:
    """The address of a cache: a host name or an IP address, and a port where it is not the listener's usual one."""

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host`, `host:port`, an IPv6 address, or `[IPv6]:port`. Raises ConfigError."""
        host, port = text.strip(), ""
        if host.startswith("["):
            host, bracket, rest = host[1:].partition("]")
            port = rest.removeprefix(":")
            good = bool(bracket) and ":" in host and (not rest or rest.startswith(":"))
            good = good and (not rest or bool(port))
        elif host.count(":") == 1:
            host, _, port = host.partition(":")
            good = bool(port)
        else:
            good = True
        if good and (port == "" or _is_port(port)) and (_address(host) or (_NAME.fullmatch(host) and not _odd(host))):
            return cls(str(_address(host) or host.lower()), int(port) if port else None)
        raise ConfigError(
            f"--cache {text!r} is not the address of a cache: an IP address or a host name, with :PORT if need be "
            "(an IPv6 address with a port is written [ADDRESS]:PORT); no URL"
        )

    @property
    def is_address(self) -> bool:
        """Whether this is an IP address rather than a name."""
        return _address(self.host) is not None

    def at(self, port: int) -> str:
        """`host:port`, with the port of its own if it has one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port or port}"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if "%" in text else found


def _odd(name: str) -> bool:
    """Whether a name is an address with a mistake in it: no top-level domain is a number."""
    return name.rpartition(".")[2].isdecimal()


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65535


@dataclass(frozen=True, slots=True)
class Certificate:
    """The cache's CA: PEM text and the SHA-256 of its DER form, upper case with colons."""

    pem: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One request for a set-up, checked: `of` makes it."""

    target: Target
    way: Way
    trust: Trust
    caches: tuple[Cache, ...]
    known: Known
    names: tuple[str, ...] = ()
    store: Store = Store.SYSTEM
    certificate: Certificate | None = None
    token_hosts: bool = False
    no_proxy: tuple[str, ...] = ()
    mirror_port: int = 5000
    connect_port: int = 3128
    file: str = ""
    containerd: int | None = None
    local: tuple[str, ...] = ()
    """Names of the cache's own registry, as image names begin with them: for clusters on the cache's machine."""
    enter: str = ""
    """How a command is run in the control plane of a kind cluster, such as `docker exec kind-control-plane`."""

    def __post_init__(self) -> None:
        allowed = WAYS[self.target]
        if self.way not in allowed:
            raise ConfigError(f"--way {self.way} is not for {self.target}; allowed here: {', '.join(allowed)}")
        if not self.caches:
            raise ConfigError("give the address of the cache: --cache ADDRESS (once for each cache)")
        if self.local and self.target not in LOCAL:
            raise ConfigError(f"--local is for {' and '.join(LOCAL)}; other nodes reach it as they do every registry")
        if self.way is Way.HOSTS:
            for cache in self.caches:
                if not cache.is_address:
                    raise ConfigError(f"--cache {cache.host}: /etc/hosts holds addresses, not names; give its address")
                if cache.port is not None:
                    raise ConfigError(f"--cache {cache.at(0)}: /etc/hosts holds no port; the cache needs 443 and 80")
        if self.way is Way.CONNECT and len(self.caches) > 1:
            raise ConfigError(
                "--way connect takes one --cache, since HTTPS_PROXY names one; a host name with an address for each "
                "cache will do"
            )
        if self.needs_ca and self.certificate is None:
            raise ConfigError(
                "--trust ca needs the cache's CA: give --ca FILE (`mitm-cache ca export` writes it on the cache), or "
                "--fingerprint SHA256 (`mitm-cache ca show` tells it) to fetch it from the cache and check it; or "
                "choose --trust insecure"
            )

    @property
    def needs_ca(self) -> bool:
        """The mirror listener speaks plain HTTP, so there is nothing to trust on that way."""
        return self.trust is Trust.CA and self.way is not Way.MIRROR

    @property
    def mirrors(self) -> tuple[str, ...]:
        """`host:port` of each cache's mirror listener."""
        # On the other ways a port of its own is that way's.
        caches = self.caches if self.way is Way.MIRROR else tuple(Cache(cache.host) for cache in self.caches)
        return tuple(cache.at(self.mirror_port) for cache in caches)

    @property
    def proxy(self) -> str:
        """The URL of the connect listener."""
        return f"http://{self.caches[0].at(self.connect_port)}"


class Order(IntEnum):
    """When a step comes, after the files are written."""

    STORE = 0
    UNITS = 1
    RESTART = 2


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """A command that makes a change take effect, or its undoing.

    Restarts wait for --restart; the CA store is updated at once.
    """

    order: Order
    command: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.command)


@dataclass(frozen=True, slots=True)
class Change:
    """What a file of the node should hold, and the steps that a change of it asks for."""

    path: str
    text: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All files of one set-up, those that hold it already included, and what a person should know about it."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Draft:
    """A plan in the making."""

    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def put(self, path: str, text: str, *steps: Step) -> None:
        """Want a file to hold this text."""
        self.changes.append(Change(path, text, steps))

    def note(self, text: str) -> None:
        """Tell the reader of the plan."""
        self.notes.append(text)

    def plan(self) -> Plan:
        return Plan(tuple(self.changes), tuple(self.notes))


class Files(Protocol):
    """A node's files by absolute path, as text: UTF-8, where bytes that are none survive as surrogates."""

    def read(self, path: str) -> str | None:
        """The text of a file, or None where there is none. Raises ConfigError where it cannot be read."""

    def names(self, folder: str) -> tuple[str, ...]:
        """The names in a folder, sorted; none where there is no such folder."""


def restart(service: str) -> Step:
    """Restart a service of systemd."""
    return Step(Order.RESTART, ("systemctl", "restart", service))


def reload(service: str) -> Step:
    """Have a service read its configuration anew, which stops nothing."""
    return Step(Order.RESTART, ("systemctl", "reload", service))


RELOAD_UNITS = Step(Order.UNITS, ("systemctl", "daemon-reload"))
