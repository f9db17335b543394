"""The path of a pull: every request of every way in, from what it means to what is answered.

Each answer carries its outcome and the reason for it. Nothing is served that upstream would not give this client, nor
what policy denies: a tag is asked for with the client's own credential, and content that is here already is shared
only with clients that may read the repository, and only in repositories known to hold it. Where a registry's rights
are shared or open, the cache's own credential stands in for clients that bring none.
"""

from http import HTTPStatus

from mitm_cache.answers import API_VERSION, explain, pass_back, refuse, small
from mitm_cache.cache.spool import Spool
from mitm_cache.errors import LoginError, MitmCacheError, OfflineError, UnreachableError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.operation import Blob, Catalog, Manifest, Ping, Referrers, TagList
from mitm_cache.oci.reference import Tag
from mitm_cache.policy import Policy, question_of
from mitm_cache.policy.ruled import rule
from mitm_cache.pull_through.contents import Contents
from mitm_cache.pull_through.gate import Gate
from mitm_cache.pull_through.knowledge import Knowledge
from mitm_cache.pull_through.listing import Listings
from mitm_cache.pull_through.tags import Tags
from mitm_cache.upstream.leg import Leg
from mitm_cache.upstream.writer import Refused
from mitm_cache.wire.message import Request, Response

PING_SIZE = 64 << 10
"""Bytes of what a registry says to a ping."""


class PullThrough:
    """Answers requests from the cache or from upstream."""

    def __init__(
        self,
        *,
        known: Knowledge,
        spool: Spool,
        policy: Policy,
        leg: Leg,
        ttl: float,
        users: bool = False,
        pushes: bool = False,
    ) -> None:
        """`ttl`: seconds that upstream's word about a tag or a list holds; `users`: whether the cache has any;
        `pushes`: whether they may push to a registry that the cache itself is, by a path at a mirror."""
        self._policy = policy
        self._users = users
        self._pushes = pushes
        self._leg = leg
        self._gate = gate = Gate(
            blobs=known.blobs, links=known.links, readers=known.readers, verdicts=known.verdicts, leg=leg
        )
        self._contents = Contents(blobs=known.blobs, links=known.links, gate=gate, leg=leg)
        self._tags = Tags(known=known, spool=spool, gate=gate, contents=self._contents, leg=leg, ttl=ttl)
        self._listings = Listings(known=known, policy=policy, gate=gate, leg=leg, ttl=ttl)

    async def handle(self, request: Request) -> Response:
        """Answer a request; what goes wrong on the way is an answer too."""
        try:
            return await self._answer(request)
        except Refused as refusal:
            return refuse(refusal.answer, request)
        except OfflineError as error:
            code = "BLOB_UNKNOWN" if isinstance(request.operation, Blob) else error.code
            return explain(OfflineError(f"{error.message}, and {_wanted(request)} is not cached", code=code), request)
        except MitmCacheError as error:
            return explain(error, request)

    async def _answer(self, request: Request) -> Response:
        ruling = rule(self._policy, request)
        match request.operation:
            case Ping():
                return await self._ping(request)
            case Manifest(repository, Tag() as tag):
                return await self._tags.answer(request, repository, tag, ruling)
            case Manifest(repository, Digest() as digest):
                return await self._contents.manifest(request, repository, digest, ruling)
            case Blob(repository, digest):
                return await self._contents.blob(request, repository, digest, ruling)
            case TagList() | Referrers() | Catalog():
                return await self._listings.answer(request)
            case _:
                raise MitmCacheError(f"{request.method} {request.target.partition('?')[0]} is no pull")

    async def _ping(self, request: Request) -> Response:
        headers = [API_VERSION, ("Content-Type", "application/json")]
        lent = self._gate.modes.lends(request.registry.name, request.credential)
        if request.mirror or lent:
            if self._has_to_log_in(request):
                asking = explain(LoginError("users of this cache may have more here than strangers do"), request)
                # Who has shown nothing yet is asked, and not refused.
                asking.outcome = "LOCAL" if request.credential is None else asking.outcome
                return asking
            # A client that is asked to log in here does so as a stranger, and has a credential from then on.
            reason = "mirror clients need no login" if request.mirror else "its rights are not the client's own"
            return small(HTTPStatus.OK, headers, b"{}", request, outcome="LOCAL", reason=reason)
        try:
            answer = await self._leg.exchange(self._gate.call(request, limit=PING_SIZE), patient=False)
            if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)):
                raise UnreachableError(f"{request.registry.name} answered {answer.status}")
        except (UnreachableError, OfflineError) as error:
            # Asked to log in, a client would go to a token host, for which the cache cannot answer.
            reason = f"{error.message}; what is cached needs no login"
            return small(HTTPStatus.OK, headers, b"{}", request, outcome="LOCAL", reason=reason)
        return pass_back(answer, request, "RELAY", f"upstream answered {answer.status}")

    def _has_to_log_in(self, request: Request) -> bool:
        """Clients learn from the ping alone how to log in: strangers are asked to where it may matter who they are."""
        registry = request.registry.name if request.chosen else None
        # By a first part of a path, which a ping does not have, they may come to the local registry. Where they are not
        # expected to, nobody is asked: a dockerd that pulls Docker Hub's images here would go past the cache.
        matters = self._policy.names_users(registry) or (self._pushes and not request.chosen)
        return self._users and request.user == "" and not request.bearer and matters


def _wanted(request: Request) -> str:
    return str(question_of(request) or request.registry.name)
