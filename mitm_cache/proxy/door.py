"""What is decided about a request before any of its body is read, and what is remembered of it until its last byte."""

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from weakref import WeakKeyDictionary

from mitmproxy import http
from mitmproxy.connection import Client

from mitm_cache import relay
from mitm_cache.answers import explain
from mitm_cache.errors import ClientError, LoopError, MitmCacheError
from mitm_cache.journal import Event, Journal
from mitm_cache.oci.operation import Blob, Manifest, Operation, Referrers, classify, is_pull, repository_of
from mitm_cache.proxy.identity import Arrival, identify, is_own, split_host
from mitm_cache.proxy.logins import Login, Logins
from mitm_cache.registries import Known, Registry
from mitm_cache.upstream.passage import Passage
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Credential, Request, Response

MAX_BODY = 64 << 10
"""Bytes of a pull's body, which has no meaning; the bodies of relayed requests are streams."""
type Pages = Callable[[str, str, str], Response]
"""Answers for the cache itself, by method, path and Accept."""
_LENGTH = re.compile("[0-9]{1,18}")
_TARGET = re.compile('[!"$-~]+')
_METHOD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
FORMS = {"authority": 405, "absolute": 400}
"""What is answered to request lines that ask for a proxy (RFC 9112, 3.2): this is not one."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a connection came in: by which listener and local port, and behind which CONNECT of which user, if one, with
    the hash of the password that let it in."""

    listener: str
    port: int
    target: str = ""
    user: str = ""
    hash: str = field(default="", repr=False)


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and its answer, from the door to the last byte."""

    listener: str
    client: str
    method: str
    user_agent: str
    journal: Journal
    user: str = ""
    hash: str = field(default="", repr=False)
    """Of the password by which the user was let in with the connection."""
    request: Request | None = None
    registry: Registry | None = None
    relayed: bool = False
    received: bool = False
    """Whether it changes what is kept here, or asks to: a request for a local name that is no GET or HEAD."""
    uploading: bool = False
    """Whether its body is being received."""
    taken: int = 0
    """Bytes of its body that have been received so far."""
    passage: Passage | None = None
    response: Response | None = None
    request_id: str = field(default_factory=lambda: token_hex(8))
    at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    first_byte: float = 0.0
    recorded: bool = False

    def mark_first_byte(self) -> None:
        """Note when the answer began to be sent."""
        self.first_byte = self.first_byte or time.monotonic()

    def close(self) -> None:
        """Let go of what is open for it: its client is gone, or has been told that something went wrong."""
        if self.response is not None:
            self.response.close()
        if self.passage is not None:
            self.passage.close()

    def finish(self, *, bytes_out: int, failure: str = "") -> None:
        """Record the event, once, with what was really sent."""
        if self.recorded:
            return
        self.recorded = True
        now = time.monotonic()
        response = self.response
        operation = self.request.operation if self.request else None
        repository = repository_of(operation) if operation else None
        self.journal.record(
            Event(
                time=self.at,
                listener=self.listener,
                client=self.client,
                user=self.user,
                method=self.method,
                outcome="ERROR" if failure or response is None else response.outcome,
                reason=failure or (response.reason if response else "no answer was made"),
                registry=self.registry.name if self.registry else "",
                repository=str(repository or ""),
                reference=_reference(operation),
                digest=response.digest if response else "",
                status=response.status if response else 0,
                bytes_out=bytes_out,
                bytes_in=self._bytes_in(bytes_out),
                ttfb_ms=round(((self.first_byte or now) - self.started) * 1000, 1),
                ms=round((now - self.started) * 1000, 1),
                user_agent=self.user_agent[:256],
                request_id=self.request_id,
            )
        )
        # Why a body broke off is remembered there with the frames that it went through, and they have the flow. By the
        # flow this is found for as long as it lives: together they would never be let go of.
        self.passage = None
        if response is not None and not isinstance(response.body, bytes):
            response.body = b""

    def _bytes_in(self, bytes_out: int) -> int:
        """From upstream, or of a push to the local registry from the client."""
        if self.received:
            return self.taken
        if self.relayed:
            return bytes_out
        return self.response.bytes_in if self.response else 0


def _reference(operation: Operation | None) -> str:
    match operation:
        case Manifest():
            return str(operation.reference)
        case Blob() | Referrers():
            return str(operation.digest)
        case _:
            return ""


class Door:
    """Admits requests: identity, form, path and method are settled here, and nowhere else."""

    def __init__(
        self,
        *,
        known: Known,
        journal: Journal,
        via: str,
        ways: Mapping[str, Way],
        own: Collection[str] = (),
        pages: Pages | None = None,
        logins: Logins | None = None,
    ) -> None:
        """`ways`: how each connection came in, by mitmproxy's id; `own`: the cache's names, where its `pages` are;
        `logins`: who its users are."""
        self._known = known
        self._own = frozenset(own)
        self._pages = pages
        self._logins = logins or Logins(None)
        self._journal = journal
        self._via = via
        self._ways = ways
        self.pending: WeakKeyDictionary[http.HTTPFlow, Exchange] = WeakKeyDictionary()

    def uploads(self, client: str) -> int:
        """How many requests of a client are on their way upstream or received, with a body that may still be coming."""
        mine = (each for each in self.pending.values() if each.client == client and not each.recorded)
        return sum(each.passage is not None or each.uploading for each in mine)

    def in_flight(self) -> int:
        """How many requests have been admitted and have not had their last byte."""
        return sum(not exchange.recorded for exchange in self.pending.values())

    def admit(self, client: Client, request: http.Request) -> Exchange:
        """An exchange; its `response` is set where the request is refused on its head alone."""
        way = self._ways.get(client.id, Way("", 0))
        exchange = Exchange(
            listener=way.listener,
            client=client.peername[0],
            method=_readable(request.method)[:16],
            user_agent=_readable(request.headers.get("user-agent", "")),
            journal=self._journal,
            user=way.user,
            hash=way.hash,
        )
        try:
            sni = (client.sni or "").lower().rstrip(".") if client.tls else None
            address = client.sockname[0].removeprefix("::ffff:")
            arrival = Arrival(way.listener, way.port, sni, way.target, address)
            self._admit(exchange, arrival, request)
        except MitmCacheError as error:
            exchange.response = explain(error, exchange.request)
        return exchange

    def login(self, exchange: Exchange) -> Login | None:
        """What `recognize` has to judge of a request, which may take a while; None where all is known already."""
        return self._logins.sort(exchange)

    async def recognize(self, exchange: Exchange, login: Login) -> None:
        """Find out who asks; the exchange has an answer where that is refused."""
        await self._logins.settle(exchange, login)

    def _admit(self, exchange: Exchange, arrival: Arrival, request: http.Request) -> None:
        place = identify(arrival, self._hosts(arrival, request), request.path, self._known, self._own)
        if place is None:
            exchange.response = self._page(request)
            return
        exchange.registry = place.registry
        if self._via in ",".join(request.headers.get_all("via")):
            raise LoopError(
                f"{place.registry.name} leads back to this cache; set upstream.resolvers or registries.NAME.resolve"
            )
        # As Latin-1 every byte is a character and comes out as it went in, whatever the client means by it.
        headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.fields)
        authorization = ", ".join(headers.get_all("authorization"))
        exchange.request = admitted = Request(
            listener=arrival.listener,
            client=exchange.client,
            method=request.method,
            registry=place.registry,
            operation=classify(place.target.partition("?")[0]),
            target=place.target,
            headers=headers,
            credential=Credential(authorization) if authorization else None,
            user=exchange.user,
            size=_size(headers),
            mirror=place.mirror,
            given=place.given,
            chosen=place.chosen,
            realm=self._logins.realm(
                tls=arrival.sni is not None or _is_tls_ended_before(headers),
                authority=_authority(request),
                local=place.registry.is_local,
                mirror=place.mirror,
            ),
        )
        local = place.registry.is_local
        if local and request.method not in ("GET", "HEAD"):
            exchange.received = True
        elif not local and not is_pull(request.method, admitted.operation):
            relay.admit(admitted)
            exchange.relayed = True
        elif admitted.size is not None and admitted.size > MAX_BODY:
            raise ClientError(f"the body of a pull is at most {MAX_BODY} bytes", status=413)

    def _hosts(self, arrival: Arrival, request: http.Request) -> list[str]:
        """The hosts that a request names, once its form is one that its listener takes. Raises MitmCacheError."""
        if not arrival.listener:
            raise MitmCacheError("a connection of no listener")
        hosts = request.headers.get_all("host")
        straight = arrival.listener == "connect" and not arrival.target
        if straight and request.first_line_format == "absolute":
            hosts = [request.host]  # RFC 9112, 3.2.2
        elif request.first_line_format != "relative" or request.method == "CONNECT":
            form = "authority" if request.method == "CONNECT" else request.first_line_format
            raise ClientError(
                f"the {arrival.listener} listener is no proxy: it takes requests for a path, no URL and no CONNECT",
                status=FORMS.get(form, 400),
            )
        if arrival.listener == "tls" and arrival.sni is None:
            raise ClientError("this listener takes TLS only")
        # By this listener's own address or name there are pages, and the mirror.
        if straight and not (len(hosts) == 1 and is_own(split_host(hosts[0])[0], arrival, self._own)):
            raise ClientError("this listener takes CONNECT only: it is for HTTPS_PROXY", status=405)
        if request.http_version not in ("HTTP/1.1", "HTTP/1.0"):
            raise ClientError("this cache speaks HTTP/1.1", status=505)
        # mitmproxy unfolds no header and keeps a bare CR: upstream could take what follows for a header of its own.
        if any(control in value for _, value in request.headers.fields for control in (b"\r", b"\n", b"\0")):
            raise ClientError("a header holds a control character or goes on in a second line")
        if not _METHOD.fullmatch(request.method):
            raise ClientError("a method is a word of ASCII letters, digits and a few signs (RFC 9110, 5.6.2)")
        # libcurl leaves out a fragment: upstream would be asked for another path than the one that is judged here.
        if not _TARGET.fullmatch(request.path):
            raise ClientError("a path and query are printable ASCII but #; anything else is percent-encoded (RFC 3986)")
        return hosts

    def _page(self, request: http.Request) -> Response:
        if self._pages is None:
            raise ClientError("there are no pages here", status=404)
        return self._pages(request.method, request.path.partition("?")[0], request.headers.get("accept", ""))


def _readable(text: str) -> str:
    """What a client said, as text: mitmproxy keeps stray bytes as surrogates, and strict readers of JSON refuse those,
    and so a line of the log."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _authority(request: http.Request) -> str:
    """The host and port that a client asks, as it says them."""
    if request.first_line_format == "absolute":
        return f"[{request.host}]:{request.port}" if ":" in request.host else f"{request.host}:{request.port}"
    hosts: list[str] = request.headers.get_all("host")
    return hosts[0].strip() if hosts else ""


def _is_tls_ended_before(headers: Headers) -> bool:
    """Whether the client's connection had TLS; of several servers in front of this the first one's word counts."""
    return (headers.get("x-forwarded-proto") or "").partition(",")[0].strip().lower() == "https"


def _size(headers: Headers) -> int | None:
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if coding.strip().lower() != "chunked":
            raise ClientError("no Transfer-Encoding but chunked is known here", status=501)  # RFC 9112, 6.1
        return None
    declared = headers.get("content-length")
    if declared is None:
        return 0
    if not _LENGTH.fullmatch(declared):
        raise ClientError("Content-Length is a number of bytes")
    return int(declared)
