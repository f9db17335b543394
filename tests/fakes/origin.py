"""A host that a test plays itself, message by message: who sends what when is written in the test."""

import socket
import ssl
import struct
from typing import Self

from tests.fakes.trust import Trust

PATIENCE = 30.0


class Talk:
    """The server's end of one connection."""

    def __init__(self, connected: ssl.SSLSocket) -> None:
        self.socket = connected
        self._buffer = bytearray()

    def head(self) -> tuple[str, dict[str, str]]:
        """The request line and the fields of the next request."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        return first, {name.lower(): value.strip() for name, _, value in fields}

    def read(self, number: int) -> bytes:
        """Exactly so many bytes. Raises EOFError where there are fewer."""
        while len(self._buffer) < number:
            self._more()
        taken = bytes(self._buffer[:number])
        del self._buffer[:number]
        return taken

    def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" at its end."""
        while b"\r\n" not in self._buffer:
            self._more()
        size, _, self._buffer = self._buffer.partition(b"\r\n")
        return self.read(int(size, 16) + 2)[:-2]

    def ended(self) -> bool:
        """Wait for the end of the connection: whether nothing more came before it."""
        try:
            return self.socket.recv(1) == b""
        except (ConnectionResetError, ssl.SSLError):
            return True

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def goodbye(self) -> None:
        """Say that this is the end, as TLS has it, so that it is not taken for a cut."""
        self.socket.unwrap()

    def reset(self) -> None:
        """End it by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def _more(self) -> None:
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise EOFError(f"the connection ended after {bytes(self._buffer[:200])!r}")
        self._buffer += piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.socket.close()


class Origin:
    """Listens under a name, with TLS."""

    def __init__(self, trust: Trust, name: str) -> None:
        self.name = name
        self._tls = trust.certify(name)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(PATIENCE)
        self.port: int = self._socket.getsockname()[1]

    def accept(self) -> Talk:
        """The next connection."""
        plain, _ = self._socket.accept()
        plain.settimeout(PATIENCE)
        return Talk(self._tls.wrap_socket(plain, server_side=True))

    def configuration(self) -> str:
        """What a cache needs to find it, as TOML."""
        return f'[registries."{self.name}"]\nurl = "https://{self.name}:{self.port}"\nresolve = "127.0.0.1"\n'

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._socket.close()
