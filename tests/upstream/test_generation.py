"""One generation of a part file, as a process sees it whose own thread writes it."""

import asyncio
import os
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head
from mitm_cache.cache.spool import Spool, Writing
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.upstream.generation import Flight

CONTENT = b'{"schemaVersion": 2}'
HEAD = Head(len(CONTENT), "application/vnd.oci.image.index.v1+json")


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
