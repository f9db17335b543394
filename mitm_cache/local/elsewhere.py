"""Content that is here already by another way, and so need not be pushed: only what its client could pull anyway.

That is what another local repository holds which the client may pull from, and what a repository of another registry
holds which everybody may read, by that registry's own word or the operator's, and which policy gives to this client.
Of anything else nobody learns whether it is here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mitm_cache.cache.entry import Origin
from mitm_cache.cache.owned import holders
from mitm_cache.cache.proof import Proofs
from mitm_cache.cache.readers import Readers
from mitm_cache.errors import ClientError, StoreError
from mitm_cache.local.rights import Rights
from mitm_cache.local.space import Space
from mitm_cache.local.store import Store
from mitm_cache.local.threads import Threads
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import LOCAL
from mitm_cache.rights import ANYONE, Verdicts
from mitm_cache.wire.message import Request


@dataclass(frozen=True, slots=True)
class Holder:
    """A repository that holds a content. `given`: the operator has put it there; `read`: strangers could read it when
    its registry was last asked."""

    registry: str
    repository: Repository
    given: bool
    read: bool


class Elsewhere:
    """Links what is here to a local repository, for clients that may push to it."""

    def __init__(
        self,
        *,
        store: Store,
        space: Space,
        rights: Rights,
        readers: Readers,
        verdicts: Verdicts,
        proofs: Proofs,
        threads: Threads,
    ) -> None:
        self._store = store
        self._space = space
        self._rights = rights
        self._readers = readers
        self._verdicts = verdicts
        self._proofs = proofs
        self._threads = threads

    async def link(self, request: Request, repository: Repository, digest: Digest) -> bool:
        """Whether a repository holds a content now, from elsewhere or as it did. Raises StoreError."""
        if await self._threads.look(lambda: self._store.held(repository, digest)) is not None:
            await self._threads.run(lambda: self._store.renew(repository, digest))
            return True
        if not self._store.blobs.has(digest):
            return False
        found = await self._threads.look(lambda: list(self._holders(digest)))
        allowed = [holder for holder in found if self._may_read(request, holder, digest)]
        if not allowed:
            return False
        if not any(holder.registry == LOCAL for holder in allowed) and not await self._is_sound(digest):
            return False
        if any(holder.registry == LOCAL for holder in found):
            work = partial(self._store.link, repository, digest, owned=True)
            if await self._threads.run(work):
                return True  # what is held already takes no room
        return await self._threads.run(lambda: self._link(repository, digest))

    def _holders(self, digest: Digest) -> Iterator[Holder]:
        for registry, repository in holders(self._store.layout, digest):
            if registry == LOCAL:
                yield Holder(registry, repository, given=False, read=False)
                continue
            link = self._store.links.holds(registry, repository, digest)
            if link is not None:
                read = self._readers.age(registry, repository, ANYONE) is not None
                yield Holder(registry, repository, given=link.origin is not Origin.PULLED, read=read)

    def _may_read(self, request: Request, holder: Holder, digest: Digest) -> bool:
        if not self._rights.may_pull(request, holder.registry, holder.repository, digest):
            return False
        if holder.registry == LOCAL or holder.given:
            return True
        if self._verdicts.allow(holder.registry, holder.repository, None):
            return True
        return holder.read and not self._verdicts.is_closed(holder.registry, holder.repository)

    async def _is_sound(self, digest: Digest) -> bool:
        """Whether the bytes are what they should be: a client that does not push its own relies on them."""
        blob = self._store.blobs.open(digest)
        if blob is None:
            return False
        try:
            return await self._proofs.admit(digest, blob) and (blob.proof is None or await blob.proof)
        finally:
            blob.close()

    def _link(self, repository: Repository, digest: Digest) -> bool:
        try:
            size = self._store.blobs.path(digest).stat().st_size
            share = self._space.take(size, writes=False)
        except (FileNotFoundError, ClientError):
            return False  # where there is no room for it, its upload is told so
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be read: {error.strerror}") from error
        try:
            return self._store.link(repository, digest, partial(share.keep, size))
        finally:
            share.settle()
