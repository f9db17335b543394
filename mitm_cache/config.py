"""The configuration: one file, the environment and flags, merged once into one frozen value.

Every key is described in `docs/configuration.md`. An error names the key, the value, and what is allowed.
"""

import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from mitm_cache import parsing
from mitm_cache.errors import ConfigError
from mitm_cache.parsing import CredentialRule, Endpoint, Limit, Network, Rights, SyncRule
from mitm_cache.policy import Rule, read_rules
from mitm_cache.registries import LOCAL, LOCALHOST, TABLE, Known, Registry
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


@dataclass(frozen=True, slots=True)
class Upstream:
    """How one registry is reached, where the table does not say it all."""

    url: str = ""
    resolve: tuple[str, ...] = ()
    ca_file: Path | None = None
    proxy: Proxy | str = ""
    client_cert: Path | None = None
    insecure: bool = False
    rights: Rights = Rights.CLIENT
    credentials: tuple[CredentialRule, ...] = ()
    offline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The registry for images of one's own; without `names` there is none.

    `daemon`: the socket of a Docker daemon that is asked for images, "" for none; `cert` and `key`: PEM files for its
    names in place of a leaf of the CA.
    """

    names: tuple[str, ...] = ()
    max_size: Limit = field(default_factory=lambda: Limit(share=0.15))
    daemon: str = ""
    cert: Path | None = None
    key: Path | None = None


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
    local: Local = Local()

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


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`/var/lib/mitm-cache` for root, else the XDG data directory."""
    if os.geteuid() == 0:
        return SYSTEM_DATA
    home = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local/share")
    return Path(home) / "mitm-cache"


def _read(file: Path | None) -> dict[str, Any]:
    if file is None and not SYSTEM_FILE.exists():
        return {}
    path = file or SYSTEM_FILE
    try:
        tree = tomllib.loads(path.read_text())
        repr(tree)  # any value may be shown in an error: a number that is too long for that has to tell now
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib lets int() and its own depth speak for themselves
        raise ConfigError(f"configuration {path} is not TOML: {error}") from error
    return tree


def _overlay_environment(tree: dict[str, Any], environ: Mapping[str, str]) -> None:
    for key in _KEYS:
        value = environ.get(ENVIRONMENT + key.replace(".", "_").upper())
        if value is not None:
            _put(tree, key, value)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    table = tree.setdefault(section, {}) if section else tree
    if not isinstance(table, dict):
        raise ConfigError(f"{section} is a table of keys, not {table!r}")
    table[name] = value


class _Reader:
    """Takes keys out of one table; what is left over at the end is a mistake."""

    def __init__(self, table: Any, prefix: str) -> None:
        if not isinstance(table, dict):
            raise ConfigError(f"{prefix.rstrip('.')} is a table of keys, not {table!r}")
        self._table = dict(table)
        self._prefix = prefix

    def take[T, D](self, name: str, parse: Callable[[str, Any], T], default: D) -> T | D:
        if name not in self._table:
            return default
        return parse(self._prefix + name, self._table.pop(name))

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def copy(self) -> dict[str, Any]:
        """What has not been taken, as it was written."""
        return dict(self._table)

    def finish(self, allowed: str) -> None:
        if self._table:
            name = next(iter(self._table))
            raise ConfigError(f"{self._prefix}{name} is not a key of this version; allowed here: {allowed}")


def _build(tree: dict[str, Any], environ: Mapping[str, str]) -> Config:
    top = _Reader(tree, "")
    section = {name: _Reader(top.take(name, parsing.table, {}), f"{name}.") for name in _SECTIONS}
    data_dir = top.take("data_dir", parsing.path, default_data_dir(environ))
    local = _local(section["local"])
    known, upstreams = _registries(top.take("registries", parsing.table, {}), local)
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
    top.finish(", ".join((*_TOP_KEYS, *_SECTIONS, "registries", "policy", "sync")))
    for name, reader in section.items():
        reader.finish(", ".join(key.removeprefix(f"{name}.") for key in _KEYS if key.startswith(f"{name}.")))
    return config


def _default_proxy(reader: _Reader, environ: Mapping[str, str]) -> Proxy | None:
    """`upstream.proxy`, else what the environment says to every program: there a bare HOST:PORT is common."""
    if "proxy" in reader:
        return reader.take("proxy", parsing.proxy, None)
    name, value = _first(environ, "HTTPS_PROXY", "https_proxy")
    return parsing.proxy(name, value if "://" in value or not value else f"http://{value}")


def _default_bypass(reader: _Reader, environ: Mapping[str, str]) -> Bypass:
    if "no_proxy" in reader:
        return reader.take("no_proxy", parsing.bypass, Bypass())
    return parsing.bypass(*_first(environ, "NO_PROXY", "no_proxy"))


def _first(environ: Mapping[str, str], *names: str) -> tuple[str, str]:
    return next(((name, environ[name].strip()) for name in names if environ.get(name)), (names[0], ""))


_TOP_KEYS = ("data_dir", "names")
_KEYS = (
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
_DAEMON = re.compile(r"unix:///[!-~]+|tcp://[A-Za-z0-9.-]+:[0-9]{1,5}")
_SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in _KEYS if "." in key))
_REGISTRY_KEYS = (
    "url",
    "aliases",
    "prefix",
    "auth_hosts",
    "resolve",
    "ca_file",
    "proxy",
    "client_cert",
    "insecure",
    "rights",
    "credentials",
    "offline",
)


