"""What is wrong with a request's head before it is parsed: mitmproxy has no limit, and strips what is to be refused."""

import re

MAX_HEAD = 64 << 10
"""Bytes of a request's head."""
_END = re.compile(rb"\n\r?\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")


def refuse_head(received: bytes | bytearray) -> bytes | None:
    """The answer to what has been received of a head, if it is one that is refused; it ends the connection."""
    found = _END.search(received, 0, MAX_HEAD)
    if found is None and len(received) > MAX_HEAD:
        return answer(b"431 Request Header Fields Too Large")
    if found is not None and _CONTROL.search(received, 0, found.end()):
        # Stripped from around a value, as mitmproxy does it, `chunked` is what somebody else has not seen there.
        return answer(b"400 Bad Request")
    return None


def answer(status: bytes) -> bytes:
    """The head of an answer that is the last one, without a body."""
    return b"HTTP/1.1 %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
