"""A client that sends whatever it likes, byte by byte, and notices how a connection ends."""

import socket
import ssl
import struct
from dataclasses import dataclass, field
from typing import Self

from tests.serving import Endpoint

LISTENERS = ("tls", "clear", "mirror")
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with the body that its Content-Length promised."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


class Raw:
    """One connection to an address; through TLS where there is a context and a name."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        tls: ssl.SSLContext | None = None,
        name: str | None = None,
        source: str = "127.0.0.1",
        receive_buffer: int = 0,
    ) -> None:
        self._buffer = bytearray()
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            plain.settimeout(PATIENCE)
            if receive_buffer:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            plain.bind((source, 0))
            plain.connect(address)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = tls.wrap_socket(plain, server_hostname=name) if tls else plain
        except BaseException:
            plain.close()
            raise

    @property
    def local_port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and headers of the next answer. Raises EOFError where there is none."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        assert version == "HTTP/1.1", first
        fields = (line.partition(":") for line in lines)
        return int(status), {name.lower(): value.strip() for name, _, value in fields}

    def read(self, number: int) -> bytes:
        """Exactly so many bytes. Raises EOFError where there are fewer."""
        while len(self._buffer) < number:
            self._more()
        taken = bytes(self._buffer[:number])
        del self._buffer[:number]
        return taken

    def answer(self, method: str = "GET") -> Answer:
        """The next answer, read to the end of its body."""
        status, headers = self.head()
        length = 0 if method == "HEAD" or status in (204, 304) else int(headers.get("content-length", "0"))
        return Answer(status, headers, self.read(length))

    def rest(self) -> bytes:
        """Everything until the connection ends, cleanly or not."""
        taken = [bytes(self._buffer)]
        self._buffer.clear()
        while True:
            try:
                piece = self.socket.recv(1 << 20)
            except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
                piece = b""
            if not piece:
                return b"".join(taken)
            taken.append(piece)

    def reset(self) -> None:
        """End it by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """End it by FIN."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.socket.close()

    def _more(self) -> None:
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise EOFError(f"the connection ended after {self._buffer[:200]!r}")
        self._buffer += piece


def dial(cache: Endpoint, listener: str, *, name: str = "", source: str = "127.0.0.1", receive_buffer: int = 0) -> Raw:
    """A connection to a listener as its clients make it: by TLS, verified, to `tls`."""
    context = ssl.create_default_context(cafile=cache.ca_file) if listener == "tls" else None
    name = name or cache.registry
    return Raw(cache.address(listener), tls=context, name=name, source=source, receive_buffer=receive_buffer)


def request(target: str, *more: str, method: str = "GET", host: str) -> bytes:
    """A request in origin form; `more` are header lines."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *more, "", ""]).encode("latin-1")
