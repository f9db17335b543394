"""The CA of a service that runs: who signs now, what nodes are to trust, and when that ends."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

from mitm_cache.ca import files
from mitm_cache.ca.authority import CertificateAuthority, Description
from mitm_cache.ca.rotation import Pair
from mitm_cache.errors import ConfigError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How often the directory is looked at, in seconds."""
SOON, VERY_SOON = timedelta(days=30), timedelta(days=7)
"""A CA that ends within this is told of every day: as a warning, then as an error."""
_DAY = timedelta(days=1)
_WATCHED = (files.KEY_FILE, files.CERTIFICATE_FILE, f"{files.NEXT}.key", f"{files.NEXT}.crt", files.DATE_FILE)

type _Stamp = tuple[tuple[int, int] | None, ...]


class Custody:
    """Holds the CA of a directory and follows what `mitm-cache ca` does to it. What cannot be used is not taken up:
    the CA that was there before goes on signing."""

    def __init__(self, pair: Pair, *, permitted: Sequence[str], clock: Callable[[], datetime], seen: _Stamp) -> None:
        """`seen`: the files as they were before `pair` was read."""
        self._directory: Path = pair.current.directory
        self._permitted = tuple(permitted)
        self._clock = clock
        self._seen = seen
        self._pair = pair

    @classmethod
    def open(
        cls, directory: Path, *, permitted: Sequence[str], clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> Self:
        """The CA of the directory, made when there is none.

        Raises ConfigError when the one that signs is not valid now, or does not cover everything in `permitted`.
        """
        now = clock()
        CertificateAuthority.found_or_made(directory, permitted=permitted, now=now)
        seen = _look(directory)
        pair = Pair.load(directory)
        _check(pair, permitted, now)
        return cls(pair, permitted=permitted, clock=clock, seen=seen)

    def signer(self, now: datetime) -> CertificateAuthority:
        """Whose leaves are shown at `now`."""
        return self._pair.signer(now)

    @property
    def fingerprint(self) -> str:
        """Of the one that signs now."""
        return self.signer(self._clock()).fingerprint

    def export(self, form: Literal["pem", "der"] = "pem") -> bytes:
        """What nodes are to trust: in PEM form all certificates, the one that signs first; DER holds that one only."""
        now = self._clock()
        return self._pair.export(now) if form == "pem" else self.signer(now).export("der")

    def describe(self) -> dict[str, Description]:
        """Every CA in use by its role: `signing`, and `next` or `previous` while a rotation is under way."""
        return {role: each.describe() for role, each in self._pair.by_role(self._clock()).items()}

    def refresh(self) -> bool:
        """Take up what has changed on disk, if it can be used; whether it was. Reads files."""
        seen = _look(self._directory)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            pair = Pair.load(self._directory)
            _check(pair, self._permitted, self._clock())
        except ConfigError as error:
            logger.warning("the CA has changed on disk and is not taken up: %s", error.message)
            return False
        self._pair = pair
        logger.warning("the CA has changed on disk: leaves are signed by %s", self.fingerprint)
        return True

    def warn(self) -> None:
        """Say which CA ends soon."""
        for level, words in self.endings():
            logger.log(level, "%s", words)

    def endings(self) -> Iterator[tuple[int, str]]:
        """The level and the words for each CA that ends within 30 days; the cure too."""
        now = self._clock()
        for role, each in self._pair.by_role(now).items():
            left = each.not_after - now
            if role != "previous" and left < SOON:
                ends = f"ends in {left.days} days" if left > timedelta(0) else "has ended"
                words = f"the CA {each.certificate_path} {ends} ({each.not_after:%Y-%m-%d}); {each.anew}"
                if role == "signing" and self._pair.following is not None:
                    words = (
                        f"{words.partition(';')[0]}; 'mitm-cache ca rotate --finish' puts the next one into its place"
                    )
                yield logging.ERROR if left < VERY_SOON else logging.WARNING, words

    async def attend(self, pause: float = LOOK_SECONDS) -> None:
        """Refresh after every `pause` (seconds) and warn every day, until cancelled."""
        warned: datetime | None = None
        while True:
            changed = await asyncio.to_thread(self.refresh)
            if changed or warned is None or self._clock() - warned >= _DAY:
                self.warn()
                warned = self._clock()
            await asyncio.sleep(pause)


def _check(pair: Pair, permitted: Sequence[str], now: datetime) -> None:
    """Raise ConfigError unless whoever signs, now or from a date on, can."""
    signer = pair.signer(now)
    signer.check_valid(now)
    signer.check_covers(permitted)
    if pair.following is not None and pair.since is not None:
        pair.following.check_covers(permitted)


def _look(directory: Path) -> _Stamp:
    """The files as they are; a file that is put in the place of another has another inode."""
    return tuple(_facts(directory / name) for name in _WATCHED)


def _facts(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns
