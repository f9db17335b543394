"""Who may have what is cached: asked upstream with the client's own credential where it is not known."""

import asyncio
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import parse_qs
from weakref import WeakValueDictionary

from mitm_cache.answers import unavailable
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.links import Links
from mitm_cache.cache.readers import Readers
from mitm_cache.errors import MitmCacheError, OfflineError, UnreachableError, UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import Accept, media_type_of
from mitm_cache.oci.operation import Blob, Manifest, repository_of
from mitm_cache.oci.reference import Repository
from mitm_cache.parsing import Rights
from mitm_cache.rights import ANYONE, Verdict, Verdicts, judge
from mitm_cache.upstream.client import Call
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.leg import Leg
from mitm_cache.upstream.writer import Refused
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Request
from mitm_cache.wire.ranges import parse_content_range


class Gate:
    """Lets clients have content of a repository, or raises upstream's own no."""

    def __init__(self, *, blobs: Blobs, links: Links, readers: Readers, verdicts: Verdicts, leg: Leg) -> None:
        self._blobs = blobs
        self._links = links
        self._readers = readers
        self._verdicts = verdicts
        self._leg = leg
        self._questions: WeakValueDictionary[tuple[str, Repository, str], asyncio.Lock] = WeakValueDictionary()
        self.modes = verdicts.modes

    def call(
        self, request: Request, *, method: str | None = None, accept: Accept | None = None, limit: int = 64 << 10
    ) -> Call:
        """The request as it goes upstream."""
        content = isinstance(request.operation, Manifest | Blob)
        header = (accept or Accept(*request.headers.get_all("accept"))).header
        return Call(
            registry=request.registry,
            # A ping or a catalog is asked for as the client asks: with no token of ours.
            repository=repository_of(request.operation),
            method=method or request.method,
            # What is kept is kept under its name alone: a registry is asked for no more of a manifest or blob.
            target=request.target.partition("?")[0] if content else request.target,
            # Every cache on the way adds its name: a loop over several is seen by the first that finds its own.
            headers=Headers([("Accept", header)] if header else []) + request.headers.only("via"),
            credential=request.credential,
            own=self.modes.lends(request.registry.name, request.credential),
            limit=limit,
        )

    async def grant(self, request: Request, repository: Repository) -> None:
        """Keep that upstream has let this client, or whoever stands for it, have something of a repository."""
        self.look_at_strangers(request, repository)
        await self._leg.record(lambda: self.keep(request, repository))

    def keep(self, request: Request, repository: Repository) -> None:
        """The same for whoever has looked at strangers before. Any thread may call it; raises StoreError."""
        name = request.registry.name
        self._verdicts.keep(name, repository, request.credential)
        if request.credential is None:
            self._readers.keep(name, repository, self.modes.who(name, repository, None))

    def look_at_strangers(self, request: Request, repository: Repository) -> None:
        """Ask beside a client whether strangers may have the same: nearly every client brings a token, strangers too,
        and while upstream is away it is good to know."""
        match request.operation:
            case Manifest(_, Digest() as digest) | Blob(_, digest) if self._has_its_own_right(request):
                self._leg.start(self._learn_of_strangers(request, repository, digest))

    async def refuse(self, request: Request, repository: Repository, status: int) -> None:
        """Keep that upstream does not let whoever stands for clients read a repository any more."""
        if request.credential is None and status in (401, 403):
            name = request.registry.name
            who = self.modes.who(name, repository, None)
            await self._leg.record(lambda: self._readers.drop(name, repository, who))

    def is_open_to(self, request: Request, repository: Repository) -> bool:
        """Whether this client is known to be let read a repository."""
        return self._verdicts.allow(request.registry.name, repository, request.credential)

    def is_public(self, request: Request, repository: Repository) -> bool:
        """Whether strangers, or the cache's own credential in their stead, are known to be let read a repository."""
        return self._verdicts.allow(request.registry.name, repository, None)

    def is_given(self, request: Request, repository: Repository, digest: Digest) -> bool:
        """Whether the operator has put a content here (synced, imported): the policy alone says who may have it."""
        link = self._links.holds(request.registry.name, repository, digest)
        return link is not None and link.origin is not Origin.PULLED

    def is_left_open(self, request: Request, repository: Repository, digest: Digest | None = None) -> bool:
        """Whether a client may read what is cached of a repository, or this content of it, while upstream cannot be
        asked.

        It may where strangers could when upstream was last asked, or the cache's own credential that stands for it.
        """
        if self.is_open_to(request, repository) or (digest is not None and self.is_given(request, repository, digest)):
            return True
        name = request.registry.name
        allowed = {ANYONE} if request.credential is not None else {ANYONE, self.modes.who(name, repository, None)}
        return any(self._readers.age(name, repository, who) is not None for who in allowed)

    async def permit(self, request: Request, repository: Repository, digest: Digest, accept: Accept) -> str:
        """Return why this client may have this content, which is here, of this repository.

        Raises Refused where it may not, UpstreamError where that cannot be asked.
        """
        if self.is_given(request, repository, digest):
            return "put here by the operator: the policy's right"
        name = request.registry.name
        who = self.modes.who(name, repository, request.credential)
        # Of several questions about the same right one is asked, and the others wait for what it tells.
        question = self._questions.setdefault((name, repository, who), asyncio.Lock())
        try:
            async with question:
                if not self.is_open_to(request, repository):
                    return await self._learn(request, repository, digest, accept)
            if self._links.holds(name, repository, digest) is None:
                return await self._ask(request, repository, digest, accept)
        except UpstreamError as error:
            if self._links.holds(name, repository, digest) is None or not self.is_left_open(request, repository):
                raise unasked(error, f"{name}/{repository}") from error
            return f"its rights when it was last asked; {error.message}"
        return "rights are open" if self.modes.rights(name) is Rights.OPEN else "rights known"

    async def _learn(self, request: Request, repository: Repository, digest: Digest, accept: Accept) -> str:
        """Whether strangers may read a repository is asked once for all clients; else each is asked for itself."""
        if self._has_its_own_right(request):
            try:
                if await self._lets_strangers(request, repository, digest, accept):
                    return "upstream said yes to strangers"
            except UpstreamError:
                pass  # the limit for strangers may be reached, and not this client's
        return await self._ask(request, repository, digest, accept)

    async def _learn_of_strangers(self, request: Request, repository: Repository, digest: Digest) -> None:
        """The same beside a client that has been let in already."""
        try:
            await self._lets_strangers(request, repository, digest, Accept(*request.headers.get_all("accept")))
        except MitmCacheError:
            pass  # it is asked again when the next one comes

    def _has_its_own_right(self, request: Request) -> bool:
        return request.credential is not None and self.modes.rights(request.registry.name) is Rights.CLIENT

    async def _lets_strangers(self, request: Request, repository: Repository, digest: Digest, accept: Accept) -> bool:
        """Whether strangers may have this content, as far as that is known, else by asking. Raises UpstreamError."""
        name = request.registry.name
        question = self._questions.setdefault((name, repository, ANYONE), asyncio.Lock())
        async with question:
            if self._verdicts.is_closed(name, repository):
                return False
            if self.is_public(request, repository):
                return True
            try:
                await self._ask(replace(request, credential=None), repository, digest, accept)
            except Refused:
                self._verdicts.close(name, repository)
                return False
            return True

    async def _ask(self, request: Request, repository: Repository, digest: Digest, accept: Accept) -> str:
        """A question about the content itself: it also tells whether this repository holds it."""
        name = request.registry.name
        call = self.call(request, method="HEAD", accept=accept)
        held = self._links.holds(name, repository, digest) is not None
        answer = await self._leg.prove(call, patient=not (held and self.is_left_open(request, repository)))
        match judge(answer.status):
            case Verdict.NO:
                # Of what is not known to be there, a 404 says nothing about rights.
                status = 403 if held and answer.status == HTTPStatus.NOT_FOUND else answer.status
                await self.refuse(request, repository, status)
                raise Refused(answer)
            case Verdict.NONE:
                raise unavailable(answer)
            case Verdict.YES:
                self.check(answer, digest)
        await self.grant(request, repository)
        if not held:
            link = Link(digest, asked_type(answer, request), whole_size(answer) or 0)
            await self._leg.record(lambda: self._links.hold(name, repository, link))
        lent = self.modes.lends(name, request.credential) and self.modes.owner(name, repository)
        return "upstream said yes to the cache's credential" if lent else "upstream said yes to this client"

    def check(self, answer: Answer, digest: Digest) -> None:
        """Raise UpstreamError where a yes is not about this content, as far as that can be told: there may be a page in
        a registry's place, which says yes to everything."""
        if is_of(answer, digest):
            return
        try:
            size = self._blobs.path(digest).stat().st_size
        except OSError:
            size = None  # it is still coming
        page = is_page(answer.headers.get("content-type") or "")
        if page or (size is not None and whole_size(answer) not in (None, 0, size)):
            raise UpstreamError(f"{answer.origin} answered a question about {digest} with something else")


