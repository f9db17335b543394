"""Uploads that outlive who takes them: clients that leave, workers and services that are killed, and other workers."""

import json
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mitm_cache.demo.image import KIB, MIB
from mitm_cache.oci.manifest import OCI_MANIFEST
from tests.fakes.registry import LyingUpstream
from tests.faults.pushes import NAME, OCTETS, SECTION
from tests.faults.test_kills import Service, service
from tests.lab.process import wait_until
from tests.local.registry import CONFIG, digest_of, manifest
from tests.serving import Client, Reply
from tests.test_workers import client_of_each, worker_of

REPOSITORY = "/v2/team/app"
CONTENT = random.Random("a layer").randbytes(6 * MIB)
DIGEST = digest_of(CONTENT)
PIECE = 700 * KIB


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers with a local registry, for all tests here: what they kill is started again."""
    folder = tmp_path_factory.mktemp("processes")
    with LyingUpstream(folder) as upstream, service(folder / "data", upstream, 2, SECTION) as it:
        yield it


def begin(client: Client) -> str:
    """The place of a new upload."""
    return str(client.ask("POST", f"{REPOSITORY}/blobs/uploads/", {}, b"").headers["Location"])


def patch(client: Client, place: str, start: int, stop: int) -> Reply:
    headers = {**OCTETS, "Content-Range": f"{start}-{stop - 1}"}
    return client.ask("PATCH", place, headers, CONTENT[start:stop])


def put(client: Client, place: str, digest: str, body: bytes = b"") -> Reply:
    return client.ask("PUT", f"{place}?digest={digest}", OCTETS, body)


def offset(client: Client, place: str) -> int:
    """How much of an upload there is."""
    reply = client.get(place)
    assert reply.status == 204
    return int(str(reply.headers["Range"]).partition("-")[2]) + 1


def test_chunks_over_two_workers(running: Service) -> None:
    """Each chunk goes to another worker than the one before it; so does the end, and then each has the blob."""
    with client_of_each(running.served, NAME) as clients:
        place = begin(clients[0])
        for turn, start in enumerate(range(0, len(CONTENT), PIECE)):
            stop = min(start + PIECE, len(CONTENT))
            told = patch(clients[turn % 2], place, start, stop)
            assert (told.status, told.headers["Range"]) == (202, f"0-{stop - 1}")
            assert offset(clients[(turn + 1) % 2], place) == stop
        assert put(clients[0], place, DIGEST).status == 201
        for client in clients:
            assert client.get(f"{REPOSITORY}/blobs/{DIGEST}").body == CONTENT
            assert client.get(place).status == 404


def test_an_upload_has_one_writer(running: Service) -> None:
    """While one worker takes a chunk the other refuses another for the same upload, and what is there stays right."""
    with client_of_each(running.served, NAME) as (one, other):
        place = begin(one)
        half = len(CONTENT) // 2
        send_a_part(one, place, 0, half)
        wait_for(running, place, half)
        assert patch(other, place, half, half + PIECE).status in (409, 416)
        one.sock.sendall(CONTENT[half:])
        assert one.getresponse().read() == b""
        assert put(other, place, DIGEST).status == 201
        assert other.get(f"{REPOSITORY}/blobs/{DIGEST}").body == CONTENT


def send_a_part(client: Client, place: str, start: int, stop: int) -> None:
    """A PATCH that is to have all of the content from `start` on, and its bytes up to `stop`."""
    client.putrequest("PATCH", place, skip_host=True)
    for name, value in {"Host": NAME, **OCTETS, "Content-Length": str(len(CONTENT) - start)}.items():
        client.putheader(name, value)
    client.endheaders()
    client.sock.sendall(CONTENT[start:stop])


def wait_for(running: Service, place: str, size: int) -> None:
    """Until so much of an upload is in its file, but for what the way there may hold back."""
    path = running.served.data / "uploads" / place.rpartition("/")[2]
    wait_until(lambda: path.stat().st_size >= size - 64 * KIB, f"{size} bytes of an upload")


@pytest.mark.parametrize("victim", ["client", "worker", "service"])
def test_a_chunk_is_broken_off(running: Service, victim: str) -> None:
    """In the middle of a PATCH: the upload tells how much there is, the rest of it follows, and the bytes are right."""
    half = len(CONTENT) // 2
    with running.served.client(name=NAME) as client:
        place = begin(client)
        assert patch(client, place, 0, PIECE).status == 202
        send_a_part(client, place, PIECE, half)
        wait_for(running, place, half)
        if victim == "worker":
            os.kill(worker_of(client, running.served), signal.SIGKILL)
        elif victim == "service":
            running.restart(None)
    with running.served.client(name=NAME) as client:
        far = patch(client, place, half + PIECE, half + 2 * PIECE)  # waits for who may still be at work on it
        there = offset(client, place)
        assert half - 64 * KIB <= there <= half
        for wrong in (far, patch(client, place, there + 1, there + PIECE)):
            assert (wrong.status, wrong.headers["Range"]) == (416, f"0-{there - 1}")
        assert patch(client, place, there, there + PIECE).status == 202
        done = put(client, place, DIGEST, CONTENT[there + PIECE :])
        assert (done.status, done.headers["Docker-Content-Digest"]) == (201, DIGEST)
        assert client.get(f"{REPOSITORY}/blobs/{DIGEST}").body == CONTENT
    assert list((running.served.data / "uploads").iterdir()) == []


def test_a_tag_moves_for_all_workers_at_once(running: Service) -> None:
    """What one worker is given by a tag the other serves by it, in its very next answer."""
    with client_of_each(running.served, NAME) as clients:
        assert push(clients[0], CONFIG)
        for turn in range(20):
            layer = str(turn).encode()
            assert push(clients[turn % 2], layer)
            document = manifest(layer)
            giver, asker = clients[turn % 2], clients[(turn + 1) % 2]
            given = giver.ask("PUT", f"{REPOSITORY}/manifests/latest", {"Content-Type": OCI_MANIFEST}, document)
            assert given.status == 201
            assert asker.get(f"{REPOSITORY}/manifests/latest").body == document
            assert giver.head(f"{REPOSITORY}/manifests/latest").headers["Docker-Content-Digest"] == digest_of(document)
            assert tags(asker) == ["latest"]
        assert clients[1].ask("DELETE", f"{REPOSITORY}/manifests/latest").status == 202
        assert clients[0].get(f"{REPOSITORY}/manifests/latest").status == 404


def push(client: Client, content: bytes) -> bool:
    """A blob in one request."""
    return client.ask("POST", f"{REPOSITORY}/blobs/uploads/?digest={digest_of(content)}", OCTETS, content).status == 201


def tags(client: Client) -> Any:
    return json.loads(client.get(f"{REPOSITORY}/tags/list").body)["tags"]
