"""What supervisor and worker say to each other, over a pair of sockets of their own.

First the worker gets its work: the configuration and what to listen on, with the descriptors themselves
(SCM_RIGHTS, unix(7)). From then on each line is a JSON object.
"""

import json
import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mitm_cache.config import Config
from mitm_cache.errors import MitmCacheError
from mitm_cache.listening import Bound

MAX_SOCKETS = 253
"""SCM_MAX_FD of Linux: so many go with one message."""
MAX_LINE = 1 << 20
_HEAD = struct.Struct(">II")
"""Bytes of what is pickled, and how many sockets come before it."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker serves by."""

    config: Config
    bound: Bound


def send_work(channel: socket.socket, work: Work) -> None:
    """Give a worker its work. Raises OSError where the worker is gone."""
    names = [listener for listener, _ in work.bound.sockets]
    descriptors = [bound.fileno() for _, bound in work.bound.sockets]
    # Both ends are one program of one user, and nobody else has a descriptor of the pair.
    content = pickle.dumps((work.config, names, list(work.bound.elsewhere)))
    channel.sendall(_HEAD.pack(len(content), len(descriptors)))
    for sent in range(0, len(descriptors), MAX_SOCKETS):
        socket.send_fds(channel, [b"\n"], descriptors[sent : sent + MAX_SOCKETS])
    channel.sendall(content)


def receive_work(channel: socket.socket) -> Work | None:
    """Wait for work; None where there is none, because the supervisor is gone or needs no more workers.

    Raises MitmCacheError where this process may not have that many sockets.
    """
    head = _receive(channel, _HEAD.size)
    if head is None:
        return None
    length, count = _HEAD.unpack(head)
    descriptors: list[int] = []
    while len(descriptors) < count:
        mark, more, _, _ = socket.recv_fds(channel, 1, MAX_SOCKETS)
        if not mark:
            return None
        descriptors += more
        if len(descriptors) < count and len(more) < MAX_SOCKETS:
            raise MitmCacheError(f"a worker may not have the descriptors (ulimit -n) for {count} sockets")
    content = _receive(channel, length)
    if content is None:
        return None
    config, names, elsewhere = pickle.loads(content)  # noqa: S301 - the supervisor's, see send_work
    return Work(config, Bound(_sockets(names, descriptors), elsewhere))


def _receive(channel: socket.socket, size: int) -> bytes | None:
    content = b""
    while len(content) < size:
        data = channel.recv(size - len(content))
        if not data:
            return None
        content += data
    return content


def _sockets(names: Sequence[str], descriptors: Sequence[int]) -> list[tuple[str, socket.socket]]:
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for each in sockets:
        each.set_inheritable(False)
    return list(zip(names, sockets, strict=True))


def line(**fields: Any) -> bytes:
    """One message."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def parse(data: bytes) -> dict[str, Any]:
    """What `line` made."""
    fields: dict[str, Any] = json.loads(data)
    return fields
