"""The configuration: one file, the environment and flags, merged once into one frozen value.

Every key is described in `docs/configuration.md`. An error names the key, the value, and what is allowed.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mitm_cache import parsing
from mitm_cache.config.reader import Reader
from mitm_cache.config.registries import Local, Upstream, read_local, read_registries
from mitm_cache.errors import ConfigError
from mitm_cache.parsing import Endpoint, Limit, Network, SyncRule
from mitm_cache.policy import Rule, read_rules
from mitm_cache.registries import LOCALHOST, Known
from mitm_cache.wire.proxies import Bypass, Proxy

SYSTEM_FILE = Path("/etc/mitm-cache/config.toml")
SYSTEM_DATA = Path("/var/lib/mitm-cache")
ENVIRONMENT = "MITM_CACHE_"
LISTENERS = ("tls", "clear", "connect", "mirror", "admin")
PORTS = {
    "tls": (443, 8443),
    "clear": (80, 8080),
    "connect": (3128, 3128),
    "mirror": (5000, 5000),
    "admin": (9500, 9500),
}
"""The ports of each listener: the one clients expect, and the one taken where low ports are not allowed."""
HOSTS = {"admin": "127.0.0.1"}
"""Where a listener listens unless it is told; the others do on every address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set. `listen` holds the listeners that the operator named; the others are defaults."""

    data_dir: Path
    ca_dir: Path
    names: tuple[str, ...]
    permit: tuple[str, ...]
    listen: Mapping[str, tuple[Endpoint, ...]]
    allow: tuple[Network, ...]
    connect_ports: tuple[int, ...]
    max_size: Limit
    min_free: Limit
    ca_file: Path | None
    resolvers: tuple[str, ...]
    allow_http: bool
    allow_private: bool
    known: Known
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    proxy: Proxy | None = None
    no_proxy: Bypass = field(default_factory=Bypass)
    log_format: str = "auto"
    workers: int = 1
    """Processes that serve; 0 is one for each processor."""
    drain: float = 30.0
    """Seconds that what is under way has when a process is to end."""
    policy: tuple[Rule, ...] = ()
    tag_ttl: float = 60.0
    offline: bool = False
    users_file: Path | None = None
    sync: tuple[SyncRule, ...] = ()
    local: Local = field(default_factory=Local)

    def is_offline(self, registry: str) -> bool:
        """Whether a registry is not to be asked for anything."""
        upstream = self.upstreams.get(registry)
        return self.offline or (upstream is not None and upstream.offline)

    def permitted_names(self) -> tuple[str, ...]:
        """What the CA may certify: every registry, the cache's own names, and what `ca.permit` adds.

        Of the local registry's hosts those that no node believes without TLS, unless they have a certificate.
        """
        hosts = [host.partition(":")[0] for one in self.known if not one.is_local for host in one.names]
        local = () if self.local.cert is not None else self.known.local_hosts
        hosts += [name for name in local if name not in self.clear_names()]
        return tuple(dict.fromkeys((*hosts, *self.names, *self.permit)))

    def clear_names(self) -> tuple[str, ...]:
        """The local registry's hosts that clients take without TLS, which they try all the same."""
        return tuple(name for name in self.known.local_hosts if name == LOCALHOST or parsing.is_address(name))


