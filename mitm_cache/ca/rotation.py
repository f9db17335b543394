"""From one CA to the next without a node that fails: nodes are given both certificates, then the signer changes.

The next CA lies beside the current one as `next.key` and `next.crt`. No certificate of the one can vouch for the
other (path length 0), so nodes must be given both while the rotation lasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from mitm_cache.ca import files
from mitm_cache.ca.authority import CertificateAuthority
from mitm_cache.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pair:
    """What is in a CA directory: the CA, the next one while a rotation is under way, and from when on that signs."""

    current: CertificateAuthority
    following: CertificateAuthority | None = None
    since: datetime | None = None

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raise ConfigError where either cannot be used."""
        current = CertificateAuthority.load(directory)
        if not (directory / f"{files.NEXT}.key").exists() or not (directory / f"{files.NEXT}.crt").exists():
            return cls(current)
        return cls(current, CertificateAuthority.load(directory, files.NEXT), _read_date(directory))

    def signer(self, now: datetime) -> CertificateAuthority:
        """Whose leaves are shown at `now`."""
        if self.following is not None and self.since is not None and self.since <= now:
            return self.following
        return self.current

    def by_role(self, now: datetime) -> dict[str, CertificateAuthority]:
        """All that nodes are to trust, the one that signs first: `signing`, and `next` or `previous`."""
        signer = self.signer(now)
        if self.following is None:
            return {"signing": signer}
        if signer is self.following:
            return {"signing": signer, "previous": self.current}
        return {"signing": signer, "next": self.following}

    def export(self, now: datetime) -> bytes:
        """The certificates of all that nodes are to trust, in PEM form, the one that signs first."""
        return b"".join(each.export("pem") for each in self.by_role(now).values())


def begin(directory: Path, *, permitted: Sequence[str], now: datetime, at: datetime | None = None) -> Pair:
    """Make the next CA beside the current one; it signs from `at` on, or when the rotation is finished.

    Raises ConfigError when there is none to rotate, a rotation is under way, or `at` is not before the end of the CA.
    """
    current = CertificateAuthority.load(directory)
    check_date(at, current, now=now)
    refuse_two(directory)
    following = CertificateAuthority.create(directory, permitted=permitted, now=now, stem=files.NEXT)
    write_date(directory, at)
    return Pair(current, following, at)


def finish(directory: Path, *, permitted: Sequence[str], now: datetime) -> CertificateAuthority:
    """Put the next CA into the place of the current one, which is kept under names that end in the time.

    One that was cut short is completed. Raises ConfigError when there is none, or it is not valid or covers too little.
    """
    key, certificate = (directory / f"{files.NEXT}.{end}" for end in ("key", "crt"))
    with files.locked(directory):
        if certificate.exists() and not key.exists():
            certificate.rename(directory / files.CERTIFICATE_FILE)
            return CertificateAuthority.load(directory)
        if not files.present(directory, files.NEXT):
            raise ConfigError(f"no rotation is under way in {directory}; 'mitm-cache ca rotate' begins one")
        following = CertificateAuthority.load(directory, files.NEXT)
        following.check_valid(now)
        following.check_covers(permitted)
        files.keep_copies(directory, files.CURRENT, now=now)
        key.rename(directory / files.KEY_FILE)
        certificate.rename(directory / files.CERTIFICATE_FILE)
        (directory / files.DATE_FILE).unlink(missing_ok=True)
    return CertificateAuthority.load(directory)


def abort(directory: Path) -> CertificateAuthority:
    """Take the next CA away, its key too; returns the one that stays. Raises ConfigError when no rotation goes on."""
    with files.locked(directory):
        if not files.present(directory, files.NEXT):
            raise ConfigError(f"no rotation is under way in {directory}")
        current = CertificateAuthority.load(directory)  # one that was cut short can only be finished
        for name in (files.DATE_FILE, f"{files.NEXT}.key", f"{files.NEXT}.crt"):
            (directory / name).unlink(missing_ok=True)
    return current


def refuse_two(directory: Path) -> None:
    """Raise ConfigError while a rotation is under way."""
    if files.present(directory, files.NEXT):
        raise ConfigError(
            f"a rotation is under way in {directory}: 'mitm-cache ca rotate --finish' or '--abort' ends it"
        )


def check_date(at: datetime | None, current: CertificateAuthority, *, now: datetime) -> None:
    """Raise ConfigError unless the date lies between now and the end of the CA that it replaces."""
    if at is not None and not now < at < current.not_after:
        raise ConfigError(
            f"{at:%Y-%m-%dT%H:%M:%SZ} cannot be the day of the change: it is to lie between now and "
            f"{current.not_after:%Y-%m-%dT%H:%M:%SZ}, when the CA in use ends"
        )


def write_date(directory: Path, at: datetime | None) -> None:
    """Note from when on the next CA signs; None for when the rotation is finished."""
    path = directory / files.DATE_FILE
    path.unlink(missing_ok=True)
    if at is not None:
        files.write_new(path, f"{at.astimezone(UTC).isoformat()}\n".encode(), mode=0o644)


def _read_date(directory: Path) -> datetime | None:
    path = directory / files.DATE_FILE
    if not path.exists():
        return None
    text = files.read(path).decode(errors="replace").strip()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{path} holds {text!r}, which is no date such as 2027-01-31T00:00:00+00:00") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
