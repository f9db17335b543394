"""A proxy in front of a real registry that breaks what the registry says: cuts, resets, stalls, slowness, wrong bytes.

It ends TLS itself and speaks clear HTTP to the registry: then each answer's body is broken by itself, and a wrong byte
is one of content. Or it passes TCP on as it comes: then TLS is the registry's, and a wrong byte breaks that.
"""

import enum
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

_PIECE = 64 << 10
_PATIENCE = 60.0
_HANDSHAKE, _ANSWERS = 4 << 10, 256 << 10
"""Bytes to a client: TLS's handshake, which is left alone, and some answers after it."""
_SLOW_PIECES, _SLOW_SECONDS = 20, 0.05


class Kind(enum.Enum):
    """What is done to a stream of bytes, at one place in it."""

    DROP = "no answer"
    CUT = "cut"
    GOODBYE = "cut, with TLS's goodbye"
    RESET = "reset"
    STALL = "stall"
    SLOW = "slow"
    CORRUPT = "wrong byte"


@dataclass(frozen=True, slots=True)
class Trouble:
    """`place`: where, as a part of the whole from 0 up to 1; `seconds`: how long a stall is."""

    kind: Kind
    place: float
    seconds: float = 1.0


type Plan = Callable[[], Trouble | None]


def often(seed: int, chance: float, kinds: tuple[Kind, ...] = tuple(Kind)) -> Plan:
    """Trouble of any of these kinds, anywhere, for such a part of all streams."""
    dice, lock = random.Random(seed), threading.Lock()

    def plan() -> Trouble | None:
        with lock:
            return Trouble(dice.choice(kinds), dice.random()) if dice.random() < chance else None

    return plan


def never() -> Trouble | None:
    """No trouble."""
    return None


class _EndError(Exception):
    """This connection ends here."""


class Meddler:
    """Listens on a port of loopback; `plan` is asked for every answer, or every connection where TLS is not ended here.

    `sent` counts the bytes that were passed on towards the client, `done` what was done to them.
    """

    def __init__(self, registry: tuple[str, int], tls: ssl.SSLContext | None, plan: Plan = never) -> None:
        self.plan = plan
        self.sent = 0
        self.done: Counter[Kind] = Counter()
        self._registry, self._tls = registry, tls
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(_PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._tls is None:
                self._pass_on(client)
            else:
                client = self._tls.wrap_socket(client, server_side=True)
                while self._answer(client):
                    pass
        except (_EndError, OSError):
            pass  # as was planned, or one of the two has gone
        finally:
            _close(client)

    def _answer(self, client: socket.socket) -> bool:
        """One request and its answer; whether another may follow."""
        if not (head := _head(client)):
            return False
        trouble = self.plan()
        with socket.create_connection(self._registry, _PATIENCE) as upstream:
            upstream.sendall(_without(head[0], b"connection") + b"Connection: close\r\n\r\n" + head[1])
            if trouble is not None and trouble.kind is Kind.DROP:
                self._note(trouble)
                _reset(client)
            if not (got := _head(upstream)):
                return False
            lines = got[0].lower()
            length = next((int(line[15:]) for line in lines.split(b"\r\n") if line.startswith(b"content-length:")), -1)
            bodiless = head[0].startswith(b"HEAD ") or lines.split(None, 2)[1] in (b"204", b"304")
            client.sendall(_without(got[0], b"connection") + b"\r\n")
            if not bodiless:
                at = int(trouble.place * length) if trouble is not None and length > 0 else -1
                self._pump(_rest(got[1], upstream), client, trouble, at)
            return bodiless or length >= 0 or b"transfer-encoding: chunked" in lines

    def _pass_on(self, client: socket.socket) -> None:
        trouble = self.plan()
        with socket.create_connection(self._registry, _PATIENCE) as upstream:
            up = threading.Thread(target=_copy, args=(client, upstream), daemon=True)
            up.start()
            at = _HANDSHAKE + int(trouble.place**2 * _ANSWERS) if trouble is not None else -1
            try:
                self._pump(_rest(b"", upstream), client, trouble, at)
            finally:
                _close(upstream)

    def _pump(self, pieces: Iterator[bytes], client: socket.socket, trouble: Trouble | None, at: int) -> None:
        position = 0
        for piece in pieces:
            here = at - position
            if trouble is not None and 0 <= here < len(piece):
                self._send(client, piece[:here])
                self._note(trouble)
                self._send(client, self._meddle(client, trouble, piece[here:]))
            else:
                self._send(client, piece)
            position += len(piece)

    def _meddle(self, client: socket.socket, trouble: Trouble, rest: bytes) -> bytes:
        """What is sent of the rest of a piece."""
        match trouble.kind:
            case Kind.CUT | Kind.DROP:
                raise _EndError
            case Kind.GOODBYE:
                if isinstance(client, ssl.SSLSocket):
                    client.settimeout(0)
                    with suppress(OSError):
                        client.unwrap()
                raise _EndError
            case Kind.RESET:
                _reset(client)
            case Kind.STALL:
                self._ended.wait(trouble.seconds)
            case Kind.SLOW:
                step = len(rest) // _SLOW_PIECES + 1
                for start in range(0, len(rest), step):
                    self._ended.wait(_SLOW_SECONDS)
                    self._send(client, rest[start : start + step])
                return b""
            case Kind.CORRUPT:
                return bytes([rest[0] ^ 0xFF]) + rest[1:]
        return rest

    def _send(self, client: socket.socket, data: bytes) -> None:
        client.sendall(data)
        with self._lock:
            self.sent += len(data)

    def _note(self, trouble: Trouble) -> None:
        with self._lock:
            self.done[trouble.kind] += 1


def _head(connected: socket.socket) -> tuple[bytes, bytes] | None:
    """A head up to its empty line, and what has come after it; None at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connected.recv(_PIECE)
        if not piece:
            return None
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n", rest


def _without(head: bytes, name: bytes) -> bytes:
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(name + b":"))


def _rest(begun: bytes, connected: socket.socket) -> Iterator[bytes]:
    if begun:
        yield begun
    while piece := connected.recv(_PIECE):
        yield piece


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        for piece in _rest(b"", source):
            target.sendall(piece)
    # Whoever has said its last word may still listen.
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    raise _EndError


def _close(connected: socket.socket) -> None:
    """Also where another thread reads from it."""
    with suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
    connected.close()
