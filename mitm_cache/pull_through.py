"""The path of a pull: every request of every way in, from what it means to what is answered.

Each answer carries its outcome and the reason for it. Nothing is served that upstream would not give this client:
a tag is asked for with the client's own credential each time, and content that is here already is shared only with
clients that may read the repository, and only in repositories known to hold it. Where a registry's rights are shared
or open, the cache's own credential stands in for clients that bring none.
"""

from dataclasses import replace
from http import HTTPStatus

from mitm_cache.answers import (
    API_VERSION,
    content,
    content_head,
    explain,
    outcome_of,
    pass_back,
    refuse,
    small,
    unavailable,
)
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head, Link
from mitm_cache.cache.freshness import Fetch, Serve, plan
from mitm_cache.cache.links import Links
from mitm_cache.cache.spool import Spool, Writing
from mitm_cache.errors import ClientError, MitmCacheError
from mitm_cache.listing import LIST_SIZE, Listings
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE, Accept, is_schema_1
from mitm_cache.oci.operation import (
    Blob as BlobOperation,
)
from mitm_cache.oci.operation import (
    Catalog,
    Manifest,
    Other,
    Ping,
    Referrers,
    TagList,
    Upload,
    repository_of,
)
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.parsing import Rights
from mitm_cache.rights import Verdict, Verdicts, judge
from mitm_cache.upstream.client import REFUSALS, Call
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.upstream.flight import Landed
from mitm_cache.upstream.leg import Leg
from mitm_cache.upstream.writer import Refused, Supply, Uncacheable
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Request, Response

PING_SIZE = 64 << 10
"""Bytes of what a registry says to a ping."""


