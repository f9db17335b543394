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
from mitm_cache.listening import Bound

MAX_SOCKETS = 253
"""SCM_MAX_FD of Linux."""
MAX_LINE = 1 << 20
_LENGTH = struct.Struct(">I")


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
    socket.send_fds(channel, [_LENGTH.pack(len(content))], descriptors[:MAX_SOCKETS])
    channel.sendall(content)


def receive_work(channel: socket.socket) -> Work | None:
    """Wait for work; None where there is none, because the supervisor is gone or needs no more workers."""
    head, descriptors, _, _ = socket.recv_fds(channel, _LENGTH.size, MAX_SOCKETS)
    if len(head) < _LENGTH.size:
        return None
    content = b""
    (length,) = _LENGTH.unpack(head)
    while len(content) < length:
        data = channel.recv(length - len(content))
        if not data:
            return None
        content += data
    config, names, elsewhere = pickle.loads(content)  # noqa: S301 - the supervisor's, see send_work
    return Work(config, Bound(_sockets(names, descriptors), elsewhere))


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