def is_of_another(request: Request) -> bool:
    """Whether a registry is asked as a mirror of another one, as containerd does by `?ns=`: where it heeds that, its
    tags are the other's."""
    named = parse_qs(request.target.partition("?")[2]).get("ns", [])
    return not (request.mirror or set(named) <= set(request.registry.names))


def is_of(answer: Answer, digest: Digest) -> bool:
    """Whether a registry says itself that its answer is about this content."""
    return answer.headers.get("docker-content-digest") == str(digest)


def is_page(content_type: str) -> bool:
    """Whether an answer is for people to read, whatever was asked for."""
    return media_type_of(content_type) == "text/html"


def unasked(error: UpstreamError, what: str) -> UpstreamError:
    """The error for content that is cached, where nobody can say whether this client may have it."""
    message = f"{error.message}; what is cached of {what} is not for everybody, and its rights cannot be asked"
    # docker and podman show no words of a 5xx.
    away = isinstance(error, UnreachableError | OfflineError)
    status, code = (HTTPStatus.FORBIDDEN, "DENIED") if away else (error.status, error.code)
    return UpstreamError(message, status=status, code=code, retry_after=error.retry_after)


def whole_size(answer: Answer) -> int | None:
    """Bytes of the content that an answer is about, of which it may have brought one; None where it does not say."""
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        span = parse_content_range(answer.headers.get("content-range"))
        return span.size if span is not None else None
    return answer.length if answer.ok else None


def asked_type(answer: Answer, request: Request) -> str:
    """The Content-Type of what a request is for, by an answer about it: a blob has none of its own."""
    if isinstance(request.operation, Manifest) and answer.ok:
        return answer.headers.get("content-type") or ""
    return "application/octet-stream"
