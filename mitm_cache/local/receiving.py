"""Where the bodies of pushes go: into the file of an upload, or, of a manifest, into memory."""

from collections.abc import Awaitable, Callable

from mitm_cache.answers import explain
from mitm_cache.errors import ClientError, MitmCacheError
from mitm_cache.local.space import Space
from mitm_cache.local.uploads import Upload
from mitm_cache.oci.manifest import MAX_SIZE
from mitm_cache.wire.message import Request, Response


class BlobIntake:
    """Bytes at the end of an upload."""

    def __init__(
        self,
        request: Request,
        upload: Upload,
        space: Space,
        room: int,
        finish: Callable[[Upload], Awaitable[Response]],
        *,
        resumable: bool = True,
    ) -> None:
        """`room`: bytes that there is room for, which `space` has promised; `finish`: what is done with the whole;
        `resumable`: whether the client knows where it could go on."""
        self._request = request
        self._upload = upload
        self._space: Space | None = space
        self._room = room
        self._finish = finish
        self._begun = upload.size
        self._resumable = resumable

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises StoreError, and ClientError where there is more than what there is room for."""
        if self._upload.size - self._begun + len(data) > self._room:
            raise ClientError("the local registry is full: local.max_size is reached", status=403, code="DENIED")
        self._upload.write(data)

    async def finish(self) -> Response:
        """The answer; this is closed then."""
        try:
            return await self._finish(self._upload)
        except MitmCacheError as error:
            return explain(error, self._request)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the upload; what was written stays, for who can go on."""
        space, self._space = self._space, None
        if space is not None:
            if not self._resumable:
                self._upload.remove()
            space.give_back(self._request.size, self._upload.size - self._begun, self._upload.name)
            self._upload.close()


class ManifestIntake:
    """A manifest's bytes."""

    def __init__(self, request: Request, finish: Callable[[bytes], Awaitable[Response]]) -> None:
        self._request = request
        self._content = bytearray()
        self._finish = finish

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises ClientError where it is too long."""
        if len(self._content) + len(data) > MAX_SIZE:
            raise too_long()
        self._content += data

    async def finish(self) -> Response:
        """The answer."""
        try:
            return await self._finish(bytes(self._content))
        except MitmCacheError as error:
            return explain(error, self._request)

    def close(self) -> None:
        """Let go of it."""
        self._content = bytearray()


def too_long() -> ClientError:
    """The error for a manifest that no client would read."""
    return ClientError(f"a manifest has at most {MAX_SIZE:,} bytes", status=413, code="SIZE_INVALID")
