"""The registries of the configuration: those of others, and the one for images of one's own."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from mitm_cache import parsing
from mitm_cache.config.reader import Reader
from mitm_cache.errors import ConfigError
from mitm_cache.parsing import CredentialRule, Limit, Rights
from mitm_cache.registries import LOCAL, TABLE, Known, Registry
from mitm_cache.wire.proxies import Proxy

_DAEMON = re.compile(r"unix:///[!-~]+|tcp://[A-Za-z0-9.-]+:[0-9]{1,5}")
REGISTRY_KEYS = (
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


def read_local(reader: Reader) -> Local:
    """The table `local`. Raises ConfigError."""
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


def read_registries(tables: dict[str, Any], local: Local) -> tuple[Known, dict[str, Upstream]]:
    """All registries, and how those of the tables `registries.NAME` are reached, by name. Raises ConfigError."""
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
        reader = Reader(table, f"{key}.")
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
        reader.finish(", ".join(REGISTRY_KEYS))
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
