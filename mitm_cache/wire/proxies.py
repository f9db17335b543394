"""Proxies between this cache and the registries: how one is written, and which hosts are reached without."""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

_PORTS = {"http": 80, "https": 443, "socks5": 1080}
_ALIASES = {"socks5h": "socks5"}  # curl's word for leaving names to the proxy, which is always done here
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_NAME = re.compile(r"(\*?\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_MAX_SECRET = 255
"""Bytes of a user name or password (RFC 1929, 2)."""

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Proxy:
    """Another proxy on the way upstream; `key` is what the operator calls it. Its password is never shown."""

    scheme: str
    host: str
    port: int
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)
    key: str = field(default="upstream.proxy", compare=False)

    @classmethod
    def of(cls, url: str, *, key: str) -> Self:
        """Raise ValueError, which says nothing of the value, where `url` is not one of a proxy."""
        parts = urlsplit(url)
        scheme = _ALIASES.get(parts.scheme, parts.scheme)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if scheme not in _PORTS or not url.isprintable() or " " in url or set("\\?#") & set(url) or port == 0:
            raise ValueError("not the URL of a proxy")
        if parts.path not in ("", "/") or parts.hostname is None or not _HOST.fullmatch(parts.hostname):
            raise ValueError("not the URL of a proxy")
        user = None if parts.username is None else _secret(parts.username)
        return cls(scheme, parts.hostname, port or _PORTS[scheme], user, _secret(parts.password or ""), key)

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def _secret(text: str) -> str:
    plain = unquote(text, errors="strict")
    if len(plain.encode()) > _MAX_SECRET or not plain.isprintable():
        raise ValueError("not a user name or password")
    return plain


@dataclass(frozen=True, slots=True)
class _Entry:
    """One of: everything, a name with or without those below it, a network; for all ports or one."""

    everything: bool = False
    name: str = ""
    below: bool = True
    network: Network | None = None
    port: int | None = None

    def matches(self, host: str, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.network is not None:
            try:
                return ipaddress.ip_address(host) in self.network
            except ValueError:
                return False
        return self.everything or host == self.name or (self.below and host.endswith(f".{self.name.lstrip('.')}"))


@dataclass(frozen=True, slots=True)
class Bypass:
    """The hosts that are reached without a proxy, in the words of `NO_PROXY`."""

    entries: tuple[_Entry, ...] = ()

    @classmethod
    def of(cls, texts: tuple[str, ...]) -> Self:
        """Raise ValueError, whose argument is the text that is none of what is allowed."""
        return cls(tuple(_entry(text) for text in texts))

    def matches(self, host: str, port: int) -> bool:
        """Whether a host goes direct. Networks hold addresses only: no name is resolved for them."""
        return any(entry.matches(host.lower().rstrip("."), port) for entry in self.entries)


def _entry(text: str) -> _Entry:
    if text == "*":
        return _Entry(everything=True)
    try:
        return _Entry(network=ipaddress.ip_network(text.strip("[]"), strict=False))
    except ValueError:
        pass
    host, colon, digits = text.lower().rpartition(":")
    if not colon:
        host, port = digits, None
    elif re.fullmatch("[0-9]{1,5}", digits):
        port = int(digits)
    else:
        raise ValueError(text)
    try:
        return _Entry(network=ipaddress.ip_network(host.strip("[]")), port=port)
    except ValueError:
        pass
    if not _NAME.fullmatch(host):
        raise ValueError(text)
    # `.example` is what is below example, not itself; no host is named with a dot in front.
    return _Entry(name=host.removeprefix("*"), port=port)
