"""Values of the configuration: from TOML, or from text as the environment holds it, to what they mean.

Each parser takes a key and a value; its error names both, and what is allowed.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mitm_cache.errors import ConfigError
from mitm_cache.wire.proxies import Bypass, Proxy

LOG_FORMATS = ("auto", "text", "json")
DIRECT = "direct"
MAX_WORKERS = 64
_PART = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(?:(%)|([KMGT]?)(?:i?B)?)", re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
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


class Rights(StrEnum):
    """Whose right counts for what is cached of a registry: the client's, also the cache's own, or nobody's."""

    CLIENT = "client"
    SHARED = "shared"
    OPEN = "open"


SOURCES = ("docker_config", "helper", "file", "env")
"""Where a credential for a registry may be."""


@dataclass(frozen=True, slots=True)
class CredentialRule:
    """The credential for the repositories that a pattern covers: its source, one of SOURCES, and where that is."""

    repository: str
    source: str
    place: str


@dataclass(frozen=True, slots=True)
class SyncRule:
    """A file of images that the service fetches by itself every so many seconds; no platforms are all of them."""

    file: Path
    every: float
    platforms: frozenset[str] = frozenset()


_NAMED_NETWORKS: dict[str, tuple[str, ...]] = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"),
    "any": ("0.0.0.0/0", "::/0"),
}


def table(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key} is a table of keys, not {value!r}")
    return value