def load(
    *, file: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of `file` (or the system's, if it is there), the environment and flags, in rising weight.

    `flags` maps dotted keys such as `cache.max_size` to values. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    tree = _read(file)
    _overlay_environment(tree, environ)
    for key, value in (flags or {}).items():
        _put(tree, key, value)
    return _build(tree, environ)


def default_data_dir(environ: Mapping[str, str], system: Path = SYSTEM_DATA, user: int | None = None) -> Path:
    """`/var/lib/mitm-cache` for root and for the user whose it is, as the service's; else the XDG data directory.

    `system` stands for the former, and `user` for who runs this.
    """
    user = os.geteuid() if user is None else user
    folder = environ.get("XDG_DATA_HOME")
    if user == 0 or (not folder and _owner(system) == user):
        return system
    return Path(folder or Path(environ.get("HOME", "/")) / ".local/share") / "mitm-cache"


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _read(file: Path | None) -> dict[str, Any]:
    path = file or SYSTEM_FILE
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        repr(tree)  # any value may be shown in an error: a number that is too long for that has to tell now
    except OSError as error:
        if file is None and isinstance(error, FileNotFoundError):
            return {}
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib lets int() and its own depth speak for themselves
        raise ConfigError(f"configuration {path} is not TOML: {error}") from error
    return tree


def _overlay_environment(tree: dict[str, Any], environ: Mapping[str, str]) -> None:
    for key in KEYS:
        value = environ.get(ENVIRONMENT + key.replace(".", "_").upper())
        if value is not None:
            _put(tree, key, value)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    table = tree.setdefault(section, {}) if section else tree
    if not isinstance(table, dict):
        raise ConfigError(f"{section} is a table of keys, not {table!r}")
    table[name] = value


def _build(tree: dict[str, Any], environ: Mapping[str, str]) -> Config:
    top = Reader(tree, "")
    section = {name: Reader(top.take(name, parsing.table, {}), f"{name}.") for name in SECTIONS}
    data_dir = top.take("data_dir", parsing.path, default_data_dir(environ))
    local = read_local(section["local"])
    known, upstreams = read_registries(top.take("registries", parsing.table, {}), local)
    listen = {name: section["listen"].take(name, parsing.endpoints, None) for name in LISTENERS}
    config = Config(
        data_dir=data_dir,
        ca_dir=section["ca"].take("dir", parsing.path, data_dir / "ca"),
        names=top.take("names", parsing.names, ("docker.proxy",)),
        permit=section["ca"].take("permit", parsing.names, ()),
        listen={name: endpoints for name, endpoints in listen.items() if endpoints is not None},
        allow=section["clients"].take("allow", parsing.networks, parsing.networks("", ["loopback", "private"])),
        connect_ports=section["clients"].take("connect_ports", parsing.ports, (443,)),
        max_size=section["cache"].take("max_size", parsing.limit, Limit(share=0.8)),
        tag_ttl=section["cache"].take("tag_ttl", parsing.duration, 60.0),
        offline=section["cache"].take("offline", parsing.boolean, False),
        min_free=section["cache"].take("min_free", parsing.limit, Limit(share=0.05)),
        ca_file=section["upstream"].take("ca_file", parsing.file, None),
        resolvers=section["upstream"].take("resolvers", parsing.servers, ()),
        allow_http=section["upstream"].take("allow_http", parsing.boolean, False),
        allow_private=section["upstream"].take("allow_private", parsing.boolean, False),
        known=known,
        upstreams=upstreams,
        proxy=_default_proxy(section["upstream"], environ),
        no_proxy=_default_bypass(section["upstream"], environ),
        log_format=section["log"].take("format", parsing.log_format, "auto"),
        workers=section["serve"].take("workers", parsing.workers, 1),
        drain=section["serve"].take("drain", parsing.duration, 30.0),
        users_file=section["clients"].take("users_file", parsing.file, None),
        sync=top.take("sync", parsing.syncs, ()),
        local=local,
        policy=top.take("policy", lambda key, value: read_rules(key, value, known), ()),
    )
    if taken := next((name for name in config.names if known.find(name)), None):
        if taken in local.names:
            raise ConfigError(f"local.names: {taken!r} is the cache's own, by names; take another, or one with a port")
        raise ConfigError(f"names: {taken!r} is a registry; the cache's own names are others")
    top.finish(", ".join((*_TOP_KEYS, *SECTIONS, "registries", "policy", "sync")))
    for name, reader in section.items():
        reader.finish(", ".join(key.removeprefix(f"{name}.") for key in KEYS if key.startswith(f"{name}.")))
    return config


def _default_proxy(reader: Reader, environ: Mapping[str, str]) -> Proxy | None:
    """`upstream.proxy`, else what the environment says to every program: there a bare HOST:PORT is common."""
    if "proxy" in reader:
        return reader.take("proxy", parsing.proxy, None)
    name, value = _first(environ, "HTTPS_PROXY", "https_proxy")
    return parsing.proxy(name, value if "://" in value or not value else f"http://{value}")


def _default_bypass(reader: Reader, environ: Mapping[str, str]) -> Bypass:
    if "no_proxy" in reader:
        return reader.take("no_proxy", parsing.bypass, Bypass())
    return parsing.bypass(*_first(environ, "NO_PROXY", "no_proxy"))


def _first(environ: Mapping[str, str], *names: str) -> tuple[str, str]:
    return next(((name, environ[name].strip()) for name in names if environ.get(name)), (names[0], ""))


_TOP_KEYS = ("data_dir", "names")
KEYS = (
    *_TOP_KEYS,
    *(f"listen.{name}" for name in LISTENERS),
    "clients.allow",
    "clients.connect_ports",
    "clients.users_file",
    "cache.max_size",
    "cache.min_free",
    "cache.tag_ttl",
    "cache.offline",
    "upstream.ca_file",
    "upstream.resolvers",
    "upstream.allow_http",
    "upstream.proxy",
    "upstream.no_proxy",
    "upstream.allow_private",
    "log.format",
    "serve.workers",
    "serve.drain",
    "ca.dir",
    "ca.permit",
    "local.names",
    "local.max_size",
    "local.daemon",
    "local.cert",
    "local.key",
)
"""Every key that stands for itself; those of tables that are named, or of which there may be many, are elsewhere."""
SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS if "." in key))
