"""Who has the right password: asked of bcrypt in threads of its own, a few at a time, and remembered for minutes."""

import asyncio
import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from mitm_cache.errors import ClientError
from mitm_cache.users.attempts import PERIOD, Attempts
from mitm_cache.users.file import UsersFile
from mitm_cache.users.table import fits
from mitm_cache.wire.basic import Basic

KEEP_SECONDS = 300.0
"""How long an answer of bcrypt is remembered; a hash that changes ends it at once."""
LOOK_SECONDS = 1.0
"""It is looked at most so often whether the file has changed."""
MAX_KEPT = 4096
"""Answers that are remembered, right and wrong ones apart."""
MAX_WAITING = 64
"""Questions to bcrypt that may wait for a thread."""


class Users:
    """The users of one file. All of it belongs to the event loop, but for the two things that threads do."""

    def __init__(self, file: UsersFile, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._table = file.table
        self._due = 0.0
        self._looking = False
        self._key = secrets.token_bytes(32)
        self._right = _Kept(clock)
        self._wrong = _Kept(clock)
        self._asked: dict[bytes, asyncio.Future[bool]] = {}
        self._attempts = Attempts(clock)
        # Half of the processors: whoever tries passwords does not take the others from those who pull.
        threads = max(len(os.sched_getaffinity(0)) // 2, 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="password")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises ConfigError where the file is not there, is open to others, or is malformed."""
        return cls(UsersFile(path))

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown(cancel_futures=True)

    def knows(self, name: str) -> bool:
        """Whether there is a user of this name."""
        return name in self._table.hashes

    def hash_of(self, name: str) -> str | None:
        """A user's hash, as far as it is known (`is_current`); None for a name that is no user's."""
        return self._table.hashes.get(name)

    def hash_by(self, login: Basic) -> str:
        """The hash by which a password was found right, and with which it ends; "-" where that is another by now."""
        hash_ = self._table.hashes.get(login.name)
        return hash_ if hash_ is not None and self._kept(self._fingerprint(login)) else "-"

    def is_current(self) -> bool:
        """Whether the file has been looked at just now; otherwise it is time to `look`."""
        return self._clock() < self._due

    def recall(self, login: Basic) -> bool | None:
        """Whether a password is right, where that is known; None where `check` has to be asked."""
        if not self.is_current():
            return None
        return self._kept(self._fingerprint(login))

    async def check(self, client: str, login: Basic) -> bool:
        """Whether a password is right. Raises ClientError (429) where this client, or all of them, try too many."""
        await self.look()
        key = self._fingerprint(login)
        kept = self._kept(key)
        if kept is not None:
            return kept
        asked = self._asked.get(key)
        if asked is None:
            if len(self._asked) >= MAX_WAITING or not self._attempts.spend(client):
                raise ClientError(
                    f"too many passwords are tried: wait {PERIOD:.0f} seconds", status=429, code="TOOMANYREQUESTS"
                )
            asked = self._ask(key, client, self._table.hash_for(login.name), login.password)
        # Others may wait for the same answer, and it is worth remembering for one who has left.
        right = await asyncio.shield(asked)
        return right and key == self._fingerprint(login)  # there may be another password by now

    def _ask(self, key: bytes, client: str, hash_: str, password: bytes) -> asyncio.Future[bool]:
        def settle(asked: asyncio.Future[bool]) -> None:
            del self._asked[key]
            if not asked.cancelled() and asked.exception() is None:
                right = asked.result()
                (self._right if right else self._wrong).put(key)
                if right:
                    self._attempts.give_back(client)

        asked = asyncio.get_running_loop().run_in_executor(self._pool, fits, hash_, password)
        self._asked[key] = asked
        asked.add_done_callback(settle)
        return asked

    async def look(self) -> None:
        """Look at the file where it is time to; meanwhile others go on with what is known."""
        if self.is_current() or self._looking:
            return
        self._looking = True
        try:
            self._table = await asyncio.to_thread(self._file.look)
            self._due = self._clock() + LOOK_SECONDS
        finally:
            self._looking = False

    def _kept(self, key: bytes) -> bool | None:
        return True if key in self._right else False if key in self._wrong else None

    def _fingerprint(self, login: Basic) -> bytes:
        """What an answer is kept under: it says nothing of the password, and is another one for another hash."""
        hash_ = self._table.hash_for(login.name)
        parts = (login.name.encode(), hash_.encode(), login.password)
        return hmac.digest(self._key, b"".join(len(part).to_bytes(4) + part for part in parts), "sha256")


class _Kept:
    """Keys, for a while; the oldest leave where there are too many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def put(self, key: bytes) -> None:
        self._until[key] = self._clock() + KEEP_SECONDS
        self._until.move_to_end(key)
        if len(self._until) > MAX_KEPT:
            self._until.popitem(last=False)

    def __contains__(self, key: bytes) -> bool:
        until = self._until.get(key)
        if until is None:
            return False
        if self._clock() < until:
            return True
        del self._until[key]
        return False
