"""The ways in which an upstream can be wrong. Each is put between a request and its honest answer."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from mitm_cache.demo.content import Chunk
from mitm_cache.demo.message import Answer, Around, CutError, Incoming, Proceed, problem, redirect, text

type Fault = Around
type Location = str | Callable[[Incoming], str]

_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def wrong_bytes() -> Fault:
    """As many bytes as promised, the first of them another one."""

    def spoil(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            yield bytes([chunk[0] ^ 0xFF]) + bytes(chunk[1:])
            break
        yield from chunks

    return _body(spoil)


def longer(extra: bytes = b"more than was promised") -> Fault:
    """All bytes and then some, beyond Content-Length."""

    def append(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        yield from chunks
        yield extra

    return _body(append)


def cut_after(number: int, how: Literal["goodbye", "close", "reset"] = "close") -> Fault:
    """The connection ends after `number` bytes of the body: by a clean end of TLS, a bare FIN, or a reset."""

    def shorten(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        left = number
        for chunk in chunks:
            yield chunk[:left]
            left -= min(left, len(chunk))
            if not left:
                break
        raise CutError(how)

    return _body(shorten)


def refuse(status: int, code: str = "UNKNOWN", headers: Mapping[str, str] | None = None) -> Fault:
    """An error document: `refuse(429, "TOOMANYREQUESTS", {"Retry-After": "7"})`."""
    return _instead(lambda _: problem(status, code, f"the upstream was told to answer {status}", headers))


def challenge(realm: str, scheme: str = "Bearer") -> Fault:
    """401, and the token is said to be had somewhere else."""
    return refuse(401, "UNAUTHORIZED", {"WWW-Authenticate": f'{scheme} realm="{realm}",service="demo"'})


def redirect_to(location: Location, status: int = 307) -> Fault:
    """Elsewhere, instead of the honest answer."""
    return _instead(lambda incoming: redirect(location if isinstance(location, str) else location(incoming), status))


def redirect_loop() -> Fault:
    """Here again, for ever."""
    return redirect_to(lambda incoming: incoming.path)


def redirect_chain(hops: int) -> Fault:
    """`hops` redirects to the same host (by a relative Location), then the honest answer (maybe one redirect more)."""

    def fault(incoming: Incoming, proceed: Proceed) -> Answer:
        hop = int(incoming.query.get("hop", "0"))
        return redirect(f"{incoming.path}?hop={hop + 1}") if hop < hops else proceed(incoming)

    return fault


def without(header: str) -> Fault:
    """The honest answer less one header. Without Content-Length the body ends with the connection."""

    def fault(incoming: Incoming, proceed: Proceed) -> Answer:
        answer = proceed(incoming)
        answer.headers.pop(header, None)
        return answer

    return fault


def header(name: str, value: str, *, status: int | None = None) -> Fault:
    """The honest answer with one header wrong or added; only on answers of `status`, if one is given."""

    def fault(incoming: Incoming, proceed: Proceed) -> Answer:
        answer = proceed(incoming)
        if status in (None, answer.status):
            answer.headers[name] = value
        return answer

    return fault


def ignore_range() -> Fault:
    """200 and all of it, whatever range was asked for."""
    return lambda incoming, proceed: proceed(incoming.without("Range"))


def body(data: bytes, media_type: str = "application/octet-stream", headers: Mapping[str, str] | None = None) -> Fault:
    """200 and these bytes."""
    return _instead(lambda _: text(200, data, media_type, headers))


def schema_1() -> Fault:
    """An old, signed manifest instead of what is there."""
    old = {"schemaVersion": 1, "name": "demo", "tag": "1", "fsLayers": [], "history": [], "signatures": []}
    return body(json.dumps(old, indent=3).encode(), _SCHEMA_1)


def _instead(make: Callable[[Incoming], Answer]) -> Fault:
    return lambda incoming, _: make(incoming)


def _body(change: Callable[[Iterator[Chunk]], Iterator[Chunk]]) -> Fault:
    def fault(incoming: Incoming, proceed: Proceed) -> Answer:
        answer = proceed(incoming)
        answer.chunks = change(answer.chunks)
        return answer

    return fault