class PullThrough:
    """Answers requests from the cache or from upstream."""

    def __init__(self, *, blobs: Blobs, links: Links, spool: Spool, verdicts: Verdicts, leg: Leg) -> None:
        self._blobs = blobs
        self._links = links
        self._spool = spool
        self._verdicts = verdicts
        self._policy = verdicts.policy
        self._leg = leg
        self._listings = Listings(links=links, verdicts=verdicts, leg=leg)

    async def handle(self, request: Request) -> Response:
        """Answer a request; what goes wrong on the way is an answer too."""
        try:
            return await self._answer(request)
        except Refused as refusal:
            return refuse(refusal.answer, request)
        except MitmCacheError as error:
            return explain(error, request)

    async def _answer(self, request: Request) -> Response:
        match request.operation:
            case Ping():
                return await self._ping(request)
            case Manifest(repository, reference):
                if isinstance(reference, Tag):
                    return await self._tag(request, repository, reference)
                return await self._manifest(request, repository, reference)
            case BlobOperation(repository, digest):
                return await self._blob(request, repository, digest)
            case TagList(repository) if request.mirror:
                return await self._listings.tags(request, repository, self._call(request, limit=LIST_SIZE))
            case Catalog() if request.mirror:
                return await self._listings.catalog(request, self._call(request, limit=LIST_SIZE))
            case TagList() | Referrers() | Catalog():
                return await self._relay(request, LIST_SIZE)
            case Upload() | Other():
                raise MitmCacheError(f"{request.method} {request.target.partition('?')[0]} is no pull")

    async def _ping(self, request: Request) -> Response:
        lent = self._policy.lends(request.registry.name, request.credential)
        if request.mirror or lent:
            # A client that is asked to log in here does so as a stranger, and has a credential from then on.
            headers = [API_VERSION, ("Content-Type", "application/json")]
            reason = "mirror clients need no login" if request.mirror else "its rights are not the client's own"
            return small(HTTPStatus.OK, headers, b"{}", request, outcome="LOCAL", reason=reason)
        return await self._relay(request, PING_SIZE)

    async def _relay(self, request: Request, limit: int) -> Response:
        """Pass a small exchange on, uncached."""
        answer = await self._leg.exchange(self._call(request, limit=limit))
        return pass_back(answer, request, "RELAY", f"upstream answered {answer.status}")

    async def _tag(self, request: Request, repository: Repository, tag: Tag) -> Response:
        """One HEAD upstream with the client's credential says what the tag is, and that the client may have it."""
        accept = Accept(*request.headers.get_all("accept"))
        answer = await self._leg.exchange(self._call(request, method="HEAD", accept=accept))
        if not answer.ok:
            return await self._no_tag(request, answer, repository, tag, accept)
        media_type = answer.headers.get("content-type") or ""
        if is_schema_1(media_type):
            return await self._relay(request, MAX_SIZE)
        digest = _digest_of(answer)
        if digest is None or answer.length is None:
            return await self._undigested(request, repository, tag, accept)
        link = Link(digest, media_type, answer.length)
        kept = self._links.tagged(request.registry.name, repository, tag, accept)
        step = plan(kept, digest, present=self._blobs.has(digest))
        self._grant(request, repository)
        if request.method == "HEAD":
            outcome = "REVALIDATED" if isinstance(step, Serve) else "MISS"
            return content_head(link, outcome=outcome, reason=step.reason)
        await self._leg.run(lambda: self._links.hold(request.registry.name, repository, link))
        by_digest = replace(request, target=_by_digest(request, digest))
        response = await self._content(by_digest, repository, digest, accept=accept, max_size=MAX_SIZE)
        if response.status == HTTPStatus.OK and kept != link:
            await self._leg.run(lambda: self._links.tag(request.registry.name, repository, tag, accept, link))
        match step:
            case Serve() if response.outcome == "HIT":
                response.outcome, response.reason = "REVALIDATED", step.reason
            case Fetch():
                response.reason = step.reason
            case Serve():
                pass
        return response

    async def _no_tag(
        self, request: Request, answer: Answer, repository: Repository, tag: Tag, accept: Accept
    ) -> Response:
        """A HEAD that failed has no body to pass on: GET the registry's own words, unless it has no more to say."""
        if answer.status in REFUSALS and self._policy.rights(request.registry.name) is Rights.OPEN:
            kept = self._links.tagged(request.registry.name, repository, tag, accept)
            if kept is not None and self._blobs.has(kept.digest):
                return await self._last_seen(request, repository, kept, accept)
        if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)):
            raise unavailable(answer)
        if request.method == "GET":
            answer = await self._leg.exchange(self._call(request, accept=accept, limit=MAX_SIZE))
            if answer.ok:
                return pass_back(answer, request, "RELAY", "upstream answers GET where it refuses HEAD")
        return pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")

    async def _last_seen(self, request: Request, repository: Repository, link: Link, accept: Accept) -> Response:
        """Rights are open, and upstream does not tell this client what the tag is by now."""
        reason = "rights are open; what the tag was when it was last seen"
        if request.method == "HEAD":
            return content_head(link, outcome="HIT", reason=reason)
        by_digest = replace(request, target=_by_digest(request, link.digest))
        response = await self._content(by_digest, repository, link.digest, accept=accept, max_size=MAX_SIZE)
        if response.outcome == "HIT":
            response.reason = reason
        return response

    async def _undigested(self, request: Request, repository: Repository, tag: Tag, accept: Accept) -> Response:
        """A registry that does not say the digest: fetch by tag, and hash."""
        answer = await self._leg.exchange(self._call(request, method="GET", accept=accept, limit=MAX_SIZE))
        media_type = answer.headers.get("content-type") or ""
        if not answer.ok or is_schema_1(media_type):
            return pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")
        link = Link(Digest.of(answer.body), media_type, len(answer.body))
        self._grant(request, repository)
        await self._leg.run(lambda: self._keep(request, repository, tag, accept, link, answer.body))
        response = content_head(link, outcome="MISS", reason="upstream names no digest")
        response.bytes_in = len(answer.body)
        if request.method == "GET":
            response.body = answer.body
        return response

    def _keep(
        self, request: Request, repository: Repository, tag: Tag, accept: Accept, link: Link, content: bytes
    ) -> None:
        role = self._spool.join(link.digest)
        if isinstance(role, Writing):
            try:
                if role.part.stat()[1] == 0:
                    self._spool.write_note(role.part, Head(link.size, link.media_type))
                    role.part.append(content)
                    self._spool.seal(role.part)
            finally:
                role.part.close()
        elif role is not None:
            role.part.close()  # somebody is fetching the same content
        self._links.hold(request.registry.name, repository, link)
        self._links.tag(request.registry.name, repository, tag, accept, link)

    async def _manifest(self, request: Request, repository: Repository, digest: Digest) -> Response:
        accept = Accept(*request.headers.get_all("accept"))
        link = self._links.holds(request.registry.name, repository, digest)
        if link is not None and not accept.takes(link.media_type):
            # The registry decides what to say to a client that does not take this type.
            return await self._relay(request, MAX_SIZE)
        if request.method == "HEAD":
            return await self._head(request, repository, digest, accept)
        return await self._content(request, repository, digest, accept=accept, max_size=MAX_SIZE)

    async def _blob(self, request: Request, repository: Repository, digest: Digest) -> Response:
        if request.method == "HEAD":
            return await self._head(request, repository, digest, Accept())
        return await self._content(request, repository, digest, accept=Accept(), max_size=None)

    async def _head(self, request: Request, repository: Repository, digest: Digest, accept: Accept) -> Response:
        """HEAD stays HEAD: from the cache where the content is here, else passed on."""
        blob = self._blobs.open(digest)
        if blob is not None:
            blob.close()
            reason = await self._permit(request, repository, digest, accept)
            link = self._links.holds(request.registry.name, repository, digest)
            return content_head(Link(digest, _media_type(link, request), blob.size), outcome="HIT", reason=reason)
        answer = await self._leg.exchange(self._call(request, accept=accept))
        if answer.ok:
            self._grant(request, repository)
            response = pass_back(answer, request, "MISS", "not cached; HEAD passed on")
            if answer.length is not None:
                response.headers += Headers([("Content-Length", str(answer.length))])
            return response
        if answer.hops:
            return await self._probe(request, digest, accept)
        return pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")

    async def _probe(self, request: Request, digest: Digest, accept: Accept) -> Response:
        """Storage behind a registry may refuse HEAD on a URL signed for GET: ask it for one byte."""
        call = self._call(request, method="GET", accept=accept)
        answer = await self._leg.exchange(replace(call, headers=call.headers + Headers([("Range", "bytes=0-0")])))
        total = (answer.headers.get("content-range") or "").rpartition("/")[2]
        if answer.status != HTTPStatus.PARTIAL_CONTENT or not total.isdigit():
            return pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")
        link = Link(digest, _media_type(None, request), int(total))
        return content_head(link, outcome="MISS", reason="not cached; asked for its first byte")

    async def _content(
        self, request: Request, repository: Repository, digest: Digest, *, accept: Accept, max_size: int | None
    ) -> Response:
        """Content by digest: from the store, from a download under way, or by starting one."""
        call = self._call(request, method="GET", accept=accept)
        registry = request.registry.name
        reason = "known to hold it"
        fills = self._policy.fills(registry, repository, request.credential)
        if fills and not self._verdicts.allow(registry, repository, None):
            # The cache's own credential fetches what strangers may have, and nothing else for them.
            await self._permit(request, repository, digest, accept)

        async def ask() -> None:
            nonlocal reason
            reason = await self._permit(request, repository, digest, accept)

        def landed(link: Link) -> None:
            self._links.hold(registry, repository, link)

        def fetch(start: int, sink: Sink) -> Answer:
            ranged = call.headers + Headers([("Range", f"bytes={start}-")]) if start else call.headers
            ranged_call = replace(call, headers=ranged)
            if fills:
                answer = self._leg.client.stream(replace(ranged_call, own=True), sink)
                if answer.status not in REFUSALS:
                    return answer
            return self._leg.client.stream(ranged_call, sink)

        try:
            boarding = await self._leg.board(digest, Supply(fetch, landed, registry, max_size), ask)
        except Uncacheable:
            return await self._relay(request, MAX_SIZE)
        if isinstance(boarding, Landed):
            head = Head(boarding.blob.size, _media_type(self._links.holds(registry, repository, digest), request))
            return content(request, digest, boarding.blob, head, outcome="HIT", reason=reason)
        passenger = boarding.passenger
        if boarding.first and not fills:
            self._grant(request, repository)
        head = Head(passenger.head.size, _type_in_flight(passenger.head, request))
        outcome, reason = ("MISS", "not cached") if boarding.first else ("JOINED", "already being fetched")
        response = content(request, digest, passenger, head, outcome=outcome, reason=reason)
        response.bytes_in = head.size if boarding.first else 0
        return response

    async def _permit(self, request: Request, repository: Repository, digest: Digest, accept: Accept) -> str:
        """Return why this client may have this content of this repository; raise Refused where it may not."""
        name = request.registry.name
        held = self._links.holds(name, repository, digest)
        if held is not None and self._verdicts.allow(name, repository, request.credential):
            return "rights are open" if self._policy.rights(name) is Rights.OPEN else "rights known"
        # A question about the content itself: it also tells whether this repository holds it.
        answer = await self._leg.exchange(replace(self._call(request, method="HEAD", accept=accept), follow=False))
        match judge(answer.status):
            case Verdict.NO:
                raise Refused(answer)
            case Verdict.NONE:
                raise unavailable(answer)
            case Verdict.YES:
                pass
        self._grant(request, repository)
        if held is None:
            size = answer.length if answer.ok and answer.length is not None else 0
            link = Link(digest, _asked_type(answer, request), size)
            await self._leg.run(lambda: self._links.hold(name, repository, link))
        lent = self._policy.lends(name, request.credential) and self._policy.owner(name, repository)
        return "upstream said yes to the cache's credential" if lent else "upstream said yes to this client"

    def _grant(self, request: Request, repository: Repository) -> None:
        self._verdicts.keep(request.registry.name, repository, request.credential)

    def _call(
        self, request: Request, *, method: str | None = None, accept: Accept | None = None, limit: int = 64 << 10
    ) -> Call:
        """The request as it goes upstream."""
        header = (accept or Accept(*request.headers.get_all("accept"))).header
        return Call(
            registry=request.registry,
            # A ping or a catalog is asked for as the client asks: with no token of ours.
            repository=repository_of(request.operation),
            method=method or request.method,
            target=request.target,
            # Every cache on the way adds its name: a loop over several is seen by the first that finds its own.
            headers=Headers([("Accept", header)] if header else []) + request.headers.only("via"),
            credential=request.credential,
            own=self._policy.lends(request.registry.name, request.credential),
            limit=limit,
        )


def _by_digest(request: Request, digest: Digest) -> str:
    return f"{request.target.partition('?')[0].rpartition('/')[0]}/{digest}"


def _digest_of(answer: Answer) -> Digest | None:
    value = answer.headers.get("docker-content-digest")
    try:
        return Digest.parse(value) if value else None
    except ClientError:
        return None


def _media_type(link: Link | None, request: Request) -> str:
    if isinstance(request.operation, Manifest) and link is not None:
        return link.media_type
    return "application/octet-stream"


def _type_in_flight(head: Head, request: Request) -> str:
    return head.media_type if isinstance(request.operation, Manifest) else "application/octet-stream"


def _asked_type(answer: Answer, request: Request) -> str:
    if isinstance(request.operation, Manifest) and answer.ok:
        return answer.headers.get("content-type") or ""
    return "application/octet-stream"
