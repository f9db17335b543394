"""One HTTP request by libcurl, in the calling thread; only this module and `blame.py` know pycurl.

libcurl releases the GIL while it waits and decrypts, so downloads run beside the event loop instead of in it. What
it would take from its surroundings (proxies of the environment, `.netrc`, signals, other protocols) is switched off.
"""

import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import pycurl

from mitm_cache.errors import MitmCacheError, UpstreamError
from mitm_cache.upstream.blame import explain, unauthenticated
from mitm_cache.upstream.route import Route
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.proxies import Proxy
from mitm_cache.wire.redact import redact
from mitm_cache.wire.redirect import Origin

CONNECT_SECONDS = 10
STALL_SECONDS = 30
"""Less than one byte a second for this long is a broken connection."""
MAX_HEAD = 128 << 10
"""Bytes of an answer's header fields."""
IDLE_HANDLES = 16
"""Kept per origin, each with its open connection."""
ALL_IDLE_HANDLES = 64
"""Kept of all origins, of which redirects may name any number. One holds about a megabyte, most of it certificates."""
_STATUS = re.compile("[1-5][0-9]{2}")
_LENGTH = re.compile("[0-9]{1,18}")


class Upload(Protocol):
    """A request's body, read in the thread that sends it."""

    @property
    def size(self) -> int | None:
        """Bytes; None where they are not known before the end."""
        ...

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, b"" at the end. Raises MitmCacheError, which ends the request."""
        ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request to one URL, as it goes out."""

    method: str
    url: str
    headers: Headers
    upload: Upload | None = None


@dataclass(slots=True)
class Answer:
    """What came back. `body` holds the bytes that no sink took, and nothing of a long error."""

    status: int
    headers: Headers
    origin: Origin
    body: bytes = field(default=b"", repr=False)
    hops: int = 0

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def length(self) -> int | None:
        """Content-Length, where it is given and is a number."""
        value = self.headers.get("content-length")
        return int(value) if value is not None and _LENGTH.fullmatch(value) else None


class Sink(Protocol):
    """Takes a body as it arrives. Both methods may raise MitmCacheError, which ends the request."""

    def begin(self, answer: Answer) -> bool:
        """Whether this answer's body is wanted; else it is collected in `answer.body`."""
        ...

    def write(self, data: bytes) -> None: ...


@dataclass(slots=True)
class _Exchange:
    """The state of one request between libcurl's callbacks, from which nothing may escape."""

    origin: Origin
    sink: Sink | None
    limit: int
    stopped: Callable[[], bool]
    forwarder: Proxy | None = None  # one that answers in the origin's place, rather than tunnelling
    status: int = 0
    fields: list[tuple[str, str]] = field(default_factory=list)
    head_size: int = 0
    answer: Answer | None = None
    streaming: bool = False
    upload: Upload | None = None
    collected: bytearray = field(default_factory=bytearray)
    failure: MitmCacheError | None = None
    enough: bool = False
    """Nobody wants the rest: the answer is known, and only its words are too long."""

    def on_header(self, line: bytes) -> int | None:
        if self.answer is not None:
            return None  # a trailer
        self.head_size += len(line)
        text = line.decode("latin-1").strip()
        if self.head_size > MAX_HEAD:
            return self._fail(UpstreamError(f"{self.origin} sent more than {MAX_HEAD} bytes of header fields"))
        if text.startswith("HTTP/"):
            words = text.split(None, 2)
            self.status = int(words[1]) if len(words) > 1 and _STATUS.fullmatch(words[1]) else 0
            self.fields.clear()
        elif text:
            name, _, value = text.partition(":")
            self.fields.append((name.strip(), value.strip()))
        elif self.status >= 200:
            self.answer = Answer(self.status, Headers(self.fields), self.origin)
            return self._guard(self._begin)
        return None

    def _begin(self) -> None:
        assert self.answer is not None
        if self.forwarder is not None and self.status == 407:
            raise UpstreamError(unauthenticated(self.forwarder))
        self.streaming = self.sink is not None and self.sink.begin(self.answer)

    def on_body(self, data: bytes) -> int | None:
        if self.streaming:
            assert self.sink is not None
            sink = self.sink
            return self._guard(lambda: sink.write(data))
        self.collected += data
        if len(self.collected) > self.limit:
            if self.answer is not None and self.answer.status >= 400:
                self.collected.clear()
                self.enough = True
                return -1
            return self._fail(UpstreamError(f"{self.origin} sent more than {self.limit} bytes where few were expected"))
        return None

    def on_read(self, limit: int) -> bytes | int:
        assert self.upload is not None
        upload, data = self.upload, bytearray()

        def read() -> None:
            data.extend(upload.read(limit))

        return pycurl.READFUNC_ABORT if self._guard(read) else bytes(data)

    def on_progress(self, *_: int) -> int:
        return 1 if self.stopped() else 0

    def _guard(self, step: Callable[[], None]) -> int | None:
        try:
            step()
        except MitmCacheError as error:
            return self._fail(error)
        except BaseException as error:  # noqa: BLE001 - libcurl would print it and go on
            return self._fail(MitmCacheError(f"internal error in an exchange: {type(error).__name__}: {error}"))
        return None

    def _fail(self, error: MitmCacheError) -> int:
        self.failure = error
        return -1


