"""The configuration: one file, the environment and flags, merged once into one frozen value.

Every key is described in `docs/configuration.md`. An error names the key, the value, and what is allowed.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mitm_cache.errors import ConfigError
from mitm_cache.registries import TABLE, Known, Registry

SYSTEM_FILE = Path("/etc/mitm-cache/config.toml")
SYSTEM_DATA = Path("/var/lib/mitm-cache")
ENVIRONMENT = "MITM_CACHE_"
LISTENERS = ("tls", "clear", "mirror", "admin")
PORTS = {"tls": (443, 8443), "clear": (80, 8080), "mirror": (5000, 5000), "admin": (9500, 9500)}
"""The ports of each listener: the one clients expect, and the one taken where low ports are not allowed."""
HOSTS = {"admin": "127.0.0.1"}
"""Where a listener listens unless it is told; the others do on every address."""
LOG_FORMATS = ("auto", "text", "json")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(?:(%)|([KMGT]?)(?:i?B)?)", re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network
type Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to listen: an address, or "" for all of them, and a port (0: any that is free)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limit:
    """A size limit: bytes, or a part of the file system."""

    bytes: int = 0
    share: float = 0.0

    def of(self, disk: int) -> int:
        """The limit in bytes, on a file system of `disk` bytes."""
        return self.bytes or int(disk * self.share)


@dataclass(frozen=True, slots=True)
class Upstream:
    """How one registry is reached, where the table does not say it all."""

    url: str = ""
    resolve: tuple[str, ...] = ()
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set. `listen` holds the listeners that the operator named; the others are defaults."""

    data_dir: Path
    ca_dir: Path
    names: tuple[str, ...]
    permit: tuple[str, ...]
    listen: Mapping[str, tuple[Endpoint, ...]]
    allow: tuple[Network, ...]
    max_size: Limit
    ca_file: Path | None
    resolvers: tuple[str, ...]
    allow_http: bool
    known: Known
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    log_format: str = "auto"

    def permitted_names(self) -> tuple[str, ...]:
        """What the CA may certify: every registry, the cache's own names, and what `ca.permit` adds."""
        hosts = (host.partition(":")[0] for host in self.known.hosts)
        return tuple(dict.fromkeys((*hosts, *self.names, *self.permit)))


_NAMED_NETWORKS: dict[str, tuple[str, ...]] = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"),
    "any": ("0.0.0.0/0", "::/0"),
}


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
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib lets int() and its own depth speak for themselves
        raise ConfigError(f"configuration {path} is not TOML: {error}") from error


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

    def finish(self, allowed: str) -> None:
        if self._table:
            name = next(iter(self._table))
            raise ConfigError(f"{self._prefix}{name} is not a key of this version; allowed here: {allowed}")


def _build(tree: dict[str, Any], environ: Mapping[str, str]) -> Config:
    top = _Reader(tree, "")
    section = {name: _Reader(top.take(name, _table, {}), f"{name}.") for name in _SECTIONS}
    data_dir = top.take("data_dir", _path, default_data_dir(environ))
    known, upstreams = _registries(top.take("registries", _table, {}))
    listen = {name: section["listen"].take(name, _endpoints, None) for name in LISTENERS}
    config = Config(
        data_dir=data_dir,
        ca_dir=section["ca"].take("dir", _path, data_dir / "ca"),
        names=top.take("names", _names, ("docker.proxy",)),
        permit=section["ca"].take("permit", _names, ()),
        listen={name: endpoints for name, endpoints in listen.items() if endpoints is not None},
        allow=section["clients"].take("allow", _networks, _networks("", ["loopback", "private"])),
        max_size=section["cache"].take("max_size", _limit, Limit(share=0.8)),
        ca_file=section["upstream"].take("ca_file", _file, None),
        resolvers=section["upstream"].take("resolvers", _servers, ()),
        allow_http=section["upstream"].take("allow_http", _boolean, False),
        known=known,
        upstreams=upstreams,
        log_format=section["log"].take("format", _log_format, "auto"),
    )
    top.finish(", ".join((*_TOP_KEYS, *_SECTIONS, "registries")))
    for name, reader in section.items():
        reader.finish(", ".join(key.removeprefix(f"{name}.") for key in _KEYS if key.startswith(f"{name}.")))
    return config


_TOP_KEYS = ("data_dir", "names")
_KEYS = (
    *_TOP_KEYS,
    *(f"listen.{name}" for name in LISTENERS),
    "clients.allow",
    "cache.max_size",
    "upstream.ca_file",
    "upstream.resolvers",
    "upstream.allow_http",
    "log.format",
    "ca.dir",
    "ca.permit",
)
_SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in _KEYS if "." in key))
_REGISTRY_KEYS = ("url", "aliases", "auth_hosts", "resolve", "ca_file")