def texts(key: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or one text with commas as in the environment."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ConfigError(f"{key} is a list of texts, not {value!r}")


def path(key: str, value: Any) -> Path:
    try:
        if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
            return Path(value).expanduser()
    except RuntimeError:
        pass  # ~user, and there is no such user
    raise ConfigError(f"{key} is a path, not {value!r}")


def file(key: str, value: Any) -> Path | None:
    """A file, or "" for none."""
    return None if value == "" else path(key, value)


def boolean(key: str, value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ConfigError(f"{key} is true or false, not {value!r}")


def host(key: str, value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ConfigError(f"{key}: {value!r} is not a host name (lower case, with :port where it is not 443)")
    return value


def hosts(key: str, value: Any) -> tuple[str, ...]:
    return tuple(host(key, text.lower()) for text in texts(key, value))


def prefix(key: str, value: Any) -> str:
    """A first part of a path at a mirror: what a repository's name may begin with, but no part that Docker Hub has."""
    if value == "":
        return ""
    if not isinstance(value, str) or not _PART.fullmatch(value) or value == "library":
        raise ConfigError(
            f"{key}: {value!r} is no path part of its own: small letters and digits, with . _ - between; not library"
        )
    return value


def names(key: str, value: Any) -> tuple[str, ...]:
    """Names and addresses that a certificate can hold."""
    found = tuple(name.lower() for name in texts(key, value))
    for name in found:
        if not is_address(name) and (":" in name or not _HOST.fullmatch(name)):
            raise ConfigError(f"{key}: {name!r} is not a host name or an address (without a port)")
    return found


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def addresses(key: str, value: Any) -> tuple[str, ...]:
    found = texts(key, value)
    for text in found:
        if not is_address(text):
            raise ConfigError(f"{key}: {text!r} is not an IP address")
    return tuple(str(ipaddress.ip_address(text)) for text in found)


def servers(key: str, value: Any) -> tuple[str, ...]:
    found = texts(key, value)
    for text in found:
        address, _, port = text.rpartition(":")
        if not is_address(text) and not (is_address(address.strip("[]")) and _is_port(port)):
            raise ConfigError(f"{key}: {text!r} is not an address or address:port, such as 9.9.9.9 or [::1]:5353")
    return found


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and int(text) <= 65535


def networks(key: str, value: Any) -> tuple[Network, ...]:
    found: list[Network] = []
    for text in texts(key, value):
        try:
            found.extend(ipaddress.ip_network(item) for item in _NAMED_NETWORKS.get(text, (text,)))
        except ValueError as error:
            allowed = ", ".join(_NAMED_NETWORKS)
            raise ConfigError(f"{key}: {text!r} is not a network such as 10.0.0.0/8, nor one of {allowed}") from error
    return tuple(found)


def ports(key: str, value: Any) -> tuple[int, ...]:
    """A list of ports, as numbers or as texts."""
    given = [str(item) for item in value] if isinstance(value, list) else texts(key, value)
    if not all(_is_port(item) for item in given):
        raise ConfigError(f"{key} is a list of ports from 1 to 65535, not {value!r}")
    return tuple(int(item) for item in given)


def endpoints(key: str, value: Any) -> tuple[Endpoint, ...]:
    return tuple(_endpoint(key, text) for text in texts(key, value))


def _endpoint(key: str, text: str) -> Endpoint:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not _is_port(port) or (host and not is_address(host)):
        raise ConfigError(f"{key}: {text!r} is not [address]:port, such as :443, 10.0.0.5:443 or [::1]:443")
    return Endpoint(host, int(port))


def limit(key: str, value: Any) -> Limit:
    match = _SIZE.fullmatch(str(value).strip())
    if match and match[2] and 0 < float(match[1]) <= 100:
        return Limit(share=float(match[1]) / 100)
    size = int(float(match[1]) * _UNITS[match[3].upper()]) if match and not match[2] else 0
    if size > 0:
        return Limit(bytes=size)
    raise ConfigError(f"{key}: {value!r} is not a size such as 500G, nor a part of the disk such as 80%")


def duration(key: str, value: Any) -> float:
    """A length of time, in seconds."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"{key}: {value!r} is not a length of time such as 90s, 30m, 12h, 3d or 2w")
    return float(match[1]) * _SECONDS[match[2]]


def url(key: str, value: Any) -> str:
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


def workers(key: str, value: Any) -> int:
    """A number of processes; 0 is as many as there are processors."""
    if value == "auto":
        return 0
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,3}", value) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MAX_WORKERS:
        raise ConfigError(f'{key}: {value!r} is not a number of processes, from 1 to {MAX_WORKERS}, or "auto"')
    return number


def log_format(key: str, value: Any) -> str:
    if value not in LOG_FORMATS:
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(LOG_FORMATS)}")
    return str(value)


def proxy(key: str, value: Any) -> Proxy | None:
    """A proxy, or "" for none."""
    if value == "":
        return None
    try:
        if isinstance(value, str):
            return Proxy.of(value, key=key)
    except ValueError:
        pass
    raise ConfigError(
        f"{key}: {_harmless(value)} is not the URL of a proxy: http://, https:// or socks5://, USER:PASSWORD@ if it "
        "wants them (percent-encoded), HOST, and :PORT"
    ) from None


def _harmless(value: Any) -> str:
    """The value where it can hold no password."""
    if not isinstance(value, str) or not re.fullmatch(r"([a-z0-9]+://)?[^:@/]*(:[0-9]{1,5})?/?", value):
        return "its value, not shown because it may hold a password,"
    return repr(value)


def registry_proxy(key: str, value: Any) -> Proxy | str:
    """A proxy, "" for what all the others have, or "direct"."""
    return value if value in ("", DIRECT) else proxy(key, value) or ""


def bypass(key: str, value: Any) -> Bypass:
    try:
        return Bypass.of(texts(key, value))
    except ValueError as error:
        raise ConfigError(
            f"{key}: {error.args[0]!r} is not a host such as q.example, .q.example for all below it, an address, a "
            "network such as 10.0.0.0/8, or *"
        ) from None


def rights(key: str, value: Any) -> Rights:
    if not isinstance(value, str) or value not in tuple(Rights):
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(Rights)}")
    return Rights(value)


def credentials(key: str, value: Any) -> tuple[CredentialRule, ...]:
    """A table that says where a credential is, or a list of them; the first whose pattern covers a repository counts.

    Texts are not shown in errors: somebody may have written the password itself.
    """
    rules = [value] if isinstance(value, dict) else value
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise ConfigError(f"{key} is a table such as {{ file = '/etc/mitm-cache/secret' }}, or a list of them")
    return tuple(_credential_rule(key, rule) for rule in rules)


def _credential_rule(key: str, rule: dict[str, Any]) -> CredentialRule:
    allowed = f"repository, and one of {', '.join(SOURCES)}"
    if unknown := [name for name in rule if name not in ("repository", *SOURCES)]:
        raise ConfigError(f"{key}.{unknown[0]} is not a key of this version; allowed here: {allowed}")
    found = [name for name in SOURCES if name in rule]
    if len(found) != 1:
        raise ConfigError(f"{key}: {' and '.join(found) or 'no source'} in one table; allowed here: {allowed}")
    [source] = found
    place, repository = rule[source], rule.get("repository", "*")
    if not isinstance(repository, str) or not _PATTERN.fullmatch(repository):
        raise ConfigError(f"{key}.repository: {repository!r} is not a repository such as team/app, nor one with *")
    if source in ("docker_config", "file"):
        place = str(path(f"{key}.{source}", place))
    elif not isinstance(place, str) or not _NAMES[source].fullmatch(place):
        raise ConfigError(f"{key}.{source} is {_NAMED[source]}; its value is not shown because it may be a secret")
    return CredentialRule(repository, source, place)


_PATTERN = re.compile(r"[a-z0-9*][a-z0-9*._/-]*")
_NAMES = {"helper": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"), "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*")}
_NAMED = {
    "helper": "the X of a program docker-credential-X, such as ecr-login",
    "env": "the name of a variable of the environment, such as QUAY_CREDENTIAL",
}


_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9]+(/[a-z0-9.]+)?")
SYNC_KEYS = ("file", "every", "platforms")
SHORTEST_SYNC = 60.0


def platforms(key: str, value: Any) -> frozenset[str]:
    """Platforms such as linux/amd64."""
    found = frozenset(texts(key, value))
    if wrong := sorted(one for one in found if not _PLATFORM.fullmatch(one)):
        raise ConfigError(f"{key}: {wrong[0]!r} is not one such as linux/amd64 or linux/arm/v7")
    return found


def syncs(key: str, value: Any) -> tuple[SyncRule, ...]:
    """Tables of a file and how often it is synced."""
    if not isinstance(value, list) or not all(isinstance(rule, dict) for rule in value):
        raise ConfigError(f"{key} is written as [[{key}]], a table for each file")
    return tuple(_sync_rule(key, rule) for rule in value)


def _sync_rule(key: str, rule: dict[str, Any]) -> SyncRule:
    if unknown := [name for name in rule if name not in SYNC_KEYS]:
        raise ConfigError(f"{key}.{unknown[0]} is not a key of this version; allowed here: {', '.join(SYNC_KEYS)}")
    if missing := [name for name in ("file", "every") if name not in rule]:
        example = 'file = "/etc/mitm-cache/images.yaml", every = "6h"'
        raise ConfigError(f"{key}: {missing[0]} is missing, as in {example}")
    every = duration(f"{key}.every", rule["every"])
    if every < SHORTEST_SYNC:
        raise ConfigError(f"{key}.every: {rule['every']!r} is less than a minute")
    return SyncRule(path(f"{key}.file", rule["file"]), every, platforms(f"{key}.platforms", rule.get("platforms", [])))
