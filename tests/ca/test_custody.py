"""The CA of a service that runs: what it takes up from disk, and when it warns."""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtensionOID

from mitm_cache.ca import CA_LIFETIME, CertificateAuthority, rotation
from mitm_cache.ca.custody import Custody
from mitm_cache.errors import ConfigError
from mitm_cache.journal import Journal
from mitm_cache.proxy.intercept import Intercept

NOW = datetime.now(UTC).replace(microsecond=0)
PERMITTED = ("quay.io", "localhost")
DAY = timedelta(days=1)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def custody(tmp_path: Path, clock: Clock) -> Custody:
    return Custody.open(tmp_path / "ca", permitted=PERMITTED, clock=clock)


def test_rotation_without_a_restart(custody: Custody, tmp_path: Path) -> None:
    """The whole way of a rotation is followed: both are told of, then the new one signs."""
    directory = tmp_path / "ca"
    old = custody.signer(NOW)
    assert not custody.refresh()
    pair = rotation.begin(directory, permitted=PERMITTED, now=NOW)
    assert pair.following
    assert custody.refresh()
    assert custody.signer(NOW).fingerprint == old.fingerprint
    assert custody.export() == old.export() + pair.following.export()
    assert custody.export("der") == old.export("der")
    rotation.finish(directory, permitted=PERMITTED, now=NOW)
    assert custody.refresh()
    assert custody.fingerprint == pair.following.fingerprint
    assert list(custody.describe()) == ["signing"]


def test_abort_without_a_restart(custody: Custody, tmp_path: Path) -> None:
    """An undone rotation is followed too."""
    before = custody.export()
    rotation.begin(tmp_path / "ca", permitted=PERMITTED, now=NOW)
    assert custody.refresh()
    rotation.abort(tmp_path / "ca")
    assert custody.refresh()
    assert custody.export() == before


def test_date_without_a_restart(custody: Custody, tmp_path: Path, clock: Clock) -> None:
    """When the date has come the new CA signs, and a start finds it good."""
    pair = rotation.begin(tmp_path / "ca", permitted=PERMITTED, now=NOW, at=NOW + 10 * DAY)
    assert pair.following
    custody.refresh()
    clock.now = NOW + 10 * DAY
    assert custody.fingerprint == pair.following.fingerprint
    assert set(custody.describe()) == {"signing", "previous"}
    again = Custody.open(tmp_path / "ca", permitted=PERMITTED, clock=clock)
    assert again.fingerprint == pair.following.fingerprint


@pytest.mark.parametrize("permitted", [("quay.io",), ("ghcr.io",)], ids=["fewer", "others"])
def test_unusable_change(
    custody: Custody, tmp_path: Path, caplog: pytest.LogCaptureFixture, permitted: tuple[str, ...]
) -> None:
    """A CA that does not cover what is configured is not taken up: the old one signs, and the log says why."""
    before = custody.fingerprint
    CertificateAuthority.create(tmp_path / "ca", permitted=permitted, now=NOW, force=True)
    assert not custody.refresh()
    assert custody.fingerprint == before
    assert "is not taken up" in caplog.text
    assert "is outside what" in caplog.text


def test_change_that_cannot_be_read(custody: Custody, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A certificate with malformed extensions ends neither the look at the directory nor the service."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=odd")
    odd = x509.UnrecognizedExtension(ExtensionOID.NAME_CONSTRAINTS, b"no ASN.1")
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + DAY).add_extension(odd, critical=True)
    made, before = builder.sign(key, SHA256()), custody.fingerprint
    (tmp_path / "ca" / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "ca" / "ca.crt").write_bytes(made.public_bytes(Encoding.PEM))
    assert not custody.refresh()
    assert custody.fingerprint == before
    assert "ca.crt holds a certificate that cannot be read" in caplog.text


def test_exposed_change(custody: Custody, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key that others may read is not taken up while the service runs either."""
    new = CertificateAuthority.create(tmp_path / "ca", permitted=PERMITTED, now=NOW, force=True)
    new.key_path.chmod(0o644)
    assert not custody.refresh()
    assert "chmod 600" in caplog.text


def test_start_outside_the_constraints(custody: Custody, tmp_path: Path, clock: Clock) -> None:
    """A registry configured since then stops the start, with the ways to another CA; so does one outside the next."""
    with pytest.raises(ConfigError, match=r"'ghcr\.io' is outside .*mitm-cache ca rotate"):
        Custody.open(tmp_path / "ca", permitted=[*PERMITTED, "ghcr.io"], clock=clock)
    rotation.begin(tmp_path / "ca", permitted=["quay.io"], now=NOW, at=NOW + DAY)
    with pytest.raises(ConfigError, match=r"'localhost' is outside .*next\.crt"):
        Custody.open(tmp_path / "ca", permitted=PERMITTED, clock=clock)


@pytest.mark.parametrize(
    ("left", "level", "words"),
    [
        (31 * DAY, None, ""),
        (29 * DAY, logging.WARNING, "ends in 29 days"),
        (6 * DAY, logging.ERROR, "ends in 6 days"),
        (-DAY, logging.ERROR, "has ended"),
    ],
    ids=["31 days", "29 days", "6 days", "ended"],
)
def test_endings(custody: Custody, clock: Clock, left: timedelta, level: int | None, words: str) -> None:
    """A CA that ends is told of from 30 days on, as an error from 7 on, with the command that replaces it."""
    clock.now = NOW + CA_LIFETIME - left
    said = list(custody.endings())
    assert [each for each, _ in said] == ([level] if level else [])
    assert all(words in text and "'mitm-cache ca rotate'" in text for _, text in said)


def test_ending_during_a_rotation(custody: Custody, tmp_path: Path, clock: Clock) -> None:
    """Once the next CA is there, the command is the one that finishes."""
    late = NOW + CA_LIFETIME - 5 * DAY
    rotation.begin(tmp_path / "ca", permitted=PERMITTED, now=late)
    custody.refresh()
    clock.now = late
    [(level, words)] = custody.endings()
    assert level == logging.ERROR
    assert "rotate --finish" in words


def test_new_handshakes(custody: Custody, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Handshakes of a service that runs show the new CA's leaves once the rotation is finished, and not before."""
    intercept = Intercept(
        authority=custody, names=["quay.io"], journal=Journal(), listeners=lambda _: "tls", clock=clock
    )
    before = intercept.context("quay.io")
    rotation.begin(tmp_path / "ca", permitted=PERMITTED, now=NOW)
    custody.refresh()
    assert intercept.context("quay.io") is before
    finished = rotation.finish(tmp_path / "ca", permitted=PERMITTED, now=NOW)
    assert custody.refresh()
    assert intercept.context("quay.io") is not before
    assert f"the CA has changed on disk: leaves are signed by {finished.fingerprint}" in caplog.text


async def test_warns_every_day(custody: Custody, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The first warning is at the start, the next a day later, and none between them."""
    clock.now = NOW + CA_LIFETIME - 5 * DAY
    looked = asyncio.Semaphore(0)
    refresh = custody.refresh
    loop = asyncio.get_running_loop()

    def look() -> bool:
        loop.call_soon_threadsafe(looked.release)
        return refresh()

    custody.refresh = look  # type: ignore[method-assign]  # to know when it has looked
    attending = loop.create_task(custody.attend(0))

    async def looks(count: int) -> None:
        async with asyncio.timeout(10):
            for _ in range(count):
                await looked.acquire()

    await looks(5)
    assert caplog.text.count("ends in 5 days") == 1
    clock.now += DAY
    await looks(5)
    assert caplog.text.count("ends in 4 days") == 1
    attending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attending