class Transport:
    """Sends requests and keeps the connections. Many threads may use it; each handle is one thread's at a time."""

    def __init__(self, *, agent: str, stopped: Callable[[], bool]) -> None:
        """`stopped` is asked at least once a second; when true, requests under way end with UpstreamError."""
        self._agent = agent
        self._stopped = stopped
        self._idle: list[tuple[tuple[object, ...], pycurl.Curl]] = []  # the one that was used last at the end
        self._lock = threading.Lock()

    def perform(
        self,
        request: Outgoing,
        route: Route,
        *,
        sink: Sink | None = None,
        limit: int = 64 << 10,
        seconds: int = 0,
        stall: int = 0,
        abandoned: Callable[[], bool] | None = None,
    ) -> Answer:
        """Send one request and return its answer; no redirect is followed.

        `limit` bounds a body that no sink takes, in bytes; `seconds` the whole exchange, 0 for no bound; `stall` how
        long nothing may come or go, 0 for the usual half minute; `abandoned`, asked once a second, whether nobody
        wants the answer any more. Raises UpstreamError, or what the sink or the upload raised.
        """
        origin = Origin.of(request.url)
        forwarder = route.proxy if origin.scheme == "http" else None
        stopped = (lambda: self._stopped() or abandoned()) if abandoned is not None else self._stopped
        exchange = _Exchange(origin, sink, limit, stopped, forwarder, upload=request.upload)
        handle = self._take(origin, route)
        try:
            self._configure(handle, request, origin, route, exchange, seconds, stall)
            handle.perform()
        except pycurl.error as error:
            # A kept connection may hold what an earlier answer had beyond its announced length.
            stale = error.args[0] == _NO_HTTP and handle.getinfo(pycurl.NUM_CONNECTS) == 0 and exchange.answer is None
            failure = explain(
                error, handle, origin, route, stopped=self._stopped(), answered=exchange.answer is not None
            )
            handle.close()
            if exchange.enough and exchange.answer is not None:
                return exchange.answer
            if stale and request.upload is None and exchange.failure is None:
                return self.perform(
                    request, route, sink=sink, limit=limit, seconds=seconds, stall=stall, abandoned=abandoned
                )
            raise exchange.failure or failure from None
        except BaseException:
            handle.close()
            raise
        self._give_back(handle, origin, route)
        if exchange.answer is None:
            raise UpstreamError(f"{redact(request.url)} was answered by no HTTP message")
        exchange.answer.body = bytes(exchange.collected)
        return exchange.answer

    def dial(self, origin: Origin, route: Route) -> socket.socket:
        """A connected, blocking TCP socket to an origin, through the route's proxy if it has one; no TLS is begun.

        Raises UpstreamError.
        """
        if route.proxy is not None and route.proxy.scheme == "https":
            raise UpstreamError(
                f"{route.proxy.key}: no tunnel is made through an https:// proxy; http:// and socks5:// can"
            )
        handle = pycurl.Curl()
        try:
            handle.setopt(pycurl.URL, f"http://{_bracketed(origin.host)}:{origin.port}")
            handle.setopt(pycurl.CONNECT_ONLY, 1)
            handle.setopt(pycurl.HTTPPROXYTUNNEL, 1)
            handle.setopt(pycurl.NOPROGRESS, 0)
            handle.setopt(pycurl.XFERINFOFUNCTION, lambda *_: 1 if self._stopped() else 0)
            self._lead(handle, origin, route)
            handle.perform()
            # libcurl closes its own descriptor; a connection that it only made it does not shut down.
            connected = socket.socket(fileno=os.dup(handle.getinfo(pycurl.ACTIVESOCKET)))
        except pycurl.error as error:
            raise explain(error, handle, origin, route, stopped=self._stopped()) from None
        except OSError as error:  # no descriptor is left for it
            raise UpstreamError(f"no connection to {origin} can be kept: {error.strerror}") from error
        finally:
            handle.close()
        connected.setblocking(True)
        return connected

    def _lead(self, handle: pycurl.Curl, origin: Origin, route: Route) -> None:
        """Set how a connection is made. All is said: what is left out, libcurl takes from the environment."""
        set_option = handle.setopt
        set_option(pycurl.NOSIGNAL, 1)
        set_option(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        set_option(pycurl.CONNECTTIMEOUT, CONNECT_SECONDS)
        set_option(pycurl.USERAGENT, self._agent)
        set_option(pycurl.NOPROXY, "")
        proxy = route.proxy
        if proxy is None:
            set_option(pycurl.PROXY, "")
            set_option(pycurl.RESOLVE, [_resolved(origin.host, origin.port, route.addresses)])
            return
        set_option(pycurl.PROXYTYPE, _PROXY_TYPES[proxy.scheme])
        set_option(pycurl.PROXY, f"{_bracketed(proxy.host)}:{proxy.port}")
        set_option(pycurl.RESOLVE, [_resolved(proxy.host, proxy.port, route.proxy_addresses)])
        if proxy.user is not None:
            set_option(pycurl.PROXYAUTH, pycurl.HTTPAUTH_BASIC)
            set_option(pycurl.PROXYUSERNAME, proxy.user.encode())
            set_option(pycurl.PROXYPASSWORD, proxy.password.encode())
        set_option(pycurl.HEADEROPT, pycurl.HEADER_SEPARATE)  # the registry's fields are not the proxy's to read
        set_option(_SUPPRESS_CONNECT_HEADERS, 1)
        set_option(pycurl.PROXY_CAINFO, str(route.trust))
        set_option(pycurl.PROXY_SSL_VERIFYPEER, 1)
        set_option(pycurl.PROXY_SSL_VERIFYHOST, 2)

    def _configure(
        self,
        handle: pycurl.Curl,
        request: Outgoing,
        origin: Origin,
        route: Route,
        exchange: _Exchange,
        seconds: int,
        stall: int,
    ) -> None:
        set_option = handle.setopt
        self._lead(handle, origin, route)
        set_option(pycurl.URL, request.url.encode())
        set_option(pycurl.FOLLOWLOCATION, 0)
        set_option(pycurl.NETRC, pycurl.NETRC_IGNORED)
        set_option(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        set_option(pycurl.PATH_AS_IS, 1)
        set_option(pycurl.CAINFO, str(route.trust))
        set_option(pycurl.SSL_VERIFYPEER, 0 if route.insecure else 1)
        set_option(pycurl.SSL_VERIFYHOST, 0 if route.insecure else 2)
        if route.client_cert is not None:
            set_option(pycurl.SSLCERT, str(route.client_cert))
            set_option(pycurl.SSLKEY, str(route.client_cert))
        set_option(pycurl.LOW_SPEED_LIMIT, 1)
        set_option(pycurl.LOW_SPEED_TIME, stall or STALL_SECONDS)
        set_option(pycurl.TIMEOUT, seconds)
        set_option(pycurl.BUFFERSIZE, 256 << 10)
        # After a name, nothing takes out what libcurl would add by itself, and a semicolon sends it without a value.
        fields = [f"{name}: {value}" if value else f"{name};" for name, value in request.headers]
        fields += [f"{name}:" for name in _ADDED if request.headers.get(name) is None]
        set_option(pycurl.HTTPHEADER, [line.encode("latin-1", "replace") for line in fields])
        if request.upload is not None:
            set_option(pycurl.UPLOAD, 1)
            set_option(pycurl.INFILESIZE_LARGE, -1 if request.upload.size is None else request.upload.size)
            set_option(pycurl.READFUNCTION, exchange.on_read)
            set_option(pycurl.FRESH_CONNECT, 1)  # what has been sent on a connection that was kept too long is lost
            set_option(pycurl.CUSTOMREQUEST, request.method)
        elif request.method == "HEAD":
            set_option(pycurl.NOBODY, 1)
        elif request.method != "GET":
            set_option(pycurl.POSTFIELDS, b"")
            set_option(pycurl.CUSTOMREQUEST, request.method)
        set_option(pycurl.HEADERFUNCTION, exchange.on_header)
        set_option(pycurl.WRITEFUNCTION, exchange.on_body)
        set_option(pycurl.NOPROGRESS, 0)
        set_option(pycurl.XFERINFOFUNCTION, exchange.on_progress)

    def _take(self, origin: Origin, route: Route) -> pycurl.Curl:
        key = (origin, *route.connection)
        with self._lock:
            for place in reversed(range(len(self._idle))):
                if self._idle[place][0] == key:
                    return self._idle.pop(place)[1]
        return pycurl.Curl()

    def _give_back(self, handle: pycurl.Curl, origin: Origin, route: Route) -> None:
        handle.reset()  # forgets the options and keeps the connection
        key = (origin, *route.connection)
        with self._lock:
            is_one_of_many = sum(known == key for known, _ in self._idle) >= IDLE_HANDLES
            if not is_one_of_many and not self._stopped():
                self._idle.append((key, handle))
                if len(self._idle) <= ALL_IDLE_HANDLES:
                    return
                _, handle = self._idle.pop(0)
        handle.close()

    def close(self) -> None:
        """Close the kept connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, handle in idle:
            handle.close()


_ADDED = ("Accept", "Content-Type", "Expect")
"""Fields that libcurl adds where a request has none."""
_NO_HTTP = pycurl.E_FTP_WEIRD_SERVER_REPLY  # its name without FTP is not in pycurl
_SUPPRESS_CONNECT_HEADERS = 265  # CURLOPT_SUPPRESS_CONNECT_HEADERS is not in pycurl
_PROXY_TYPES = {
    "http": pycurl.PROXYTYPE_HTTP,
    "https": 2,  # CURLPROXY_HTTPS, nor that
    "socks5": pycurl.PROXYTYPE_SOCKS5_HOSTNAME,
}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _resolved(host: str, port: int, addresses: tuple[str, ...]) -> str:
    """An entry for libcurl, which tries the addresses of both families in turns."""
    return f"{host}:{port}:{','.join(map(_bracketed, addresses))}"
