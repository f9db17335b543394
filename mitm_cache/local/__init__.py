"""The registry for images of one's own: a real one, in the same store as what is cached of all others.

Requests come as they do for every registry; nothing of them goes anywhere else. What a push leaves is durable before
it is answered, belongs to the repository that it was pushed to, and is given to whom the policy lets have it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Protocol

from mitm_cache.answers import API_VERSION, content, content_head, small
from mitm_cache.cache.entry import Head, Link
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.proof import Proofs
from mitm_cache.cache.room import Room
from mitm_cache.errors import ClientError, MitmCacheError
from mitm_cache.local import granting
from mitm_cache.local.blobs import BlobPushes
from mitm_cache.local.collection import Collection
from mitm_cache.local.elsewhere import Elsewhere
from mitm_cache.local.listing import Lists
from mitm_cache.local.manifests import Pushed, read
from mitm_cache.local.places import place
from mitm_cache.local.receiving import ManifestIntake, too_long
from mitm_cache.local.rights import Rights
from mitm_cache.local.space import Space
from mitm_cache.local.store import OCTETS, Store
from mitm_cache.local.telling import tell
from mitm_cache.local.threads import Threads
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE
from mitm_cache.oci.operation import Blob, Catalog, Manifest, Other, Ping, Referrers, TagList, Upload
from mitm_cache.oci.reference import Reference, Repository, Tag
from mitm_cache.policy import Policy, Ruling
from mitm_cache.pull_through.knowledge import Knowledge
from mitm_cache.registries import LOCAL
from mitm_cache.users import OwnTokens
from mitm_cache.wire.message import Intake, Request, Response


class Demand(Protocol):
    """Brings an image that is asked for, from where there may be a newer one."""

    async def refresh(self, request: Request, repository: Repository, reference: Reference) -> None:
        """Have it here, if it can be had in time."""
        ...

    async def is_own(self, request: Request) -> bool:
        """Whether a request is part of that, and needs no right of its own to push."""
        ...

    def close(self) -> None:
        """End what is under way."""
        ...


class LocalRegistry:
    """Answers pulls by `handle`, and everything else by `receive`. Neither raises."""

    def __init__(  # noqa: PLR0913 - it joins so many parts
        self,
        *,
        layout: Layout,
        known: Knowledge,
        policy: Policy,
        users: bool,
        proofs: Proofs,
        room: Room,
        limit: Callable[[], int],
        tokens: OwnTokens | None = None,
        demand: Demand | None = None,
    ) -> None:
        """`users`: whether the cache has any; `room`: what keeps some of the disk free; `limit`: bytes that all of it
        may have; `tokens`: what clients are known by. Raises StoreError."""
        self.demand = demand
        self._tokens = tokens
        self._proofs = proofs
        self._threads = threads = Threads()
        self._store = store = Store(layout, known.blobs)
        self._collection = Collection(store)
        self._rights = rights = Rights(policy, users=users)
        space = Space(layout, limit=limit, room=room, collect=lambda size: self._collection.make_room(size).freed)
        self._elsewhere = Elsewhere(
            store=store,
            space=space,
            rights=rights,
            readers=known.readers,
            verdicts=known.verdicts,
            proofs=proofs,
            threads=threads,
        )
        self._blobs = BlobPushes(store=store, space=space, elsewhere=self._elsewhere, threads=threads)
        self._space = space
        self._lists = Lists(store=store, rights=rights, threads=threads)

    async def handle(self, request: Request) -> Response:
        """The answer to a GET or HEAD."""
        try:
            return await self._answer(request)
        except MitmCacheError as error:
            return tell(error, request)

    async def receive(self, request: Request) -> Response | Intake:
        """The answer to anything else, or where the body goes that makes it; the head alone is judged."""
        try:
            return await self._receive(request)
        except MitmCacheError as error:
            return tell(error, request)

    async def collect(self) -> None:
        """Remove what nobody needs any more. Raises StoreError."""
        await self._threads.run(self._collection.collect)

    def close(self) -> None:
        """Wait for what is at work."""
        if self.demand is not None:
            self.demand.close()
        self._threads.close()
        self._space.close()

    async def _answer(self, request: Request) -> Response:
        if isinstance(request.operation, Upload):
            self._rights.check_push(request, asked=await self._is_asked(request))
            return await self._blobs.state(request, request.operation.repository)
        ruling = self._rights.check_pull(request)
        match request.operation:
            case Ping():
                if not await self._is_asked(request):
                    self._rights.greet(request)
                headers = [API_VERSION, ("Content-Type", "application/json")]
                return small(HTTPStatus.OK, headers, b"{}", request, outcome="LOCAL", reason="this is the registry")
            case Manifest(repository, reference):
                return await self._manifest(request, repository, reference, ruling)
            case Blob(repository, digest):
                return await self._blob(request, repository, digest)
            case TagList(repository):
                return await self._lists.tags(request, repository)
            case Referrers(repository, digest):
                return await self._lists.referrers(request, repository, digest)
            case Catalog():
                return await self._lists.catalog(request)
            case Other() if self._tokens is not None and granting.is_asked(request):
                return granting.grant(self._tokens, request)
            case _:
                raise ClientError("there is nothing here but a registry", status=404)

    async def _manifest(
        self, request: Request, repository: Repository, reference: Reference, ruling: Ruling
    ) -> Response:
        if self.demand is not None and ruling.freeze is None:
            await self.demand.refresh(request, repository, reference)
        digest = self._store.tagged(repository, reference) if isinstance(reference, Tag) else reference
        digest = ruling.freeze or digest
        link = self._store.manifest(repository, digest) if digest is not None else None
        if link is None:
            raise _unknown(repository, reference)
        return await self._serve(request, link, _unknown(repository, reference))

    async def _is_asked(self, request: Request) -> bool:
        """Whether it is part of a push that this cache has asked for."""
        return self.demand is not None and await self.demand.is_own(request)

    async def _blob(self, request: Request, repository: Repository, digest: Digest) -> Response:
        link = self._store.held(repository, digest)
        unknown = _no_blob(repository, digest)
        # What was just deleted stays so, whoever else holds it: only a mount or another push brings it back.
        gone = link is None and self._store.was_deleted(repository, digest)
        pushing = request.method == "HEAD" and not gone and self._rights.may_push(request)
        # Asked by who is about to push: what is here need not be pushed, and stays until it is used.
        if pushing and await self._elsewhere.link(request, repository, digest):
            link = self._store.held(repository, digest)
        if link is None:
            raise unknown
        return await self._serve(request, replace(link, media_type=OCTETS), unknown)

    async def _serve(self, request: Request, link: Link, unknown: ClientError) -> Response:
        blob = self._store.blobs.open(link.digest)
        if blob is None:
            raise unknown
        if request.method == "HEAD":
            size = blob.size
            blob.close()
            return content_head(replace(link, size=size), outcome="LOCAL", reason="it is here")
        try:
            sound = await self._proofs.admit(link.digest, blob)
        except BaseException:
            blob.close()
            raise
        if not sound:
            blob.close()
            raise unknown
        head = Head(blob.size, link.media_type)
        return content(request, link.digest, blob, head, outcome="LOCAL", reason="it is here")

    async def _receive(self, request: Request) -> Response | Intake:
        if self._tokens is not None and request.method == "POST" and granting.is_asked(request):
            form = granting.receive(self._tokens, request)
            return await form.finish() if request.size == 0 else form
        ruling = self._rights.check_push(request, asked=await self._is_asked(request))
        match request.method, request.operation:
            case "POST", Upload(repository):
                return await self._blobs.begin(request, repository)
            case "PATCH", Upload(repository):
                return await self._blobs.carry_on(request, repository)
            case "PUT", Upload(repository):
                return await self._blobs.end(request, repository)
            case "DELETE", Upload(repository):
                return await self._blobs.cancel(request, repository)
            case "PUT", Manifest(repository, reference):
                if request.size is not None and request.size > MAX_SIZE:
                    raise too_long()
                put = partial(self._put, request, repository, reference, ruling)
                intake = ManifestIntake(request, self._store.layout.uploads, put)
                return await intake.finish() if request.size == 0 else intake
            case "DELETE", Manifest() | Blob() as operation:
                return await self._delete(request, operation)
            case _:
                raise ClientError(f"{request.method} is not for this path", status=405)

    async def _put(
        self,
        request: Request,
        repository: Repository,
        reference: Reference,
        ruling: Ruling,
        content: Callable[[], bytes],
    ) -> Response:
        def work() -> Pushed:
            with self._threads.reading:
                manifest = read(content(), request.headers.get("content-type") or "", reference)
            if ruling.freeze not in (None, manifest.link.digest):
                raise ClientError(f"{ruling.rule} freezes {reference} at {ruling.freeze}", status=403, code="DENIED")
            size = len(manifest.content)
            share = self._space.take(size)
            try:
                self._store.put_manifest(repository, reference, manifest, partial(share.keep, size))
            finally:
                share.settle()
            return manifest

        manifest = await self._threads.run(work)
        digest = manifest.link.digest
        headers = [
            API_VERSION,
            ("Location", place(request, repository, f"manifests/{digest}")),
            ("Docker-Content-Digest", str(digest)),
        ]
        if manifest.subject is not None:
            headers.append(("OCI-Subject", str(manifest.subject)))
        response = small(HTTPStatus.CREATED, headers, b"", request, outcome="LOCAL", reason="kept")
        response.digest = str(digest)
        return response

    async def _delete(self, request: Request, operation: Manifest | Blob) -> Response:
        repository = operation.repository
        if isinstance(operation, Blob):
            link = self._store.held(repository, operation.digest)
            if link is None:
                raise _no_blob(repository, operation.digest)
            await self._threads.look(lambda: self._check_tags(request, repository, link.digest))
            await self._threads.run(lambda: self._store.delete(repository, link))
        elif isinstance(reference := operation.reference, Tag):
            if self._store.tagged(repository, reference) is None:
                raise _unknown(repository, reference)
            await self._threads.run(lambda: self._store.untag(repository, reference))
        else:
            manifest = self._store.manifest(repository, reference)
            if manifest is None:
                raise _unknown(repository, reference)
            await self._threads.look(lambda: self._check_tags(request, repository, reference))
            await self._threads.run(lambda: self._store.delete(repository, manifest))
        return small(HTTPStatus.ACCEPTED, [API_VERSION], b"", request, outcome="LOCAL", reason="deleted")

    def _check_tags(self, request: Request, repository: Repository, digest: Digest) -> None:
        """What a tag needs that a client may not push is not the client's to delete. Raises ClientError (DENIED)."""
        tags = [Tag.parse(name) for name in self._store.links.tags(LOCAL, repository)]
        others = [tag for tag in tags if not self._rights.may_push_to(request, repository, tag)]
        if (tag := self._store.leading_to(repository, digest, others)) is not None:
            raise ClientError(
                f"{digest} is part of {LOCAL}/{repository}:{tag}, to which this client may not push",
                status=403,
                code="DENIED",
            )


def _no_blob(repository: Repository, digest: Digest) -> ClientError:
    return ClientError(f"{LOCAL}/{repository} holds no {digest}", status=404, code="BLOB_UNKNOWN")


def _unknown(repository: Repository, reference: Reference) -> ClientError:
    name = f"{LOCAL}/{repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"
    return ClientError(f"{name} is not here", status=404, code="MANIFEST_UNKNOWN")
