"""Requests to registries: redirects followed here, credentials kept where they belong, tokens got where none came."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mitm_cache.errors import LoopError, MitmCacheError, UpstreamError
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import Registry
from mitm_cache.upstream.credentials import Keeper, Kind, Login
from mitm_cache.upstream.curl import Answer, Outgoing, Sink, Transport
from mitm_cache.upstream.passage import Passage
from mitm_cache.upstream.reach import check_redirect
from mitm_cache.upstream.route import Router
from mitm_cache.upstream.tokens import Question, Tokens, belongs
from mitm_cache.upstream.upgrade import Line
from mitm_cache.wire.challenge import offers_basic, parse_bearer
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Credential
from mitm_cache.wire.redirect import MAX_HOPS, STATUSES, Origin, carry, next_hop, redact_safely

EXCHANGE_SECONDS = 60
"""For a whole exchange whose body is small."""
REFUSALS = (401, 403)
"""Statuses by which a registry does not take a credential, or takes it for too little."""
RELAY_SECONDS = 900
"""A registry may be silent for long while it puts together what was pushed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request to a registry, before it is known where it leads.

    `own`: where there is no credential, the cache's own for that repository is used if the registry wants one.
    """

    registry: Registry
    repository: Repository | None
    method: str
    target: str
    headers: Headers
    credential: Credential | None
    own: bool = False
    follow: bool = True
    limit: int = 64 << 10


class Client:
    """Speaks to registries in the calling thread."""

    def __init__(
        self,
        *,
        transport: Transport,
        router: Router,
        tokens: Tokens,
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
        self._basic: set[str] = set()
        """Registries that want user and password, as learned from their challenges."""

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
        keeper = self._tokens.credentials.find(call.registry.name, call.repository) if call.own else None
        login = keeper.login() if keeper is not None else None
        answer = self._as(login, call, call.repository, keeper, outgoing, send)
        if keeper is None or login is None or answer.status not in REFUSALS:
            return answer
        if (renewed := keeper.renew(login)) is not None:
            answer = self._as(renewed, call, call.repository, keeper, outgoing, send)
        if answer.status in REFUSALS:
            keeper.tell(
                f"{call.registry.name} answered {answer.status} for {call.repository}: it is wrong or has expired, "
                "or it has no right there"
            )
        return answer

    def _as(
        self,
        login: Login | None,
        call: Call,
        repository: Repository,
        keeper: Keeper | None,
        outgoing: Outgoing,
        send: Callable[[Outgoing], Answer],
    ) -> Answer:
        """The answer to somebody who logs in so, or to a stranger."""
        name = call.registry.name
        if login is not None and login.kind is Kind.BEARER:
            return send(_with_authorization(outgoing, f"Bearer {login.secret}"))
        if login is not None and login.kind is Kind.PASSWORD and name in self._basic:
            answer = send(_with_authorization(outgoing, login.basic))
            if answer.status != 401 or offers_basic(answer.headers.get_all("www-authenticate")):
                return answer
            self._basic.discard(name)  # it has changed its mind
        token = self._tokens.find(call.registry, repository, login)
        answer = send(_with_authorization(outgoing, f"Bearer {token}") if token else outgoing)
        if token and answer.status in REFUSALS:
            self._tokens.drop(call.registry, repository, login)
            answer = send(outgoing)
        if answer.status != 401:
            return answer
        value = self._authorization(login, call, repository, keeper, answer)
        granted = send(_with_authorization(outgoing, value)) if value else answer
        # What strangers are denied the client may yet be given: the challenge tells it that it can log in.
        return answer if granted.status == 403 else granted

    def _authorization(
        self, login: Login | None, call: Call, repository: Repository, keeper: Keeper | None, refusal: Answer
    ) -> str | None:
        """What a registry's challenge asks for, as far as it can be had; nothing is told to a realm of others."""
        challenges = refusal.headers.get_all("www-authenticate")
        challenge = next((found for value in challenges if (found := parse_bearer(value)) is not None), None)
        if challenge is None:
            if login is not None and login.kind is Kind.PASSWORD and offers_basic(challenges):
                self._basic.add(call.registry.name)
                return login.basic
            return None
        if not belongs(challenge.realm, call.registry, Origin.of(self.base(call.registry))):
            if keeper is not None:
                keeper.tell(
                    f"not sent to {redact_safely(challenge.realm)}, which does not belong to {call.registry.name}; "
                    "registries.NAME.auth_hosts adds the host of a realm"
                )
            return None
        statuses: list[int] = []

        def ask(question: Question) -> Answer:
            answer = self._token_exchange(question, call)
            statuses.append(answer.status)
            return answer

        token = self._tokens.acquire(call.registry, repository, challenge, ask, login)
        if login is not None and keeper is not None and 401 in statuses:
            keeper.rest(login)
        return f"Bearer {token}" if token else None

    def _token_exchange(self, question: Question, call: Call) -> Answer:
        fields = [("Accept", "application/json")]
        if question.authorization:
            fields.append(("Authorization", question.authorization))
        if question.form:
            fields.append(("Content-Type", "application/x-www-form-urlencoded"))
        method, upload = ("POST", _Form(question.form)) if question.form else ("GET", None)
        outgoing = Outgoing(method, question.url, self.marked(Headers(fields)), upload)
        # A form holds a secret, and goes nowhere but where it was meant for.
        asked = replace(call, method=method, limit=1 << 20, follow=not question.form)
        return self._follow(outgoing, asked, None)

    def _follow(self, outgoing: Outgoing, call: Call, sink: Sink | None) -> Answer:
        start = Origin.of(outgoing.url)
        home = self._router.find(start, call.registry.name)
        for hop in range(MAX_HOPS + 1):
            origin = Origin.of(outgoing.url)
            route = home if origin == start else self._router.find(origin, call.registry.name)
            if origin != start:
                check_redirect(origin, route, start, home, allow_private=self._allow_private)
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


class _Form:
    """A short body that is at hand."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._rest = content

    def read(self, limit: int) -> bytes:
        piece, self._rest = self._rest[:limit], self._rest[limit:]
        return piece


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