def _registries(tables: dict[str, Any]) -> tuple[Known, dict[str, Upstream]]:
    registries = {registry.name: registry for registry in TABLE}
    upstreams = {}
    for name, table in tables.items():
        key = f"registries.{name}"
        _host(key, name)
        base = next((known for known in TABLE if name in known.names), Registry(name, name))
        if base.name in upstreams:
            raise ConfigError(f"{key}: {base.name} is set already; keep what belongs to one registry in one table")
        reader = _Reader(table, f"{key}.")
        registries[base.name] = Registry(
            base.name,
            base.host,
            tuple(dict.fromkeys((*base.aliases, *reader.take("aliases", _hosts, ())))),
            tuple(dict.fromkeys((*base.auth_hosts, *reader.take("auth_hosts", _hosts, ())))),
        )
        upstreams[base.name] = Upstream(
            reader.take("url", _url, ""), reader.take("resolve", _addresses, ()), reader.take("ca_file", _file, None)
        )
        reader.finish(", ".join(_REGISTRY_KEYS))
    _refuse_shared_names(registries.values())
    return Known(registries.values()), upstreams


def _refuse_shared_names(registries: Any) -> None:
    owners: dict[str, str] = {}
    for registry in registries:
        for host in registry.names:
            if owners.setdefault(host, registry.name) != registry.name:
                raise ConfigError(f"registries.{registry.name}: {host} already means {owners[host]}")


def _table(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key} is a table of keys, not {value!r}")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or one text with commas as in the environment."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ConfigError(f"{key} is a list of texts, not {value!r}")


def _path(key: str, value: Any) -> Path:
    try:
        if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
            return Path(value).expanduser()
    except RuntimeError:
        pass  # ~user, and there is no such user
    raise ConfigError(f"{key} is a path, not {value!r}")


def _file(key: str, value: Any) -> Path | None:
    """A file, or "" for none."""
    return None if value == "" else _path(key, value)


def _boolean(key: str, value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ConfigError(f"{key} is true or false, not {value!r}")


def _host(key: str, value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ConfigError(f"{key}: {value!r} is not a host name (lower case, with :port where it is not 443)")
    return value


def _hosts(key: str, value: Any) -> tuple[str, ...]:
    return tuple(_host(key, host.lower()) for host in _texts(key, value))


def _names(key: str, value: Any) -> tuple[str, ...]:
    """Names and addresses that a certificate can hold."""
    names = tuple(name.lower() for name in _texts(key, value))
    for name in names:
        if not is_address(name) and (":" in name or not _HOST.fullmatch(name)):
            raise ConfigError(f"{key}: {name!r} is not a host name or an address (without a port)")
    return names


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _addresses(key: str, value: Any) -> tuple[str, ...]:
    texts = _texts(key, value)
    for text in texts:
        if not is_address(text):
            raise ConfigError(f"{key}: {text!r} is not an IP address")
    return tuple(str(ipaddress.ip_address(text)) for text in texts)


def _servers(key: str, value: Any) -> tuple[str, ...]:
    texts = _texts(key, value)
    for text in texts:
        host, _, port = text.rpartition(":")
        if not is_address(text) and not (is_address(host.strip("[]")) and _is_port(port)):
            raise ConfigError(f"{key}: {text!r} is not an address or address:port, such as 9.9.9.9 or [::1]:5353")
    return texts


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and int(text) <= 65535


def _networks(key: str, value: Any) -> tuple[Network, ...]:
    found: list[Network] = []
    for text in _texts(key, value):
        try:
            found.extend(ipaddress.ip_network(item) for item in _NAMED_NETWORKS.get(text, (text,)))
        except ValueError as error:
            allowed = ", ".join(_NAMED_NETWORKS)
            raise ConfigError(f"{key}: {text!r} is not a network such as 10.0.0.0/8, nor one of {allowed}") from error
    return tuple(found)


def _endpoints(key: str, value: Any) -> tuple[Endpoint, ...]:
    return tuple(_endpoint(key, text) for text in _texts(key, value))


def _endpoint(key: str, text: str) -> Endpoint:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not _is_port(port) or (host and not is_address(host)):
        raise ConfigError(f"{key}: {text!r} is not [address]:port, such as :443, 10.0.0.5:443 or [::1]:443")
    return Endpoint(host, int(port))


def _limit(key: str, value: Any) -> Limit:
    match = _SIZE.fullmatch(str(value).strip())
    if match and match[2] and 0 < float(match[1]) <= 100:
        return Limit(share=float(match[1]) / 100)
    size = int(float(match[1]) * _UNITS[match[3].upper()]) if match and not match[2] else 0
    if size > 0:
        return Limit(bytes=size)
    raise ConfigError(f"{key}: {value!r} is not a size such as 500G, nor a part of the disk such as 80%")


def _url(key: str, value: Any) -> str:
    if not isinstance(value, str) or not _is_base(value):
        raise ConfigError(f"{key}: {value!r} is not an https:// or http:// URL of a host, with a port and path at most")
    return value.rstrip("/")


def _is_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return good and not (set("?#@\\") & set(url)) and url.isprintable() and " " not in url


def _log_format(key: str, value: Any) -> str:
    if value not in LOG_FORMATS:
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(LOG_FORMATS)}")
    return str(value)
