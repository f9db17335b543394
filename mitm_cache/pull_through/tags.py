"""What a tag is, and for whom: upstream is asked by one HEAD with the client's own credential, once it is time to."""

from http import HTTPStatus

from mitm_cache.answers import content_head, outcome_of, pass_back, stale, unavailable
from mitm_cache.cache.entry import Head, Link
from mitm_cache.cache.freshness import Fetch, Kept, Serve, plan
from mitm_cache.cache.spool import Spool
from mitm_cache.errors import ClientError, OfflineError, UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.looks import is_told, type_within
from mitm_cache.oci.manifest import MAX_SIZE, Accept, is_schema_1
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.parsing import Rights
from mitm_cache.policy import Ruling
from mitm_cache.policy.ruled import asked, denied, unfilled
from mitm_cache.pull_through.contents import Contents
from mitm_cache.pull_through.gate import Gate, is_of_another, unasked
from mitm_cache.pull_through.knowledge import Knowledge
from mitm_cache.pull_through.unknown import Unknown
from mitm_cache.pull_through.wanted import Memory, Wanted
from mitm_cache.upstream.client import REFUSALS
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.leg import Leg
from mitm_cache.upstream.writer import Refused
from mitm_cache.wire.message import Request, Response


class Tags:
    """Answers requests that name a tag."""

    def __init__(self, *, known: Knowledge, spool: Spool, gate: Gate, contents: Contents, leg: Leg, ttl: float) -> None:
        """`ttl`: seconds that upstream's word holds where policy says nothing else."""
        self._blobs = known.blobs
        self._links = known.links
        self._memory = Memory(known)
        self._unknown = Unknown(known.pushed)
        self._spool = spool
        self._gate = gate
        self._contents = contents
        self._leg = leg
        self._ttl = ttl

    async def answer(self, request: Request, repository: Repository, tag: Tag, ruling: Ruling) -> Response:
        """What the tag is: as it was seen a moment ago, or as upstream says now, or, where that is away, as it was."""
        accept = Accept(*request.headers.get_all("accept"))
        wanted = Wanted(request, repository, tag, accept, ruling, self._memory.now())
        if ruling.freeze is not None:
            return await self._frozen(wanted, ruling.freeze)
        if is_of_another(request) and ruling.may_fill and not ruling.min_age:
            return await self._contents.pass_on(request)
        kept = self._memory.kept(wanted)
        ttl = self._ttl if ruling.tag_ttl is None else ruling.tag_ttl
        if kept is not None and kept.is_fresh(ttl) and await self._is_let(wanted, kept):
            if response := await self._too_young(wanted, kept.link):
                return response
            return await self._serve(wanted, kept, "HIT", f"upstream said so {kept.told}")
        if (known := self._unknown.find(wanted)) is not None:
            return pass_back(known, request, "REFUSED", f"upstream answered {known.status} a moment ago")
        try:
            answer = await self._ask(wanted, kept)
        except UpstreamError as error:
            return await self._away(wanted, kept, error)
        if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)):
            return await self._away(wanted, kept, unavailable(answer))
        return await (self._current(wanted, answer, kept) if answer.ok else self._no_tag(wanted, answer, kept))

    async def _is_let(self, wanted: Wanted, kept: Kept) -> bool:
        """Whether a client may have what is here without upstream's being asked about the tag."""
        by_digest = wanted.by_digest(kept.link.digest)
        try:
            await self._gate.permit(by_digest, wanted.repository, kept.link.digest, wanted.accept)
        except (Refused, UpstreamError):
            return False  # what upstream says of the tag is the answer then
        return True

    async def _ask(self, wanted: Wanted, kept: Kept | None) -> Answer:
        call = self._gate.call(wanted.request, method="HEAD", accept=wanted.accept)
        patient = kept is None or not self._gate.is_left_open(wanted.request, wanted.repository, kept.link.digest)
        return await self._leg.exchange(call, patient=patient)

    async def _current(self, wanted: Wanted, answer: Answer, kept: Kept | None) -> Response:
        """Upstream has said what the tag is."""
        media_type = answer.headers.get("content-type") or ""
        if is_schema_1(media_type):
            return await self._unkept(wanted)
        digest = _digest_of(answer)
        if digest is None or answer.length is None:
            return await self._undigested(wanted, kept)
        link = Link(digest, media_type, answer.length)
        await self._gate.grant(wanted.by_digest(digest), wanted.repository)
        if response := await self._too_young(wanted, link) or await self._unfilled(wanted, link):
            return response
        step = plan(self._memory.last(wanted), digest, present=self._blobs.has(digest))
        if wanted.request.method == "HEAD":
            await self._leg.record(lambda: self._memory.confirm(wanted, link, served=isinstance(step, Serve)))
            outcome = "REVALIDATED" if isinstance(step, Serve) else "MISS"
            return content_head(link, outcome=outcome, reason=step.reason)
        await self._leg.record(lambda: self._links.hold(wanted.registry, wanted.repository, link))
        response = await self._content(wanted, digest)
        if response.status == HTTPStatus.OK:
            await self._leg.record(lambda: self._memory.confirm(wanted, link, served=True))
        match step:
            case Serve() if response.outcome == "HIT":
                response.outcome, response.reason = "REVALIDATED", step.reason
            case Fetch():
                response.reason = step.reason
            case Serve():
                pass
        return response

    async def _away(self, wanted: Wanted, kept: Kept | None, error: UpstreamError) -> Response:
        """Upstream cannot be asked: what the tag was, for those who could read it then; else what went wrong."""
        given = await self._given(wanted, kept)
        kept = given or kept
        if kept is None:
            raise error
        if given is None and not self._gate.is_left_open(wanted.request, wanted.repository, kept.link.digest):
            raise unasked(error, f"{wanted.registry}/{wanted.repository}")
        if response := await self._too_young(wanted, kept.link):
            return response
        if isinstance(error, OfflineError):
            return await self._serve(wanted, kept, "HIT", error.message)
        response = await self._serve(wanted, kept, "STALE", f"{error.message}; it was so {kept.told}")
        return stale(response, kept.age)

    async def _given(self, wanted: Wanted, kept: Kept | None) -> Kept | None:
        """What the operator has put here of a tag, unless what is `kept` was heard later and is for this client."""
        given = await self._leg.run(lambda: self._memory.given(wanted))
        if given is None or kept is None or kept.link.digest == given.link.digest:
            return given
        is_open = self._gate.is_left_open(wanted.request, wanted.repository, kept.link.digest)
        later = kept.age is not None and given.age is not None and kept.age < given.age
        return None if is_open and later else given

    async def _serve(self, wanted: Wanted, kept: Kept, outcome: str, reason: str) -> Response:
        """What is here."""
        if wanted.request.method == "HEAD":
            return content_head(kept.link, outcome=outcome, reason=reason)
        response = await self._content(wanted, kept.link.digest)
        if response.outcome == "HIT":
            response.outcome, response.reason = outcome, reason
        return response

    async def _content(self, wanted: Wanted, digest: Digest) -> Response:
        by_digest = wanted.by_digest(digest)
        return await self._contents.fetch(
            by_digest, wanted.repository, digest, wanted.ruling, accept=wanted.accept, max_size=MAX_SIZE
        )

    async def _frozen(self, wanted: Wanted, digest: Digest) -> Response:
        """The operator has said what the tag is; rights are asked for as for that digest."""
        by_digest = wanted.by_digest(digest)
        response = await self._contents.manifest(by_digest, wanted.repository, digest, wanted.ruling)
        if response.outcome != "REFUSED":
            response.reason = f"{wanted.ruling.rule} freezes it; {response.reason}"
        return response

    async def _too_young(self, wanted: Wanted, link: Link) -> Response | None:
        """Where policy wants a tag to have been that digest for longer: what it was before.

        Raises ClientError where nothing is here that is old enough.
        """
        if not wanted.ruling.min_age:
            return None
        since = await self._since(wanted, link)
        if not since:
            return None
        before = self._memory.last(wanted)
        if before == link or (before is not None and await self._since(wanted, before)):
            before = None
        words = (
            f"{wanted.ruling.rule}: {asked(wanted.request)} has to be known for longer; it is to be had from {since}"
        )
        may_fetch = wanted.ruling.may_fill
        error = denied(wanted.ruling, words)
        return await self._before(wanted, before, f"{words}; this is what it was", error, may_fetch=may_fetch)

    async def _since(self, wanted: Wanted, link: Link) -> str:
        return await self._leg.run(lambda: self._memory.youth(wanted, link))

    async def _unfilled(self, wanted: Wanted, link: Link) -> Response | None:
        """Where policy lets a client take only what is here, and this is not: what the tag was before.

        Raises ClientError where that is not here either.
        """
        if wanted.ruling.may_fill or self._blobs.has(link.digest):
            return None
        reason = f"{wanted.ruling.rule} fetches nothing for this client; this is what it was"
        return await self._before(wanted, self._memory.last(wanted), reason, unfilled(wanted.ruling, wanted.request))

    async def _before(
        self, wanted: Wanted, link: Link | None, reason: str, error: ClientError, *, may_fetch: bool = False
    ) -> Response:
        if link is None or not (may_fetch or self._blobs.has(link.digest)):
            raise error
        return await self._serve(wanted, Kept(link, None), "HIT", reason)

    async def _no_tag(self, wanted: Wanted, answer: Answer, kept: Kept | None) -> Response:
        """A HEAD that failed has no body to pass on: GET the registry's own words, unless it has no more to say."""
        request = wanted.request
        if answer.status in REFUSALS and self._gate.modes.rights(wanted.registry) is Rights.OPEN and kept is not None:
            reason = "rights are open, and upstream does not tell this client; this is what it was"
            return await self._serve(wanted, kept, "HIT", reason)
        # Some registries deny that there is what a client may not read.
        gone = answer.status == HTTPStatus.NOT_FOUND and kept is not None
        await self._gate.refuse(request, wanted.repository, HTTPStatus.FORBIDDEN if gone else answer.status)
        if answer.status in (*REFUSALS, HTTPStatus.NOT_FOUND) and (given := await self._given(wanted, None)):
            if response := await self._too_young(wanted, given.link):
                return response
            reason = f"put here by the operator; upstream answered {answer.status}"
            return await self._serve(wanted, given, "HIT", reason)
        if request.method == "GET":
            answer = await self._leg.exchange(self._gate.call(request, accept=wanted.accept, limit=MAX_SIZE))
            if answer.ok and not wanted.ruling.may_fill:
                raise unfilled(wanted.ruling, request)
            if answer.ok:
                return pass_back(answer, request, "RELAY", "upstream answers GET where it refuses HEAD")
        stranger = request.credential is None and not self._gate.modes.lends(wanted.registry, None)
        self._unknown.keep(wanted, answer, stranger=stranger)
        return pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")

    async def _unkept(self, wanted: Wanted) -> Response:
        """A manifest of schema 1, which has no digest to keep it under."""
        if not wanted.ruling.may_fill:
            raise unfilled(wanted.ruling, wanted.request)
        answer = await self._leg.exchange(self._gate.call(wanted.request, limit=MAX_SIZE))
        return pass_back(answer, wanted.request, "RELAY", f"upstream answered {answer.status}")

    async def _undigested(self, wanted: Wanted, kept: Kept | None) -> Response:
        """A registry that does not say the digest: fetch by tag, and hash."""
        request = wanted.request
        if not wanted.ruling.may_fill:
            raise unfilled(wanted.ruling, request)
        answer = await self._leg.exchange(self._gate.call(request, method="GET", accept=wanted.accept, limit=MAX_SIZE))
        media_type = answer.headers.get("content-type") or ""
        if not answer.ok or is_schema_1(media_type):
            return pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")
        kind = type_within(answer.body)
        if not kind:
            # It may be a page to log in, or one that is shown while the registry is mended.
            error = UpstreamError(f"{answer.origin} sent no manifest for {asked(request)}")
            return await self._away(wanted, kept, error)
        link = Link(Digest.of(answer.body), media_type if is_told(media_type) else kind, len(answer.body))
        await self._gate.grant(wanted.by_digest(link.digest), wanted.repository)
        if response := await self._too_young(wanted, link) or await self._unfilled(wanted, link):
            return response
        await self._leg.record(lambda: self._store(wanted, link, answer.body))
        response = content_head(link, outcome="MISS", reason="upstream names no digest")
        response.bytes_in = len(answer.body)
        if request.method == "GET":
            response.body = answer.body
        return response

    def _store(self, wanted: Wanted, link: Link, content: bytes) -> None:
        self._spool.keep(link.digest, Head(link.size, link.media_type), content)
        self._links.hold(wanted.registry, wanted.repository, link)
        self._memory.confirm(wanted, link, served=True)


def _digest_of(answer: Answer) -> Digest | None:
    value = answer.headers.get("docker-content-digest")
    try:
        return Digest.parse(value) if value else None
    except ClientError:
        return None
