"""Addresses fit for a log: a signed URL is a secret, so a query keeps its known-harmless keys only."""

from urllib.parse import urlsplit, urlunsplit

HARMLESS = frozenset({"ns", "n", "last", "artifactType", "service", "scope"})
"""Query keys whose values are shown; every other value is not."""


def redact(url: str) -> str:
    """`url` without user information, and with every query value hidden that is not known to be harmless."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(_shown(part) for part in parts.query.split("&")) if parts.query else ""
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


def _shown(part: str) -> str:
    key, given, _ = part.partition("=")
    if key in HARMLESS:
        return part
    return f"{key}=***" if given else "***"  # a text without a key may be the token itself
