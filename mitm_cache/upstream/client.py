"""Requests to registries: redirects followed here, credentials kept where they belong, tokens for strangers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mitm_cache.errors import LoopError, MitmCacheError, UpstreamError
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import Registry
from mitm_cache.upstream.curl import Answer, Outgoing, Sink, Transport
from mitm_cache.upstream.passage import Passage
from mitm_cache.upstream.reach import check_redirect
from mitm_cache.upstream.route import Router
from mitm_cache.upstream.tokens import AnonymousTokens, belongs
from mitm_cache.upstream.upgrade import Line
from mitm_cache.wire.challenge import parse_bearer
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Credential
from mitm_cache.wire.redirect import MAX_HOPS, STATUSES, Origin, carry, next_hop

EXCHANGE_SECONDS = 60
"""For a whole exchange whose body is small."""
RELAY_SECONDS = 900
"""A registry may be silent for long while it puts together what was pushed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request to a registry, before it is known where it leads."""

    registry: Registry
    repository: Repository | None
    method: str
    target: str
    headers: Headers
    credential: Credential | None
    follow: bool = True
    limit: int = 64 << 10


class Client:
    """Speaks to registries in the calling thread."""

    def __init__(
        self,
        *,
        transport: Transport,
        router: Router,
        tokens: AnonymousTokens,
        bases: Mapping[str, str],
        via: str,
        allow_http: Callable[[str], bool],
        allow_private: bool,
    ) -> None:
        """`bases`: the URL of each registry by name, without a path where it is at its host's root.

        `via`: this cache's pseudonym; `allow_http`: whether a registry's answers may lead to http; `allow_private`:
        whether those of one outside may lead to addresses inside.
        """
        self._transport = transport
        self._router = router
        self._tokens = tokens
        self._bases = bases
        self._via = via
        self._allow_http = allow_http
        self._allow_private = allow_private

    def base(self, registry: Registry) -> str:
        """The URL below which a registry's `/v2/` is."""
        return self._bases.get(registry.name) or f"https://{registry.host}"

    def marked(self, headers: Headers) -> Headers:
        """With the mark by which this cache knows what it has sent itself (RFC 9110, 7.6.3)."""
        return headers + Headers([("Via", f"1.1 {self._via}")])

    def exchange(self, call: Call) -> Answer:
        """A request whose answer is small: at most `call.limit` bytes, in 60 seconds. Raises UpstreamError."""
        return self._authorized(call, lambda outgoing: self._follow(outgoing, call, None))

    def stream(self, call: Call, sink: Sink) -> Answer:
        """A request whose 2xx body goes to `sink` as it arrives. Raises UpstreamError, or what the sink raises."""
        return self._authorized(call, lambda outgoing: self._follow(outgoing, call, sink))

    def relay(self, call: Call, passage: Passage) -> None:
        """Pass a request on as it came, and its answer as it is: no redirect is followed and no token is got here."""
        url = self.base(call.registry).rstrip("/") + call.target
        outgoing = Outgoing(call.method, url, self.marked(call.headers), passage if passage.size != 0 else None)
        try:
            route = self._router.find(Origin.of(url), call.registry.name)
            self._transport.perform(outgoing, route, sink=passage, stall=RELAY_SECONDS, abandoned=passage.abandoned)
        except MitmCacheError as error:
            passage.finish(error)
        else:
            passage.finish()

    def connect(self, registry: Registry) -> Line:
        """A connection to a registry by its route, TLS not yet begun. Raises UpstreamError."""
        origin = Origin.of(self.base(registry))
        route = self._router.find(origin, registry.name)
        return Line(self._transport.dial(origin, route), origin, route)

    def _authorized(self, call: Call, send: Callable[[Outgoing], Answer]) -> Answer:
        headers = self.marked(call.headers) + Headers([("Accept-Encoding", "identity")])
        outgoing = Outgoing(call.method, self.base(call.registry).rstrip("/") + call.target, headers)
        if call.credential is not None:
            return send(_with_authorization(outgoing, call.credential.header))
        if call.repository is None:
            return send(outgoing)
        token = self._tokens.find(call.registry, call.repository)
        answer = send(_with_authorization(outgoing, f"Bearer {token}") if token else outgoing)
        if token and answer.status in (401, 403):
            self._tokens.drop(call.registry, call.repository)
            answer = send(outgoing)
        if answer.status != 401:
            return answer
        fresh = self._anonymous_token(call, call.repository, answer)
        granted = send(_with_authorization(outgoing, f"Bearer {fresh}")) if fresh else answer
        # What strangers are denied the client may yet be given: the challenge tells it that it can log in.
        return answer if granted.status == 403 else granted

    def _anonymous_token(self, call: Call, repository: Repository, refusal: Answer) -> str | None:
        challenge = parse_bearer(refusal.headers.get("www-authenticate"))
        if challenge is None or not belongs(challenge.realm, call.registry, Origin.of(self.base(call.registry))):
            return None
        return self._tokens.acquire(call.registry, repository, challenge, lambda url: self._token_exchange(url, call))

    def _token_exchange(self, url: str, call: Call) -> Answer:
        headers = self.marked(Headers([("Accept", "application/json")]))
        return self._follow(Outgoing("GET", url, headers), replace(call, method="GET", limit=1 << 20), None)

    def _follow(self, outgoing: Outgoing, call: Call, sink: Sink | None) -> Answer:
        start = Origin.of(outgoing.url)
        home = self._router.find(start, call.registry.name)
        for hop in range(MAX_HOPS + 1):
            origin = Origin.of(outgoing.url)
            route = home if origin == start else self._router.find(origin, call.registry.name)
            if origin != start:
                check_redirect(origin, route, home, allow_private=self._allow_private)
            answer = self._transport.perform(
                outgoing,
                route,
                sink=_SuccessOnly(sink) if sink is not None else None,
                limit=call.limit,
                seconds=0 if sink is not None else EXCHANGE_SECONDS,
            )
            answer.hops = hop
            if answer.status == LoopError.status:
                raise LoopError(
                    f"the way to {origin.host} leads in a circle; set upstream.resolvers or registries.NAME.resolve on "
                    "each cache of it"
                )
            if answer.status not in STATUSES or not call.follow:
                return answer
            target = next_hop(
                outgoing.url, answer.headers.get("location"), allow_http=self._allow_http(call.registry.name)
            )
            outgoing = replace(outgoing, url=target, headers=carry(outgoing.headers, outgoing.url, target))
        raise UpstreamError(f"{call.registry.name} redirects more than {MAX_HOPS} times")


@dataclass(frozen=True, slots=True)
class _SuccessOnly:
    """Keeps the bodies of redirects and errors out of a sink."""

    sink: Sink

    def begin(self, answer: Answer) -> bool:
        return answer.ok and self.sink.begin(answer)

    def write(self, data: bytes) -> None:
        self.sink.write(data)


def _with_authorization(outgoing: Outgoing, value: str) -> Outgoing:
    return replace(outgoing, headers=outgoing.headers + Headers([("Authorization", value)]))
