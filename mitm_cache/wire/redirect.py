"""Following redirects (RFC 9110, 15.4): where the next hop goes, and which headers may go there."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address
from urllib.parse import urljoin, urlsplit, urlunsplit

from mitm_cache.errors import UpstreamError
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redact import redact

MAX_HOPS = 10
STATUSES = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"https": 443, "http": 80}
# What libcurl would take for a host that no Route was found for is none: percent signs and other scripts, which it
# decodes; a minus in front, by which it forgets the addresses it is given; and numbers that it reads as IPv4.
_HOST = re.compile(r"[a-z0-9._][a-z0-9._-]*|[0-9a-f:.]*:[0-9a-f:.]*")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: credentials never leave the one they were given for."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Raise UpstreamError unless `url` is an absolute http or https URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UpstreamError(f"{redact_safely(url)} is not a URL: {error}") from error
        if parts.scheme not in _DEFAULT_PORTS or parts.hostname is None or port == 0 or not _is_host(parts.hostname):
            raise UpstreamError(f"{redact_safely(url)} is not an http or https URL")
        return cls(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme])

    @property
    def authority(self) -> str:
        """The value of a Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def _is_host(host: str) -> bool:
    if ":" not in host and _NUMBER.fullmatch(host):
        try:
            IPv4Address(host)
        except ValueError:
            return False
    return _HOST.fullmatch(host) is not None


def redact_safely(url: str) -> str:
    """`redact`, for text that may not even be a URL."""
    try:
        return redact(url)
    except ValueError:
        return "an address"


def next_hop(url: str, location: str | None, *, allow_http: bool) -> str:
    """The absolute URL that a redirect from `url` leads to; relative locations are resolved.

    Raises UpstreamError where there is none, or where it would leave https without leave.
    """
    if not location:
        raise UpstreamError(f"{redact_safely(url)} redirects nowhere: no Location")
    if any(ord(character) <= 32 for character in location):
        raise UpstreamError(f"{redact_safely(url)} redirects to a malformed Location")
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise UpstreamError(f"{redact_safely(url)} redirects to a malformed Location") from error
    origin = Origin.of(target)
    if origin.scheme == "http" and not allow_http and Origin.of(url).scheme == "https":
        raise UpstreamError(f"{redact_safely(url)} redirects to http; only https is followed (upstream.allow_http)")
    return target


def localize(location: str, seen: str, base: str, names: Collection[str]) -> str:
    """A Location for a client that came another way than upstream believes: relative where it leads to the same host.

    `seen`: the origin that the client speaks to; `base`: the URL where we reach the host, which has these `names`.
    """
    try:
        origin = Origin.of(location)
    except UpstreamError:
        return location  # relative, or no address that is followed
    own = origin == Origin.of(base) or origin.authority in names
    parts = urlsplit(location)
    below = urlsplit(base).path.rstrip("/")
    path = parts.path.removeprefix(below) or "/"
    # A path beside the base is none of the client's; with two slashes, or one that browsers take for it, it is a host.
    if str(origin) == seen or not own or not path.startswith("/") or path[1:2] in ("/", "\\"):
        return location
    return urlunsplit(("", "", path, parts.query, parts.fragment))


def is_same_question(target: str, location: str | None) -> bool:
    """Whether a redirect from `/v2/NAME/manifests/DIGEST` (or blobs) leads to the same at a registry elsewhere."""
    path = target.partition("?")[0]
    asked = "/".join(path.rsplit("/", 2)[-2:])
    try:
        there = urlsplit(location or "").path
    except ValueError:
        return False
    return there.startswith("/v2/") and there.endswith(f"/{asked}")


def carry(headers: Headers, source: str, target: str) -> Headers:
    """The headers of a request to `source` that may go on to `target`: credentials only to the same origin."""
    return headers if Origin.of(source) == Origin.of(target) else headers.without(["authorization", "cookie"])
