"""Content by its digest: from the store, from a download under way, or by starting one."""

import os
from dataclasses import replace
from http import HTTPStatus

from mitm_cache.answers import content, content_head, outcome_of, pass_back, unavailable
from mitm_cache.cache.blobs import Blob, Blobs
from mitm_cache.cache.entry import Head, Link
from mitm_cache.cache.links import Links
from mitm_cache.errors import UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.looks import OCTETS, is_told, type_within
from mitm_cache.oci.manifest import MAX_SIZE, Accept
from mitm_cache.oci.operation import Manifest
from mitm_cache.oci.reference import Repository
from mitm_cache.policy import Ruling
from mitm_cache.policy.ruled import unfilled
from mitm_cache.pull_through.gate import Gate, asked_type, is_of, is_page, whole_size
from mitm_cache.upstream.client import REFUSALS, Call
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.upstream.flight import Landed
from mitm_cache.upstream.leg import Leg
from mitm_cache.upstream.writer import Supply, Uncacheable
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Request, Response

ERROR_SIZE = 64 << 10
"""Bytes of what a registry says where it does not give a blob."""


class Contents:
    """Answers requests that name a digest."""

    def __init__(self, *, blobs: Blobs, links: Links, gate: Gate, leg: Leg) -> None:
        self._blobs = blobs
        self._links = links
        self._gate = gate
        self._leg = leg

    async def manifest(self, request: Request, repository: Repository, digest: Digest, ruling: Ruling) -> Response:
        """A manifest; where the client does not take its type, the registry decides what to say."""
        accept = Accept(*request.headers.get_all("accept"))
        link = self._links.holds(request.registry.name, repository, digest)
        if link is not None and is_told(link.media_type) and not accept.takes(link.media_type):
            if not ruling.may_fill:
                raise unfilled(ruling, request)
            return await self.pass_on(request)
        if request.method == "HEAD":
            return await self._head(request, repository, digest, accept)
        return await self.fetch(request, repository, digest, ruling, accept=accept, max_size=MAX_SIZE)

    async def blob(self, request: Request, repository: Repository, digest: Digest, ruling: Ruling) -> Response:
        """A blob."""
        if request.method == "HEAD":
            head = self._head_for_push if self._may_push(request, repository, digest) else self._head
            return await head(request, repository, digest, Accept())
        return await self.fetch(request, repository, digest, ruling, accept=Accept(), max_size=None)

    def _may_push(self, request: Request, repository: Repository, digest: Digest) -> bool:
        """Whether a push may ask for a blob: not at a mirror, nor where clients have no way to log in; and what the
        operator has put here is not of upstream."""
        lent = self._gate.modes.lends(request.registry.name, request.credential)
        return not (request.mirror or lent or self._gate.is_given(request, repository, digest))

    async def pass_on(self, request: Request) -> Response:
        """A manifest as upstream answers this very request; nothing of it is kept. Raises UpstreamError."""
        call = replace(self._gate.call(request, limit=MAX_SIZE), target=request.target)
        answer = await self._leg.exchange(call)
        return pass_back(answer, request, "RELAY", f"upstream answered {answer.status}")

    async def _head(self, request: Request, repository: Repository, digest: Digest, accept: Accept) -> Response:
        """HEAD stays HEAD: from the cache where the content is here, else passed on."""
        here = await self._head_here(request, repository, digest, accept)
        return here or await self._head_there(request, repository, digest, accept)

    async def _head_for_push(
        self, request: Request, repository: Repository, digest: Digest, accept: Accept
    ) -> Response:
        """Pulls ask for no blob so, and pushes leave out what is there, which upstream may have removed since it was
        cached: it is asked."""
        try:
            response = await self._head_there(request, repository, digest, accept)
        except UpstreamError as error:
            if here := await self._head_here(request, repository, digest, accept):
                here.reason = f"{error.message}; {here.reason}"
                return here
            raise
        blob = self._blobs.open(digest) if response.outcome == "MISS" else None
        if blob is None:
            return response
        blob.close()
        return content_head(Link(digest, OCTETS, blob.size), outcome="REVALIDATED", reason="upstream has it still")

    async def _head_here(
        self, request: Request, repository: Repository, digest: Digest, accept: Accept
    ) -> Response | None:
        """From the cache; None where it is not here."""
        blob = self._blobs.open(digest)
        if blob is None:
            return None
        try:
            reason = await self._gate.permit(request, repository, digest, accept)
            kind = await self._kind(request, repository, digest, blob)
        finally:
            blob.close()
        return content_head(Link(digest, kind, blob.size), outcome="HIT", reason=reason)

    async def _head_there(self, request: Request, repository: Repository, digest: Digest, accept: Accept) -> Response:
        """From upstream, as this client is answered there."""
        call = self._gate.call(request, accept=accept)
        answer = await self._leg.exchange(call, patient=not self._blobs.has(digest))
        if answer.ok:
            self._gate.check(answer, digest)
            if is_of(answer, digest):  # which tells it from a page to log in
                await self._gate.grant(request, repository)
            response = pass_back(answer, request, "MISS", "not cached; HEAD passed on")
            if answer.length is not None:
                response.headers += Headers([("Content-Length", str(answer.length))])
            return response
        if answer.hops:
            return await self._probe(request, digest, accept)
        return self._refusal(answer, request)

    @staticmethod
    def _refusal(answer: Answer, request: Request) -> Response:
        """Upstream's own words; raises UpstreamError where they say nothing about the content."""
        if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)):
            raise unavailable(answer)
        return pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")

    async def _probe(self, request: Request, digest: Digest, accept: Accept) -> Response:
        """Storage behind a registry may refuse HEAD on a URL signed for GET: ask it for one byte."""
        call = self._gate.call(request, method="GET", accept=accept)
        answer = await self._leg.exchange(replace(call, headers=call.headers + Headers([("Range", "bytes=0-0")])))
        size = whole_size(answer)
        if answer.status != HTTPStatus.PARTIAL_CONTENT or size is None:
            return self._refusal(answer, request)
        link = Link(digest, asked_type(answer, request) or _media_type(None, request), size)
        return content_head(link, outcome="MISS", reason="not cached; asked for its first byte")

    async def fetch(
        self,
        request: Request,
        repository: Repository,
        digest: Digest,
        ruling: Ruling,
        *,
        accept: Accept,
        max_size: int | None,
    ) -> Response:
        """GET: the content, which may be of `max_size` bytes at most."""
        self._check_fill(request, digest, ruling)
        call = self._gate.call(request, method="GET", accept=accept, limit=max_size or ERROR_SIZE)
        registry = request.registry.name
        reason = "known to hold it"
        fills = self._gate.modes.fills(registry, repository, request.credential)
        if fills and not self._gate.is_public(request, repository):
            # The cache's own credential fetches what strangers may have, and nothing else for them.
            await self._gate.permit(request, repository, digest, accept)

        async def ask() -> None:
            nonlocal reason
            reason = await self._gate.permit(request, repository, digest, accept)

        try:
            boarding = await self._leg.board(digest, self._supply(request, call, repository, max_size, fills), ask)
        except Uncacheable:
            return await self.pass_on(request)
        if isinstance(boarding, Landed):
            try:
                kind = await self._kind(request, repository, digest, boarding.blob)
            except BaseException:
                boarding.blob.close()
                raise
            head = Head(boarding.blob.size, kind)
            return content(request, digest, boarding.blob, head, outcome="HIT", reason=reason)
        passenger = boarding.passenger
        if boarding.first and not fills:
            self._gate.look_at_strangers(request, repository)
        head = self._head_in_flight(request, repository, digest, passenger.head)
        outcome, reason = ("MISS", "not cached") if boarding.first else ("JOINED", "already being fetched")
        reason = boarding.reason or reason
        response = content(request, digest, passenger, head, outcome=outcome, reason=reason)
        response.bytes_in = head.size if boarding.first else 0
        return response

    async def _kind(self, request: Request, repository: Repository, digest: Digest, blob: Blob) -> str:
        """The Content-Type of what is here. What came as a blob, or by another repository while the disk takes no
        link, may be a manifest all the same: its bytes tell then."""
        if not isinstance(request.operation, Manifest):
            return OCTETS
        registry = request.registry.name
        link = self._links.holds(registry, repository, digest)
        if link is not None and is_told(link.media_type):
            return link.media_type
        kind = await self._leg.run(lambda: type_within(_read(blob)))
        if kind and link is not None:
            told = replace(link, media_type=kind)
            await self._leg.record(lambda: self._links.hold(registry, repository, told))
        return kind or OCTETS

    def _head_in_flight(self, request: Request, repository: Repository, digest: Digest, head: Head) -> Head:
        """A manifest's type is what upstream has said; where the writer's word is gone with it, what the link says."""
        if not isinstance(request.operation, Manifest):
            return Head(head.size, _media_type(None, request))
        if head.media_type:
            return head
        return Head(head.size, _media_type(self._links.holds(request.registry.name, repository, digest), request))

    def _check_fill(self, request: Request, digest: Digest, ruling: Ruling) -> None:
        if not (ruling.may_fill or self._blobs.has(digest)):
            raise unfilled(ruling, request)

    def _supply(
        self, request: Request, call: Call, repository: Repository, max_size: int | None, fills: bool
    ) -> Supply:
        """How content is fetched, and recorded when it is here."""
        registry = call.registry.name

        def landed(link: Link) -> None:
            # Not before the content is proven: whom a registry does not let in may be led to a page to log in. Who has
            # seen that knows its digest, too.
            if not (fills or is_page(link.media_type)):
                self._gate.keep(request, repository)
            # A blob has no type of its own, whatever storage calls it.
            self._links.hold(registry, repository, link if max_size else replace(link, media_type=OCTETS))

        def fetch(start: int, sink: Sink) -> Answer:
            ranged = call.headers + Headers([("Range", f"bytes={start}-")]) if start else call.headers
            ranged_call = replace(call, headers=ranged)
            if fills:
                answer = self._leg.client.stream(replace(ranged_call, own=True), sink)
                if answer.status not in REFUSALS:
                    return answer
            return self._leg.client.stream(ranged_call, sink)

        return Supply(fetch, landed, registry, max_size)


def _media_type(link: Link | None, request: Request) -> str:
    if isinstance(request.operation, Manifest) and link is not None:
        return link.media_type
    return OCTETS


def _read(blob: Blob) -> bytes:
    try:
        return os.pread(blob.fileno(), blob.size, 0) if blob.size <= MAX_SIZE else b""
    except OSError:
        return b""  # who reads it is told
