"""A registry that sends whatever bytes it likes, and a name server whose answers change."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import dns.message
import dns.rcode
import dns.rrset

from tests.fakes.trust import Trust

type Say = Callable[["Asked"], Iterable[bytes]]
PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Asked:
    """The head of a request."""

    method: str
    target: str
    headers: dict[str, str]


def reply(status: int | str, *lines: str, body: bytes = b"", length: int | None = None) -> bytes:
    """An answer with its length, the body's own unless told otherwise (-1: none is said)."""
    told = len(body) if length is None else length
    own = [] if told < 0 else [f"Content-Length: {told}"]
    return "\r\n".join([f"HTTP/1.1 {status} X", *own, *lines, "", ""]).encode("latin-1") + body


class Scripted:
    """Listens under a name, with TLS; `say` makes the bytes for each request, until it ends or nobody takes them."""

    def __init__(self, trust: Trust, name: str) -> None:
        self.name = name
        self.say: Say = lambda _: [reply(404)]
        self.asked: list[Asked] = []
        self.sent = 0
        self._tls = trust.certify(name)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def configuration(self) -> str:
        """What a cache needs to find it, as TOML."""
        return f'[registries."{self.name}"]\nurl = "https://{self.name}:{self.port}"\nresolve = "127.0.0.1"\n'

    def forget(self) -> None:
        """Begin anew."""
        self.say = lambda _: [reply(404)]
        self.asked.clear()
        self.sent = 0

    def _work(self) -> None:
        while not self._closing:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(connected,), daemon=True).start()

    def _converse(self, connected: socket.socket) -> None:
        connected.settimeout(PATIENCE)
        with contextlib.suppress(OSError), self._tls.wrap_socket(connected, server_side=True) as talk:
            asked = _head(talk)
            if asked is None:
                return
            self.asked.append(asked)
            for piece in self.say(asked):
                talk.sendall(piece)
                self.sent += len(piece)
                if _gone(talk):
                    return
            talk.unwrap()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._closing = True
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


def _head(talk: ssl.SSLSocket) -> Asked | None:
    head = b""
    while b"\r\n\r\n" not in head:
        more = talk.recv(1 << 16)
        if not more:
            return None
        head += more
    first, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = (line.partition(":") for line in lines)
    return Asked(method, target, {name.lower(): value.strip() for name, _, value in fields})


def _gone(talk: ssl.SSLSocket) -> bool:
    readable, _, _ = select.select([talk], [], [], 0)
    return bool(readable)


class Names:
    """Answers for A records, each name from a list of answers that are given one after another (the last one stays)."""

    def __init__(self, records: dict[str, list[list[str]]]) -> None:
        self._records = records
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._work, name="names", daemon=True)

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _work(self) -> None:
        while True:
            try:
                packet, sender = self._socket.recvfrom(4096)
            except OSError:
                return
            if packet == b"end":
                return
            query = dns.message.from_wire(packet)
            answer = dns.message.make_response(query)
            question = query.question[0]
            name = question.name.to_text().rstrip(".")
            kind = dns.rdatatype.to_text(question.rdtype)
            if name not in self._records:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            elif kind == "A":
                self.asked.append(name)
                given = self._records[name]
                addresses = given.pop(0) if len(given) > 1 else given[0]
                answer.answer.append(dns.rrset.from_text_list(question.name, 0, "IN", "A", addresses))
            self._socket.sendto(answer.to_wire(), sender)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


def endless(piece: bytes, first: bytes = b"") -> Iterator[bytes]:
    """`first`, then the same bytes for ever."""
    if first:
        yield first
    while True:
        yield piece
