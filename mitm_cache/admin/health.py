"""Whether the service can do its work. Each check says `ok`, or what is wrong in words for the operator."""

import asyncio
import errno
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import Executor

from mitm_cache.admin.facts import Facts
from mitm_cache.cache.layout import Layout

OK = "ok"
UNCACHED = "pulls pass through uncached: "
WAITING = "some connections wait: "
"""How checks begin that say what is wrong while clients have what they ask for all the same."""
DEAF = "connections are not accepted"
PATIENCE = 2.0
"""Seconds that the data directory may take: less than what probes wait."""


def is_ready(checks: Mapping[str, str]) -> bool:
    """Whether pulls are served, by the answers of every check."""
    return all(answer == OK or answer.startswith((UNCACHED, WAITING)) for answer in checks.values())


class Health:
    """The checks behind `/readyz`. `/healthz` needs none: it asks whether event loops turn."""

    def __init__(self, facts: Facts, threads: Executor, *, patience: float = PATIENCE) -> None:
        """`threads`: where the disk is touched."""
        self._facts = facts
        self._threads = threads
        self._patience = patience
        self._writing: asyncio.Future[str] | None = None

    async def check(self) -> dict[str, str]:
        """Every check by name."""
        return {"data_dir": await self._data_dir(), "listeners": self._facts.listeners(), "ca": self._ca()}

    def _ca(self) -> str:
        now, ca = self._facts.clock(), self._facts.ca()["signing"]
        if ca.not_before <= now < ca.not_after:
            return OK
        return f"the CA is valid from {ca.not_before} to {ca.not_after}, and it is {now}"

    async def _data_dir(self) -> str:
        # Probes that come while one waits share its answer: a disk that hangs holds one thread.
        if self._writing is None or self._writing.done():
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(self._threads, try_to_write, self._facts.layout)
        try:
            async with asyncio.timeout(self._patience):
                return await asyncio.shield(self._writing)
        except TimeoutError:
            return f"{self._facts.layout.root} has not answered for {self._patience:g} s"


def try_to_write(layout: Layout) -> str:
    """Write a byte where downloads write, and look whether blobs can be added."""
    path = layout.spool / f"probe-{secrets.token_hex(8)}"
    try:
        try:
            path.write_bytes(b"\n")
        finally:
            path.unlink(missing_ok=True)
        os.stat(layout.root / "FORMAT")
    except OSError as error:
        words = f"{layout.root} cannot be written: {error.strerror}"
        return UNCACHED + words if error.errno in _FULL else words
    if not os.access(layout.blobs, os.W_OK | os.X_OK):
        return f"{layout.blobs} cannot be written"
    return OK


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
