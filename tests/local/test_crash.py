"""`kill -9` in the middle of many pushes: what was accepted is there and whole, and nothing else stays."""

import http.client
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import open_layout
from mitm_cache.cache.owned import owned
from mitm_cache.local.collection import Collection
from mitm_cache.local.store import Store
from mitm_cache.oci.manifest import OCI_MANIFEST
from tests.fakes.registry import LyingUpstream
from tests.local.registry import CONFIG, digest_of, manifest
from tests.serving import Client, Process, process

LOCAL = '[local]\nnames = ["localhost"]\nmax_size = "1G"\n'
CLIENTS = 50
ROUNDS = 3
ENOUGH = 30
"""Images that are accepted before the kill of each round."""
HOUR = 3600.0


class Pushes:
    """Clients that push one image after the other until they are cut off."""

    def __init__(self) -> None:
        self._numbers = count()
        self._changed = threading.Condition()
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.images: dict[tuple[str, str], bytes] = {}

    def wait(self, images: int) -> None:
        """Block until there are so many images that were accepted."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.images) >= images, 120), len(self.images)

    def push_until_cut(self, served: Process) -> None:
        """One client's work."""
        with served.client("mirror", name="localhost") as client:
            try:
                while True:
                    self._push(client, f"team/app{next(self._numbers) % 7}", next(self._numbers))
            except (OSError, http.client.HTTPException):
                return

    def _push(self, client: Client, name: str, number: int) -> None:
        layer = random.Random(number).randbytes(20_000 + number % 5 * 40_000)
        for content in (CONFIG, layer):
            opened = client.ask("POST", f"/v2/{name}/blobs/uploads/", {"Content-Length": "0"})
            assert opened.status == 202, opened
            half = len(content) // 2
            patched = client.ask("PATCH", opened.headers["Location"], body=content[:half])
            assert patched.status == 202, patched
            place = f"{patched.headers['Location']}?digest={digest_of(content)}"
            assert client.ask("PUT", place, body=content[half:]).status == 201
            with self._changed:
                self.blobs[name, digest_of(content)] = content
        body = manifest(layer)
        put = client.ask("PUT", f"/v2/{name}/manifests/{number}", {"Content-Type": OCI_MANIFEST}, body)
        assert put.status == 201, put
        with self._changed:
            self.images[name, str(number)] = body
            self._changed.notify_all()


def test_killed(tmp_path: Path) -> None:
    """Of three kills, each beside fifty clients, none loses an accepted blob or image or leaves anything behind."""
    data, pushes = tmp_path / "data", Pushes()
    with LyingUpstream(tmp_path) as upstream:
        for round_ in range(ROUNDS):
            with process(data, upstream, more=LOCAL) as served, ThreadPoolExecutor(CLIENTS) as pool:
                clients = [pool.submit(pushes.push_until_cut, served) for _ in range(CLIENTS)]
                pushes.wait(ENOUGH * (round_ + 1))
                served.kill()
                for each in clients:
                    each.result()
        with process(data, upstream, more=LOCAL) as served, served.client("mirror", name="localhost") as client:
            for (name, digest), content in pushes.blobs.items():
                assert client.get(f"/v2/{name}/blobs/{digest}").body == content
            for (name, tag), body in pushes.images.items():
                assert client.get(f"/v2/{name}/manifests/{tag}").body == body
    layout = open_layout(data)
    blobs = Blobs(layout.blobs)
    store = Store(layout, blobs)
    # A blob that was accepted may still get its manifest: it stays for an hour.
    Collection(store).collect()
    for _, digest in pushes.blobs:
        assert digest in {str(each) for each in owned(layout)}
    Collection(store, clock=lambda: time.time() + 25 * HOUR).collect()
    kept = {str(digest): blobs.path(digest).read_bytes() for digest, _ in blobs.scan()}
    assert all(digest_of(content) == digest for digest, content in kept.items())
    # An image may have been kept whose client was not told: it is whole too. Everything else is part of an image.
    images = {digest: body for digest, body in kept.items() if body.startswith(b'{"schemaVersion"')}
    assert {digest_of(body) for body in pushes.images.values()} <= images.keys()
    needed = {part["digest"] for body in images.values() for part in _parts(body)}
    assert needed | images.keys() == kept.keys() == {str(digest) for digest in owned(layout)}
    assert list(layout.uploads.iterdir()) == []


def _parts(body: bytes) -> list[dict[str, str]]:
    document = json.loads(body)
    return [document["config"], *document["layers"]]
