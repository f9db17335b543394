"""One name that answers HTTP on a socket of its own: it records, answers, and lets faults come between."""

import socket
import ssl
import threading
from typing import Self

from mitm_cache.demo.ledger import Ledger
from mitm_cache.demo.message import Answer, Around, Incoming, problem, straight
from mitm_cache.demo.serving import Server, remember_name


class Host:
    """Listens from `start` to `stop`; the port is known, and kept, from the constructor on.

    `around` is the seam for faults: it gets each request and a callable that answers it honestly. `rate` limits each
    response to that many bytes per second.
    """

    def __init__(
        self, name: str, *, tls: ssl.SSLContext | None, ledger: Ledger | None = None, address: str = "127.0.0.1"
    ) -> None:
        self.name = name
        self.tls = tls
        self.requests = Ledger() if ledger is None else ledger
        self.around: Around = straight
        self.rate: float | None = None
        self.crashes: list[BaseException] = []
        self.closing = threading.Event()
        self._reserved = _reserve((address, 0))
        self._address: tuple[str, int] = self._reserved.getsockname()
        self._server: Server | None = None
        if tls is not None:
            tls.sni_callback = remember_name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name} at {self._address[0]}:{self.port})"

    @property
    def address(self) -> tuple[str, int]:
        return self._address

    @property
    def port(self) -> int:
        return self._address[1]

    def url(self, path: str = "", *, name: str | None = None) -> str:
        """An address of this host, under its own name or another one."""
        return f"{'https' if self.tls else 'http'}://{name or self.name}:{self.port}{path}"

    def kind(self, method: str, path: str) -> str:
        """What a request is, in one word for the records and for faults."""
        return "other"

    def answer(self, incoming: Incoming) -> Answer:
        """The honest answer."""
        return problem(404, "UNSUPPORTED", f"{self.name} has no {incoming.path}")

    def start(self) -> None:
        """Begin to listen, first or again."""
        self.closing.clear()
        self._server = Server(self, self._reserved)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name=repr(self), daemon=True).start()

    def stop(self) -> None:
        """Cut every connection and refuse new ones; the port stays ours, so that nobody else can answer on it."""
        if self._server is not None:
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            self._reserved = _reserve(self._address)

    def cut(self) -> None:
        """Cut every connection that is open now, and go on listening."""
        if self._server is not None:
            self._server.cut()

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._reserved.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
        # An error of ours must not pass for a fault of an upstream that was wanted.
        if error is None and self.crashes:
            raise self.crashes[0]


def _reserve(address: tuple[str, int]) -> socket.socket:
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(address)
    return reserved
