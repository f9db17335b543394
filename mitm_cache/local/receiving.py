"""Where the bodies of pushes go: into the file of an upload, or, of a manifest, into memory where it is small."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import SpooledTemporaryFile

from mitm_cache.errors import ClientError, MitmCacheError, StoreError
from mitm_cache.local.space import Share
from mitm_cache.local.telling import tell
from mitm_cache.local.uploads import Upload
from mitm_cache.oci.manifest import MAX_SIZE
from mitm_cache.wire.message import Request, Response

SMALL = 128 << 10
"""Bytes of a manifest that are kept in memory while it comes; nearly all have less."""


class BlobIntake:
    """Bytes at the end of an upload."""

    def __init__(
        self,
        request: Request,
        upload: Upload,
        share: Share | None,
        finish: Callable[[Upload], Awaitable[Response]],
        *,
        resumable: bool = True,
    ) -> None:
        """`share`: what there is room for, None where nothing comes; `finish`: what is done with the whole;
        `resumable`: whether the client knows where it could go on."""
        self._request = request
        self._upload = upload
        self._share = share
        self._finish = finish
        self._begun = upload.size
        self._resumable = resumable
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises StoreError, and ClientError where there is more than what there is room for."""
        assert self._share is not None
        missing = self._upload.size - self._begun + len(data) - self._share.room
        if missing > 0:
            try:
                self._share.grow(missing)
            except ClientError:
                self._upload.remove()  # it would take what room there is from others, and never be whole
                raise
        self._upload.write(data)

    async def finish(self) -> Response:
        """The answer; this is closed then."""
        try:
            return await self._finish(self._upload)
        except MitmCacheError as error:
            return tell(error, self._request)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the upload; what was written stays, for who can go on."""
        if self._closed:
            return
        self._closed = True
        if not self._resumable:
            self._upload.remove()
        if self._share is not None:
            self._share.close(grown(self._upload, self._begun))
        self._upload.close()


def grown(upload: Upload, begun: int) -> int:
    """Bytes that an upload has on the disk beyond those it had; fewer than none where it was removed."""
    return (0 if upload.removed else upload.size) - begun


class ManifestIntake:
    """A manifest's bytes: those of a few large ones, or of many clients that stall, are not kept in memory."""

    def __init__(
        self, request: Request, folder: Path, finish: Callable[[Callable[[], bytes]], Awaitable[Response]]
    ) -> None:
        """`folder`: for what is no longer small; `finish` is given what reads all of it, and blocks on the disk."""
        self._request = request
        self._file = SpooledTemporaryFile(SMALL, dir=str(folder))  # noqa: SIM115 - `close` does
        self._size = 0
        self._finish = finish

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises ClientError where it is too long, StoreError."""
        self._size += len(data)
        if self._size > MAX_SIZE:
            raise too_long()
        try:
            self._file.write(data)
        except OSError as error:
            raise StoreError(f"the manifest cannot be written: {error.strerror}") from error

    async def finish(self) -> Response:
        """The answer; this is closed then."""
        try:
            return await self._finish(self._read)
        except MitmCacheError as error:
            return tell(error, self._request)
        finally:
            self.close()

    def _read(self) -> bytes:
        try:
            self._file.seek(0)
            return bytes(self._file.read())
        except OSError as error:
            raise StoreError(f"the manifest cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Let go of it; closing twice does nothing."""
        self._file.close()


def too_long() -> ClientError:
    """The error for a manifest that no client would read."""
    return ClientError(f"a manifest has at most {MAX_SIZE:,} bytes", status=413, code="SIZE_INVALID")
