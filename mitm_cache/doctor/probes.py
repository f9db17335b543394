"""Looking from outside: names, connections, handshakes and requests. Nothing here judges.

TLS is not verified where answers are asked for: whom a client trusts is a check of its own, and no secret is sent.
"""

import errno
import http.client
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, override
from urllib.parse import urlencode, urlsplit

from mitm_cache.doctor.scene import STEP
from mitm_cache.wire.challenge import parse_bearer

type Door = Literal["open", "refused", "silent", "rejected", "unreachable"]

HTTPS = 443
ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
_DOORS: Mapping[int, Door] = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "silent",
    # What a firewall's REJECT comes to, and also a router that knows no way.
    errno.EHOSTUNREACH: "rejected",
    errno.EACCES: "rejected",
    errno.EPERM: "rejected",
}


@dataclass(frozen=True, slots=True)
class Resolution:
    """The addresses that the system has for a name, IPv4 and IPv6, or why there are none."""

    addresses: tuple[str, ...] = ()
    trouble: str = ""


def resolve(names: Collection[str], *, seconds: float = STEP) -> dict[str, Resolution]:
    """Every name by the system's own way (hosts file, DNS, as nsswitch.conf has it), side by side."""
    results: queue.SimpleQueue[tuple[str, Resolution]] = queue.SimpleQueue()

    def work(name: str) -> None:
        results.put((name, _resolve(name)))

    for name in names:
        threading.Thread(target=work, args=(name,), daemon=True).start()
    found: dict[str, Resolution] = {}
    deadline = time.monotonic() + seconds
    while len(found) < len(names):
        try:
            name, resolution = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[name] = resolution
    late = Resolution(trouble=f"the DNS server did not answer within {seconds:g} s")
    return {name: found.get(name, late) for name in names}


def _resolve(name: str) -> Resolution:
    try:
        found = socket.getaddrinfo(name, HTTPS, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Resolution(trouble=getattr(error, "strerror", None) or "no such name")
    return Resolution(tuple(dict.fromkeys(str(where[0]) for *_, where in found)))


def knock(address: str, port: int) -> Door:
    """What becomes of a TCP connection."""
    try:
        socket.create_connection((address, port), STEP).close()
    except TimeoutError:
        return "silent"
    except OSError as error:
        return _DOORS.get(error.errno or 0, "unreachable")
    return "open"


def at(address: str, port: int) -> str:
    """An address and a port as they stand in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class Way:
    """How requests go to the cache: `tls` by its address, `connect` by CONNECT, `mirror` in clear text."""

    kind: Literal["tls", "connect", "mirror"]
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.kind} {at(self.address, self.port)}"

    def open(self, host: str, port: int = HTTPS) -> socket.socket:
        """A connection on which TLS with `host` may begin (or HTTP, for a mirror). Raises OSError."""
        plain = socket.create_connection((self.address, self.port), STEP)
        if self.kind == "connect":
            try:
                _ask_for_tunnel(plain, f"{host}:{port}")
            except BaseException:
                plain.close()
                raise
        return plain


@dataclass(frozen=True, slots=True)
class Straight:
    """The way of a node past the cache, as to a token host."""

    def open(self, host: str, port: int = HTTPS) -> socket.socket:
        """Raises OSError."""
        return socket.create_connection((host, port), STEP)


def _ask_for_tunnel(plain: socket.socket, target: str) -> None:
    plain.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < 8192:
        more = plain.recv(1)  # what follows the head is not ours to take
        if not more:
            break
        answer += more
    status = answer.split(b"\r\n")[0].decode("latin-1").split(" ", 2)
    if len(status) < 2 or status[1] != "200":
        raise ConnectionError(f"CONNECT {target} was answered {' '.join(status[1:]) or 'by nothing'}")


@dataclass(frozen=True, slots=True)
class Shown:
    """A handshake: whether the certificate that was shown is believed; else OpenSSL's code and words.

    Code 0 is no certificate at all: the handshake failed otherwise, or there was no connection (`reached`).
    """

    believed: bool
    code: int = 0
    words: str = ""
    reached: bool = True


def verify(way: Way, host: str, trust: ssl.SSLContext) -> Shown:
    """Shake hands as a client that trusts `trust` and wants `host`."""
    try:
        plain = way.open(host)
    except OSError as error:
        return Shown(False, words=_words(error), reached=False)
    try:
        with plain, trust.wrap_socket(plain, server_hostname=host):
            return Shown(True)
    except ssl.SSLCertVerificationError as error:
        return Shown(False, error.verify_code, error.verify_message)
    except OSError as error:  # SSLError is one
        return Shown(False, words=_words(error))


def trusting(*files: Path) -> ssl.SSLContext:
    """The trust of a client that has these files of certificates. Raises OSError and ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for file in files:
        text = file.read_bytes().decode("ascii", "ignore")
        if "-----BEGIN" in text:  # OpenSSL refuses to load nothing
            context.load_verify_locations(cadata=text)
    return context


def _words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {STEP:g} s"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").lower().replace("_", " ")
    return error.strerror or str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `trouble` in its place where there was none."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    trouble: str = ""
    reset: bool = False


class _Connection(http.client.HTTPConnection):
    """Over a socket that leads to the host already."""

    def __init__(self, host: str, opened: socket.socket) -> None:
        super().__init__(host, timeout=STEP)
        self._opened = opened

    @override
    def connect(self) -> None:
        self.sock = self._opened


def ask(way: Way | Straight, method: str, url: str, headers: Mapping[str, str] | None = None) -> Reply:
    """One request, and at most 64 KiB of its answer."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        opened = way.open(host, parts.port or (HTTPS if parts.scheme == "https" else 80))
        with opened:
            tls = _unverified().wrap_socket(opened, server_hostname=host) if parts.scheme == "https" else opened
            with tls:
                return _exchange(_Connection(parts.netloc, tls), method, parts._replace(scheme="", netloc=""), headers)
    except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, http.client.RemoteDisconnected):
        return Reply(trouble="the connection was closed at once", reset=True)
    except OSError as error:
        return Reply(trouble=_words(error))
    except ValueError:  # a registry may send anybody anywhere
        return Reply(trouble=f"{url[:128]!r} is no URL that can be asked")
    except http.client.HTTPException:
        return Reply(trouble="what answers there does not speak HTTP")


def _exchange(connection: _Connection, method: str, target: Any, headers: Mapping[str, str] | None) -> Reply:
    connection.request(method, target.geturl() or "/", headers={"User-Agent": "mitm-cache-doctor", **(headers or {})})
    response = connection.getresponse()
    fields = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status, fields, response.read(64 << 10))


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def fetch_token(ways: Sequence[Way | Straight], challenge: str) -> tuple[str, str]:
    """A token for strangers by a Bearer challenge, and "" ; or "" and the token host that gave none."""
    bearer = parse_bearer(challenge)
    if bearer is None:
        return "", ""
    query = urlencode({key: value for key, value in (("service", bearer.service), ("scope", bearer.scope)) if value})
    for way in ways:
        reply = ask(way, "GET", f"{bearer.realm}?{query}")
        try:
            document = json.loads(reply.body) if reply.status == 200 else {}
            token = document.get("token") or document.get("access_token")
        except (ValueError, RecursionError, AttributeError):
            continue
        if isinstance(token, str) and token.isprintable():
            return token, ""
    try:
        return "", urlsplit(bearer.realm).hostname or bearer.realm
    except ValueError:
        return "", bearer.realm
