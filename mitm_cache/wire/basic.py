"""The Basic scheme (RFC 7617), as clients send it in `Authorization` and in `Proxy-Authorization`."""

import binascii
import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field

CHALLENGE = 'Basic realm="mitm-cache"'
"""What the cache itself asks with, as a proxy and as a server."""
_BASIC = re.compile(r"basic +([A-Za-z0-9+/]+={0,2})[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Basic:
    """A name and a password. The password is bytes as they were sent, and is never printed."""

    name: str
    password: bytes = field(repr=False)


def parse_basic(values: Sequence[str]) -> Basic | None:
    """What the values of a header field say, or None where they are not exactly one name and password in UTF-8."""
    matched = _BASIC.fullmatch(values[0]) if len(values) == 1 else None
    if matched is None:
        return None
    try:
        name, colon, password = b64decode(matched[1], validate=True).partition(b":")
        return Basic(name.decode(), password) if colon else None
    except (binascii.Error, UnicodeDecodeError):
        return None
