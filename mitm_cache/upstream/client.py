"""Requests to registries: redirects followed here, credentials kept where they belong, tokens got where none came."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from mitm_cache.errors import LoopError, MitmCacheError, OfflineError, StoppingError, UnreachableError, UpstreamError
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import Registry
from mitm_cache.upstream.breaker import Breaker, Place, Waiting
from mitm_cache.upstream.credentials import Keeper, Kind, Login
from mitm_cache.upstream.curl import Answer, Outgoing, Sink, Transport
from mitm_cache.upstream.passage import Passage
from mitm_cache.upstream.quota import Quotas
from mitm_cache.upstream.reach import check_redirect
from mitm_cache.upstream.route import Route, Router
from mitm_cache.upstream.tokens import Question, Tokens, belongs
from mitm_cache.upstream.upgrade import Line
from mitm_cache.wire.challenge import offers_basic, parse_bearer
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Credential
from mitm_cache.wire.redirect import MAX_HOPS, STATUSES, Origin, carry, is_same_question, next_hop, redact_safely

EXCHANGE_SECONDS = 60
"""For a whole exchange whose body is small."""
LOOK_SECONDS = 5
"""For a sign of life."""
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
    waiting: Waiting = field(default_factory=Waiting, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Where requests may go.

    `allow_http`: whether a registry's answers may lead to http; `allow_private`: whether those of one outside may lead
    to addresses inside; `offline`: whether a registry, by its name, is not to be asked at all.
    """

    allow_http: bool = False
    allow_private: bool = False
    offline: Callable[[str], bool] = lambda _name: False


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
        bounds: Bounds,
    ) -> None:
        """`bases`: the URL of each registry by name, without a path where it is at its host's root; `via`: this cache's
        pseudonym.
        """
        self._transport = transport
        self._router = router
        self._tokens = tokens
        self._bases = bases
        self._via = via
        self._bounds = bounds
        self.breaker = Breaker()
        self.quotas = Quotas()
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

    def prove(self, call: Call) -> Answer:
        """Whether upstream would give this client the manifest or blob that `call` names, by an answer that says so: a
        redirect alone does not, since some registries send every question on, and proxies send strangers to a page to
        log in. Raises UpstreamError."""
        answer = self.exchange(replace(call, method="HEAD", follow=False))
        if answer.status not in STATUSES:
            return answer
        if is_same_question(call.target, answer.headers.get("location")):
            answer = self.exchange(replace(call, method="HEAD"))
            if not answer.ok or answer.headers.get("docker-content-digest") == call.target.rpartition("/")[2]:
                return answer
        # Storage may refuse HEAD by an address that is signed for GET: it is asked for one byte.
        answer = self.exchange(replace(call, method="GET", headers=call.headers + Headers([("Range", "bytes=0-0")])))
        if answer.ok and answer.status != 206:
            raise UpstreamError(f"{call.registry.name} redirects to {answer.origin}, which gives something else")
        return answer

    def stream(self, call: Call, sink: Sink) -> Answer:
        """A request whose 2xx body goes to `sink` as it arrives. Raises UpstreamError, or what the sink raises."""
        return self._authorized(call, lambda outgoing: self._follow(outgoing, call, sink))

    def relay(self, call: Call, passage: Passage) -> None:
        """Pass a request on as it came, and its answer as it is: no redirect is followed and no token is got here."""
        url = self.base(call.registry).rstrip("/") + call.target
        outgoing = Outgoing(call.method, url, self.marked(call.headers), passage if passage.size != 0 else None)
        try:
            with self._watched(self._home(call.registry)):
                route = self._router.find(Origin.of(url), call.registry.name)
                self._transport.perform(outgoing, route, sink=passage, stall=RELAY_SECONDS, abandoned=passage.abandoned)
        except MitmCacheError as error:
            passage.finish(error)
        else:
            passage.finish()

    def look_for(self, place: Place) -> None:
        """Ask who is away for a sign of life, and tell the breaker."""
        outgoing = Outgoing("GET", place.sign, self.marked(Headers()))
        try:
            route = self._router.find(place.origin, place.registry.name)
            self._transport.perform(outgoing, route, seconds=LOOK_SECONDS)
        except MitmCacheError as error:
            self.breaker.postpone(place, error)
        else:
            self.breaker.answer(place, looked=True)

    def _home(self, registry: Registry) -> Place:
        base = self.base(registry).rstrip("/")
        return Place(registry, Origin.of(base), f"{base}/v2/")

    @contextmanager
    def _watched(self, place: Place, waiting: Waiting | None = None) -> Iterator[None]:
        """Whoever asks tells the breaker whether somebody was there; who is away is not asked."""
        if self._bounds.offline(place.registry.name):
            raise OfflineError(f"{place.registry.name} is offline by configuration")
        waiting = waiting or Waiting()
        self.breaker.check(place, patient=waiting.patient)
        waiting.place = place
        try:
            yield
        except UnreachableError as error:
            self.breaker.fail(place, error)
            raise
        except StoppingError:
            raise
        except UpstreamError as error:
            self.breaker.check(place)  # who was asked has gone away meanwhile, and that is the reason
            if error.status == HTTPStatus.GATEWAY_TIMEOUT:
                self.breaker.doubt(place, 0)
            raise
        finally:
            waiting.place = None
        self.breaker.answer(place)

    def connect(self, registry: Registry) -> Line:
        """A connection to a registry by its route, TLS not yet begun. Raises UpstreamError."""
        origin = Origin.of(self.base(registry))
        with self._watched(self._home(registry)):
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
        place = self._home(call.registry)
        if start != place.origin:
            place = Place(call.registry, start, f"{start}/", home=False)
        with self._watched(place, call.waiting):
            home = self._router.find(start, call.registry.name)
            answer = self._perform(outgoing, home, call, sink, place)
        self.quotas.note(call.registry.name, answer.headers)
        for hop in range(MAX_HOPS + 1):
            origin = Origin.of(outgoing.url)
            if hop:
                route = home if origin == start else self._router.find(origin, call.registry.name)
                if origin != start:
                    check_redirect(origin, route, start, home, allow_private=self._bounds.allow_private)
                answer = self._perform(outgoing, route, call, sink)
            answer.hops = hop
            if answer.status == LoopError.status:
                raise LoopError(
                    f"the way to {origin.host} leads in a circle; set upstream.resolvers or registries.NAME.resolve on "
                    "each cache of it"
                )
            if answer.status not in STATUSES or not call.follow:
                return answer
            target = next_hop(outgoing.url, answer.headers.get("location"), allow_http=self._bounds.allow_http)
            outgoing = replace(outgoing, url=target, headers=carry(outgoing.headers, outgoing.url, target))
        raise UpstreamError(f"{call.registry.name} redirects more than {MAX_HOPS} times")

    def _perform(
        self, outgoing: Outgoing, route: Route, call: Call, sink: Sink | None, place: Place | None = None
    ) -> Answer:
        def abandoned() -> bool:
            return call.waiting.abandoned or (place is not None and self.breaker.is_away(place))

        return self._transport.perform(
            outgoing,
            route,
            sink=_SuccessOnly(sink) if sink is not None else None,
            limit=call.limit,
            seconds=0 if sink is not None else EXCHANGE_SECONDS,
            abandoned=abandoned if sink is None else None,
        )


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
