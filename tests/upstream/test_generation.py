"""One generation of a part file, as a process sees it whose own thread writes it."""

import asyncio
import os
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head, Link
from mitm_cache.cache.spool import Part, Spool, Writing
from mitm_cache.errors import StoreError, UpstreamError
from mitm_cache.oci.digest import Digest
from mitm_cache.upstream.bypass import Bypass
from mitm_cache.upstream.curl import Answer, Sink
from mitm_cache.upstream.fetching import Refused, Supply
from mitm_cache.upstream.generation import Flight, Passenger
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redirect import Origin

CONTENT = b'{"schemaVersion": 2}'
HEAD = Head(len(CONTENT), "application/vnd.oci.image.index.v1+json")


def fetch(start: int, sink: Sink) -> Answer:
    raise AssertionError("nobody fetches")


def landed(link: Link) -> None:
    raise AssertionError("nothing lands")


def divert(part: Part, head: Head, supply: Supply, error: StoreError, position: int) -> Bypass:
    raise AssertionError("nobody is diverted")


async def test_the_type_outlives_the_note(tmp_path: Path) -> None:
    """A small manifest is there, and the writer's note gone, before the loop looks: what joins is told its type."""
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = Spool(folder, Blobs(tmp_path / "blobs"))
    role = spool.join(Digest.of(CONTENT))
    assert isinstance(role, Writing)
    flight = Flight(role.part.reopen(), spool, asyncio.get_running_loop())

    def write() -> None:
        spool.write_note(role.part, HEAD)
        flight.announce(HEAD)
        spool.append(role.part, CONTENT)
        spool.seal(role.part)
        role.part.close()
        flight.announce(None)

    write()  # without a turn of the loop
    await flight.changed()
    assert flight.ended
    assert flight.head == HEAD
    flight.close()


async def test_a_note_that_cannot_be_read(tmp_path: Path) -> None:
    """Where the disk fails at the first look, no descriptor is left behind."""
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = Spool(folder, Blobs(tmp_path / "blobs"))
    role = spool.join(Digest.of(CONTENT))
    assert isinstance(role, Writing)
    spool.write_note(role.part, HEAD)
    [note] = folder.glob("*.json")
    note.unlink()
    note.mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StoreError, match="cannot be read"):
        Flight(role.part.reopen(), spool, asyncio.get_running_loop())
    assert os.listdir("/proc/self/fd") == before
    role.part.close()


async def test_who_was_refused_does_not_wait(tmp_path: Path) -> None:
    """The disk takes no more, and this client may ask for nothing itself: it is cut, however long others ride on."""
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = Spool(folder, Blobs(tmp_path / "blobs"))
    role = spool.join(Digest.of(CONTENT))
    assert isinstance(role, Writing)
    flight = Flight(role.part.reopen(), spool, asyncio.get_running_loop())
    refused, other = Supply(fetch, landed, "quay.io"), Supply(fetch, landed, "ghcr.io")
    for supply in (refused, other):
        flight.enter(supply)
    passenger = Passenger(flight, role.part, refused, HEAD, divert)
    flight.supplies.remove(refused)
    flight.refusals[refused] = Refused(Answer(401, Headers(), Origin.of("https://quay.io")))
    flight.failure = StoreError("the disk takes no more")
    async with asyncio.timeout(20):
        with pytest.raises(UpstreamError, match="cannot be carried on"):
            await passenger.readable(0, len(CONTENT))
    passenger.close()
    flight.close()
