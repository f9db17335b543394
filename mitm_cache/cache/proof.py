"""Damage at rest: what is read for the first time since the start is hashed before a client has the last of it.

Small blobs are hashed ahead, within the request; larger ones beside their delivery, whose last byte waits for it.
A blob that was proven is known by its file's number and size, and costs nothing more.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mitm_cache.cache.blobs import Blob, Blobs
from mitm_cache.cache.quarantine import Quarantine
from mitm_cache.errors import StoppingError, StoreError
from mitm_cache.oci.digest import Digest

SMALL = 4 << 20
"""Bytes of a blob that is hashed before its first byte is sent."""
CHUNK = 1 << 20
THREADS = 4

logger = logging.getLogger(__name__)


def hash_file(fd: int, algorithm: str, stopped: Callable[[], bool] = lambda: False) -> str:
    """The hash of an open file. Raises OSError, and StoppingError once it is `stopped`."""
    state = hashlib.new(algorithm)
    buffer = memoryview(bytearray(CHUNK))
    position = 0
    while size := os.preadv(fd, [buffer], position):
        state.update(buffer[:size])
        position += size
        if stopped():
            raise StoppingError("the cache is shutting down")
    return state.hexdigest()


class Proofs:
    """Asked in the event loop before a blob is served."""

    def __init__(self, blobs: Blobs, quarantine: Quarantine, *, stopped: Callable[[], bool]) -> None:
        self._blobs = blobs
        self._quarantine = quarantine
        self._stopped = stopped
        self._small = ThreadPoolExecutor(THREADS, thread_name_prefix="proof")
        self._large = ThreadPoolExecutor(THREADS, thread_name_prefix="proof-large")
        self._running: dict[int, asyncio.Future[bool]] = {}
        self.damaged = 0

    async def admit(self, digest: Digest, blob: Blob) -> bool:
        """Whether a blob may be served; one that is damaged has been put aside. Raises StoreError.

        A large one may be served before that is known: its `readable` holds the end back.
        """
        if self._blobs.is_proven(blob):
            return True
        proof = self._running.get(blob.inode) or self._begin(digest, blob)
        if blob.size > SMALL and not self._blobs.is_doubted(blob):
            blob.proof = proof
            return True
        return await asyncio.shield(proof)

    def _begin(self, digest: Digest, blob: Blob) -> asyncio.Future[bool]:
        try:
            fd = os.dup(blob.fileno())  # the client may leave before
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be read: {error.strerror}") from error
        inode, size = blob.inode, blob.size
        pool = self._small if size <= SMALL else self._large
        try:
            proof = asyncio.get_running_loop().run_in_executor(pool, self._prove, digest, fd, inode, size)
        except RuntimeError as error:  # the system has no thread left; one that ends may yet do it, and close the file
            raise StoreError(f"blob {digest} cannot be proven now: {error}") from error
        self._running[inode] = proof

        def note(done: asyncio.Future[bool]) -> None:
            self._running.pop(inode, None)
            if not done.cancelled():
                done.exception()  # looked at: nobody may be waiting

        proof.add_done_callback(note)
        return proof

    def _prove(self, digest: Digest, fd: int, inode: int, size: int) -> bool:
        try:
            if hash_file(fd, digest.algorithm, self._stopped) == digest.hex:
                self._blobs.vouch(inode, size)
                return True
        except OSError as error:
            logger.error("the cached blob %s cannot be read: %s", digest, error.strerror)
        finally:
            os.close(fd)
        # Where it cannot be put aside, the next client is not to be cut at its end like the one before.
        self._blobs.doubt(inode)
        self.damaged += 1
        aside = self._quarantine.put_aside(digest, inode)
        logger.error("the cached blob %s was damaged, and is fetched again; it is kept as %s", digest, aside)
        return False

    def close(self) -> None:
        """Wait for the threads, which look whether the service is stopped."""
        self._small.shutdown()
        self._large.shutdown()