def _local(reader: _Reader) -> Local:
    written, default = reader.copy(), Local()
    local = Local(
        names=reader.take("names", _local_names, ()),
        max_size=reader.take("max_size", parsing.limit, default.max_size),
        daemon=reader.take("daemon", _daemon, ""),
        cert=reader.take("cert", parsing.file, None),
        key=reader.take("key", parsing.file, None),
    )
    if (local.cert is None) != (local.key is None):
        there, missing = ("cert", "key") if local.key is None else ("key", "cert")
        raise ConfigError(f"local.{missing} is missing: local.{there} is one half of a certificate and its key")
    idle = [name for name in ("max_size", "daemon", "cert", "key") if getattr(local, name) != getattr(default, name)]
    if idle and not local.names:
        need = "the registry for images of one's own, which local.names makes: set that too, such as 'localhost:5000'"
        raise ConfigError(f"local.{idle[0]}: {written[idle[0]]!r} does nothing without {need}")
    return local


def _local_names(key: str, value: Any) -> tuple[str, ...]:
    """Hosts, with a port or without, and at most one path prefix, which ends in a slash."""
    found = parsing.texts(key, value)
    paths = [text for text in found if "/" in text]
    if len(paths) > 1:
        raise ConfigError(f"{key}: {paths[1]!r} is a second path prefix; one is allowed, and any number of hosts")
    for text in found:
        if text not in paths:
            parsing.host(key, text.lower())
        elif text.count("/") > 1 or not text.endswith("/") or not parsing.prefix(key, text[:-1]):
            raise ConfigError(f"{key}: {text!r} is neither a host, as 'localhost:5000', nor a path prefix, as 'mine/'")
    return tuple(dict.fromkeys(text.lower() for text in found))


def _daemon(key: str, value: Any) -> str:
    if value == "" or (isinstance(value, str) and _DAEMON.fullmatch(value)):
        return str(value)
    raise ConfigError(f"{key}: {value!r} is not unix:///PATH, such as unix:///var/run/docker.sock, nor tcp://HOST:PORT")


def _registries(tables: dict[str, Any], local: Local) -> tuple[Known, dict[str, Upstream]]:
    registries = {registry.name: registry for registry in TABLE}
    if local.names:
        host, *aliases = [name for name in local.names if "/" not in name] or [LOCAL]
        prefix = "".join(name.rstrip("/") for name in local.names if "/" in name)
        registries[LOCAL] = Registry(LOCAL, host, tuple(aliases), prefix=prefix)
    upstreams = {}
    for name, table in tables.items():
        key = f"registries.{name}"
        parsing.host(key, name)
        if name == LOCAL or name in local.names:
            raise ConfigError(f"{key}: {name} is the registry for images of one's own; [local] is about it")
        base = next((known for known in TABLE if name in known.names), Registry(name, name))
        if base.name in upstreams:
            raise ConfigError(f"{key}: {base.name} is set already; keep what belongs to one registry in one table")
        reader = _Reader(table, f"{key}.")
        registries[base.name] = Registry(
            base.name,
            base.host,
            tuple(dict.fromkeys((*base.aliases, *reader.take("aliases", parsing.hosts, ())))),
            tuple(dict.fromkeys((*base.auth_hosts, *reader.take("auth_hosts", parsing.hosts, ())))),
            reader.take("prefix", parsing.prefix, base.prefix),
        )
        upstreams[base.name] = Upstream(
            url=reader.take("url", parsing.url, ""),
            resolve=reader.take("resolve", parsing.addresses, ()),
            ca_file=reader.take("ca_file", parsing.file, None),
            proxy=reader.take("proxy", parsing.registry_proxy, ""),
            client_cert=reader.take("client_cert", parsing.file, None),
            insecure=reader.take("insecure", parsing.boolean, False),
            rights=reader.take("rights", parsing.rights, Rights.CLIENT),
            credentials=reader.take("credentials", parsing.credentials, ()),
            offline=reader.take("offline", parsing.boolean, False),
        )
        if upstreams[base.name].rights is Rights.SHARED and not upstreams[base.name].credentials:
            raise ConfigError(f'{key}.rights: "shared" shares the credential of {key}.credentials, and there is none')
        reader.finish(", ".join(_REGISTRY_KEYS))
    _refuse_shared_names(local, registries.values())
    return Known(registries.values()), upstreams


def _refuse_shared_names(local: Local, registries: Collection[Registry]) -> None:
    for host, other in product(local.names, registries):
        if not other.is_local and other.has(host):
            free = "take one that is nobody's, such as 'registry.corp.example', 'localhost:5000' or 'mine/'"
            raise ConfigError(f"local.names: {host!r} belongs to the registry {other.name}; {free}")
    owners: dict[str, str] = {}
    for registry in registries:
        key = "local.names" if registry.is_local else f"registries.{registry.name}"
        for host in (*registry.names, *([registry.prefix] if registry.prefix else [])):
            if owners.setdefault(host, registry.name) != registry.name:
                raise ConfigError(f"{key}: {host} already means the registry {owners[host]}; take another name")
