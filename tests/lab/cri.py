"""Kubernetes' container runtime interface, just enough to pull an image.

gRPC is HTTP/2 with length-prefixed protobuf: curl carries it, and the few messages of `runtime.v1` are written by hand,
so no generated code and no gRPC library is needed.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.lab.host import Host
from tests.lab.process import LabError


def _number(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _number(len(value)) + value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message; numbers are passed over."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _varint(data, at)
        if key & 7 == 2:
            yield key >> 3, data[at : at + value]
            at += value


def _call(host: Host, socket: Path, method: str, message: bytes) -> bytes:
    with tempfile.TemporaryDirectory(dir=socket.parent) as name:
        folder = Path(name)
        (folder / "request").write_bytes(b"\0" + len(message).to_bytes(4) + message)
        (folder / "answer").write_bytes(b"")
        done = host.run(
            *("curl", "-sS", "--http2-prior-knowledge", "--unix-socket", str(socket), "-H", "te: trailers"),
            *("-H", "content-type: application/grpc", "--data-binary", f"@{folder}/request", "-D", "-"),
            *("-o", f"{folder}/answer", f"http://localhost/runtime.v1.ImageService/{method}"),
        )
        trailers = dict(re.findall(r"^(grpc-[a-z]+): *(.*?)\r?$", done.out, re.MULTILINE))
        if trailers.get("grpc-status") != "0":
            raise LabError(f"CRI {method}: {trailers or done}")
        return (folder / "answer").read_bytes()[5:]


def pull_image(host: Host, socket: Path, reference: str, creds: str = "") -> str:
    """PullImage; the digest of the image's config."""
    request = _field(1, _field(1, reference.encode()))
    if creds:
        user, _, password = creds.partition(":")
        request += _field(2, _field(1, user.encode()) + _field(2, password.encode()))
    return dict(_fields(_call(host, socket, "PullImage", request)))[1].decode()


def image_digest(host: Host, socket: Path, config: str) -> str:
    """The repository digest that goes with a config."""
    for _, image in _fields(_call(host, socket, "ListImages", b"")):
        values = list(_fields(image))
        if (1, config.encode()) in values:
            return next(value.decode().rpartition("@")[2] for number, value in values if number == 3)
    raise LabError(f"no image {config}")
