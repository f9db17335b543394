"""Addresses fit for a log: a signed URL is a secret, so a query keeps its known-harmless keys only."""

from urllib.parse import parse_qsl, urlsplit, urlunsplit

HARMLESS = frozenset({"ns", "n", "last", "artifactType", "service", "scope"})
"""Query keys whose values are shown; every other value is not."""


def redact(url: str) -> str:
    """`url` without user information, and with every query value hidden that is not known to be harmless."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(
        f"{key}={value if key in HARMLESS else '***'}" for key, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    return urlunsplit((parts.scheme, host, parts.path, query, ""))
