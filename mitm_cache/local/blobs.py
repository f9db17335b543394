"""Pushing blobs: uploads begun, carried on, ended; and blobs that need no upload."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus

from mitm_cache.answers import API_VERSION, small
from mitm_cache.errors import ClientError
from mitm_cache.local.elsewhere import Elsewhere
from mitm_cache.local.places import fields, place, upload_in
from mitm_cache.local.receiving import BlobIntake, grown
from mitm_cache.local.space import Share, Space
from mitm_cache.local.store import Store
from mitm_cache.local.threads import Threads
from mitm_cache.local.uploads import Upload, Uploads
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository
from mitm_cache.wire.message import Intake, Request, Response

type Finish = Callable[[Upload, Share | None], Awaitable[Response]]

PATIENCE = 2.0
"""Seconds that an upload is waited for on which another request works: often one whose client is gone already."""
LOOK_SECONDS = 0.05
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:[0-9]{1,18}|\*))?")


class BlobPushes:
    """Every request about an upload; who asks may push. All of it raises MitmCacheError."""

    def __init__(self, *, store: Store, space: Space, elsewhere: Elsewhere, threads: Threads) -> None:
        self._store = store
        self._uploads = Uploads(store.layout.uploads, threads.later)
        self._space = space
        self._elsewhere = elsewhere
        self._threads = threads

    async def begin(self, request: Request, repository: Repository) -> Response | Intake:
        """POST: an upload is opened, or the blob is sent along, or it is here and need not be sent."""
        asked = fields(request)
        if "mount" in asked:
            digest = Digest.parse(asked["mount"])
            if await self._elsewhere.link(request, repository, digest):
                return self._created(request, repository, digest, "it is here already")
        if "digest" in asked and "mount" not in asked:
            digest = Digest.parse(asked["digest"])
            upload = await self._threads.open(lambda: self._uploads.begin(repository))
            try:
                finish = partial(self._complete, request, repository, digest)
                return await self._take(request, upload, finish, resumable=False)
            except BaseException:
                upload.remove()
                raise
        upload = await self._threads.open(lambda: self._uploads.begin(repository))
        upload.close()
        return self._state(request, repository, upload.name, 0, HTTPStatus.ACCEPTED)

    async def state(self, request: Request, repository: Repository) -> Response:
        """GET: how much there is."""
        name = upload_in(request)
        size = await self._threads.look(lambda: self._uploads.size(repository, name))
        return self._state(request, repository, name, size, HTTPStatus.NO_CONTENT)

    async def carry_on(self, request: Request, repository: Repository) -> Response | Intake:
        """PATCH: more of it."""
        upload = await self._open(request, repository)
        if isinstance(upload, Response):
            return upload

        async def accept(upload: Upload, _: Share | None) -> Response:
            return self._state(request, repository, upload.name, upload.size, HTTPStatus.ACCEPTED)

        return await self._take(request, upload, accept)

    async def end(self, request: Request, repository: Repository) -> Response | Intake:
        """PUT: the rest of it, if there is any, and its digest."""
        asked = fields(request)
        if "digest" not in asked:
            raise ClientError("an upload is ended with ?digest=", code="DIGEST_INVALID")
        digest = Digest.parse(asked["digest"])
        upload = await self._open(request, repository)
        if isinstance(upload, Response):
            return upload
        return await self._take(request, upload, partial(self._complete, request, repository, digest))

    async def cancel(self, request: Request, repository: Repository) -> Response:
        """DELETE."""
        upload = await self._wait_for(request, repository)
        try:
            await self._remove(upload)
        finally:
            upload.close()
        return small(HTTPStatus.NO_CONTENT, [API_VERSION], b"", request, outcome="LOCAL", reason="upload cancelled")

    async def _remove(self, upload: Upload, share: Share | None = None) -> None:
        """An upload is wanted no more, and who is refused next knows it. With a share that is told as it ends."""
        upload.remove()
        if upload.size and share is None:
            await self._threads.run(self._space.measure_again)

    async def _open(self, request: Request, repository: Repository) -> Upload | Response:
        """The upload, at the offset that the request is for; an answer where it is for another one."""
        upload = await self._wait_for(request, repository)
        header = request.headers.get("content-range")
        match = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
        problem = ""
        if header and match is None:
            problem = "Content-Range is no range such as 0-1023"
        elif match and int(match[1]) != upload.size:
            problem = f"the upload goes on at {upload.size}, not at {match[1]}"
        elif match and request.size is not None and int(match[2]) - int(match[1]) + 1 != request.size:
            problem = f"Content-Range is not as long as the body, which has {request.size} bytes"
        if not problem:
            return upload
        upload.close()
        status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        response = self._state(request, repository, upload.name, upload.size, status)
        response.outcome, response.reason = "REFUSED", problem
        return response

    async def _wait_for(self, request: Request, repository: Repository) -> Upload:
        name = upload_in(request)
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        while (upload := await self._threads.open(lambda: self._uploads.open(repository, name))) is None:
            if loop.time() >= end:
                raise ClientError("another request works on this upload", status=409, code="BLOB_UPLOAD_INVALID")
            await asyncio.sleep(LOOK_SECONDS)
        return upload

    async def _take(
        self, request: Request, upload: Upload, finish: Finish, *, resumable: bool = True
    ) -> Response | Intake:
        """What takes the body, or, where there is none, the answer."""
        share: Share | None = None
        begun = upload.size
        try:
            if request.size != 0:
                share = await self._threads.open(lambda: self._space.take(request.size, upload.name, upload.size))
            await self._threads.prove(upload.catch_up)
        except BaseException:
            if share is not None:
                share.close()
            upload.close()
            raise

        async def settle(upload: Upload) -> Response:
            # Who has the answer can count on what it has given back, whichever process takes the next request.
            try:
                return await finish(upload, share)
            finally:
                if share is not None and not share.closed:
                    await self._threads.run(lambda: share.settle(grown(upload, begun)))

        intake = BlobIntake(request, upload, share, settle, resumable=resumable)
        return await intake.finish() if request.size == 0 else intake

    async def _complete(
        self, request: Request, repository: Repository, digest: Digest, upload: Upload, share: Share | None
    ) -> Response:
        found = await self._threads.prove(lambda: upload.prove(digest.algorithm))
        if found != digest.hex:
            await self._remove(upload, share)
            raise ClientError(
                f"what was pushed is {digest.algorithm}:{found}, not {digest}; it was {upload.size:,} bytes",
                code="DIGEST_INVALID",
            )

        work = partial(self._store.adopt, repository, digest, upload.path, upload.inode, upload.size)
        if share is not None:
            work = partial(work, partial(share.keep, upload.size - share.row.begun))
        await self._threads.run(work)
        upload.adopted()
        return self._created(request, repository, digest, f"kept, {upload.size} bytes")

    def _created(self, request: Request, repository: Repository, digest: Digest, reason: str) -> Response:
        headers = [
            API_VERSION,
            ("Location", place(request, repository, f"blobs/{digest}")),
            ("Docker-Content-Digest", str(digest)),
        ]
        response = small(HTTPStatus.CREATED, headers, b"", request, outcome="LOCAL", reason=reason)
        response.digest = str(digest)
        return response

    def _state(self, request: Request, repository: Repository, name: str, size: int, status: HTTPStatus) -> Response:
        headers = [
            API_VERSION,
            ("Location", place(request, repository, f"blobs/uploads/{name}")),
            ("Range", f"0-{max(size - 1, 0)}"),
            ("Docker-Upload-UUID", name),
        ]
        return small(status, headers, b"", request, outcome="LOCAL", reason=f"{size} bytes are here")
