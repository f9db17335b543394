"""Whatever is no pull: passed on as it came, and answered as upstream answers. Nothing of it is kept."""

from http import HTTPStatus

from mitm_cache.answers import NOT_RELAYED, explain
from mitm_cache.cache.links import Links
from mitm_cache.cache.pushed import Pushed
from mitm_cache.errors import ClientError, MitmCacheError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.operation import Blob, Manifest
from mitm_cache.oci.reference import Tag
from mitm_cache.policy import Policy
from mitm_cache.policy.ruled import check
from mitm_cache.upstream.client import Call
from mitm_cache.upstream.leg import Leg
from mitm_cache.upstream.passage import Passage
from mitm_cache.upstream.upgrade import Upgraded, is_upgrade
from mitm_cache.wire.headers import HOP_BY_HOP, Headers
from mitm_cache.wire.message import Request, Response, StreamBody
from mitm_cache.wire.redirect import localize

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NOT_PASSED_ON = HOP_BY_HOP | {"host", "content-length", "expect"}
_BODILESS = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}


def admit(request: Request) -> None:
    """Raise ClientError (405) for what is not relayed."""
    if request.mirror:
        raise ClientError(
            f"a mirror answers pulls only: send {request.method} to {request.registry.name} itself; "
            "to push images of your own here, name this address in local.names",
            status=405,
        )
    if request.method not in METHODS:
        raise ClientError(f"{request.method[:16]!r} is not relayed; {', '.join(sorted(METHODS))} are", status=405)
    if request.method == "HEAD" and request.size != 0:
        raise ClientError("a HEAD request has no body")  # libcurl would then wait for one in the answer


class Relay:
    """Passes requests on, and forgets what they change."""

    def __init__(self, *, leg: Leg, links: Links, pushed: Pushed, policy: Policy) -> None:
        self._policy = policy
        self._leg = leg
        self._links = links
        self._pushed = pushed

    def judge(self, request: Request) -> Response | None:
        """The refusal of a request that the policy denies, before any of it is sent; None for all others."""
        try:
            check(self._policy, request)
        except ClientError as error:
            return explain(error, request)
        return None

    def begin(self, request: Request) -> Passage:
        """Send a request whose body is still to come."""
        return self._leg.relay(call(request), request.size)

    async def upgrade(self, request: Request) -> Upgraded | None:
        """The WebSocket that a request asks for; None where it asks for none, or is given none: relay it then."""
        if request.method != "GET" or not is_upgrade(request.headers):
            return None
        try:
            return await self._leg.upgrade(call(request))
        except MitmCacheError:
            return None  # the relay says why

    async def answer(self, request: Request, passage: Passage) -> Response:
        """The answer, whose body is still to come, or what went wrong on the way to it."""
        try:
            answer = await passage.answer()
            if answer.status < HTTPStatus.BAD_REQUEST:
                await self._forget(request)
        except MitmCacheError as error:
            passage.close()
            await self._forget(request)  # it may have been heard before it was lost
            return explain(error, request)
        base = self._leg.client.base(request.registry)
        headers = Headers(
            (name, localize(value, seen_by(request), base, request.registry.names))
            if name.lower() == "location"
            else (name, value)
            for name, value in answer.headers.without(NOT_RELAYED | {"content-length"})
        )
        length = passage.length
        if length is not None:
            headers += Headers([("Content-Length", str(length))])
        bodiless = request.method == "HEAD" or answer.status in _BODILESS or length == 0
        sent = f" to {passage.upload.taken} bytes" if passage.upload.taken else ""
        return Response(
            status=answer.status,
            headers=headers,
            body=b"" if bodiless else StreamBody(passage, length),
            outcome="RELAY",
            reason=f"upstream answered {answer.status}{sent}",
        )

    async def _forget(self, request: Request) -> None:
        """A PUT or DELETE makes what is known of its tag or digest untrue."""
        if request.method not in ("PUT", "DELETE"):
            return
        registry = request.registry.name
        if isinstance(request.operation, Manifest):
            repository, reference = request.operation.repository, request.operation.reference
            await self._leg.record(lambda: self._pushed.keep(registry, repository, reference))
        match request.operation:
            case Manifest(repository, Tag() as tag):
                await self._leg.record(lambda: self._links.untag(registry, repository, tag))
            case Manifest(repository, Digest() as digest) | Blob(repository, digest):
                await self._leg.record(lambda: self._links.drop(registry, repository, digest))
            case _:
                pass  # nothing is known of anything else


def call(request: Request) -> Call:
    """The request as it goes upstream: as it is, but for what belongs to its connection."""
    named = (name.strip().lower() for value in request.headers.get_all("connection") for name in value.split(","))
    return Call(
        registry=request.registry,
        repository=None,
        method=request.method,
        target=request.target,
        headers=request.headers.without(_NOT_PASSED_ON | frozenset(named)),
        credential=None,  # it is among the headers
    )


def seen_by(request: Request) -> str:
    """The origin that the client believes to speak to."""
    scheme = "http" if request.listener == "clear" else "https"
    return f"{scheme}://{(request.headers.get('host') or '').lower()}"
