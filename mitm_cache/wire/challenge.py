"""`WWW-Authenticate` challenges (RFC 9110, 11.6.1; the Bearer scheme of Docker's token authentication)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9._~+/-]*)\s+(?=[A-Za-z])")
_PARAMETER = re.compile(r'\s*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')


@dataclass(frozen=True, slots=True)
class Bearer:
    """Where to get a token for what."""

    realm: str
    service: str
    scope: str


@dataclass(frozen=True, slots=True)
class Realm:
    """Where a client gets a token of the cache's own: a URL, and the host and port by which the client came."""

    url: str
    service: str

    def challenge(self, *, scope: str = "", error: str = "", reason: str = "") -> str:
        """What asks for a token; `error` is a word of RFC 6750, 3.1, and `reason` says in words what is wrong."""
        said = "".join(character for character in reason if " " <= character <= "~" and character not in '"\\')
        fields = {
            "realm": self.url,
            "service": self.service,
            "scope": scope,
            "error": error,
            "error_description": said,
        }
        return f"Bearer {','.join(f'{name}="{value}"' for name, value in fields.items() if value)}"


def parse_bearer(header: str | None) -> Bearer | None:
    """The Bearer challenge in a header value, or None where there is none or it names no realm."""
    if header is None:
        return None
    scheme = _SCHEME.match(header)
    if scheme is None or scheme[1].lower() != "bearer":
        return None
    parameters: dict[str, str] = {}
    position = scheme.end()
    while match := _PARAMETER.match(header, position):
        quoted, plain = match[2], match[3]
        parameters[match[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
        position = match.end()
    realm = parameters.get("realm", "")
    return Bearer(realm, parameters.get("service", ""), parameters.get("scope", "")) if realm else None


def offers_basic(headers: Iterable[str]) -> bool:
    """Whether one of these header values asks for a user and a password (RFC 7617)."""
    return any(header.split(None, 1)[:1] and header.split(None, 1)[0].lower() == "basic" for header in headers)


def in_clear(header: str, hosts: Iterable[str]) -> str:
    """The challenge for a client that came without TLS: a realm on the registry's own host, by http.

    Such a client reaches that host by its clear-text listener; it may have no other way to get a token.
    """
    bearer = parse_bearer(header)
    if bearer is None:
        return header
    try:
        realm = urlsplit(bearer.realm)
    except ValueError:
        return header
    if realm.scheme != "https" or realm.netloc not in set(hosts):
        return header
    return header.replace(bearer.realm, urlunsplit(realm._replace(scheme="http")))
