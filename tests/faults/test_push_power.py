"""The power fails while clients push: what was answered is there in the next start, and right."""

import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, MIB
from mitm_cache.oci.manifest import OCI_MANIFEST
from tests.fakes.registry import LyingUpstream
from tests.faults.conftest import Show
from tests.faults.disk import OnDisk, backed, kept, on_disk
from tests.faults.pulls import Verdict, judge
from tests.faults.pushes import NAME, OCTETS, SECTION
from tests.faults.test_pushes import SEED, Storm, check, place_of
from tests.lab.process import wait_until
from tests.local.registry import digest_of, manifest
from tests.needs import needs_root, needs_tool
from tests.serving import Client

pytestmark = [
    pytest.mark.faults,
    needs_root(),
    needs_tool("unshare", package="util-linux"),
    needs_tool("mkfs.ext4", package="e2fsprogs"),
]
CUTS = 5
LAYER, CONFIG = bytes(range(256)) * KIB, b"{}"
OLD, NEW = manifest(LAYER, config=CONFIG), manifest(LAYER, LAYER, config=CONFIG)
APP, OTHER = "/v2/team/app", "/v2/another/one"


def client_of(served: OnDisk) -> Client:
    return Client(served.address("tls"), NAME, ssl.create_default_context(cafile=served.ca_file), 60)


def push(client: Client, content: bytes) -> int:
    return client.ask("POST", f"{APP}/blobs/uploads/?digest={digest_of(content)}", OCTETS, content).status


def push_pieces(client: Client, content: bytes) -> int:
    place = str(client.ask("POST", f"{APP}/blobs/uploads/", {}, b"").headers["Location"])
    half = len(content) // 2
    for part in (content[:half], content[half:]):
        assert client.ask("PATCH", place, OCTETS, part).status == 202
    return client.ask("PUT", f"{place}?digest={digest_of(content)}", OCTETS, b"").status


def mount(client: Client) -> int:
    return client.ask("POST", f"{OTHER}/blobs/uploads/?mount={digest_of(LAYER)}&from=team/app", {}, b"").status


def give(client: Client, content: bytes, reference: str) -> int:
    return client.ask("PUT", f"{APP}/manifests/{reference}", {"Content-Type": OCI_MANIFEST}, content).status


def delete(client: Client, path: str) -> int:
    return client.ask("DELETE", path).status


def there(content: bytes, *paths: str) -> Callable[[Client], bool]:
    return lambda client: all((reply := client.get(path)).status == 200 and reply.body == content for path in paths)


def gone(*paths: str) -> Callable[[Client], bool]:
    return lambda client: all(client.get(path).status == 404 for path in paths)


BLOB = f"{APP}/blobs/{digest_of(LAYER)}"
STEPS: list[tuple[str, Callable[[Client], int], int, Callable[[Client], bool]]] = [
    ("a blob in pieces", lambda client: push_pieces(client, LAYER), 201, there(LAYER, BLOB)),
    ("a blob at once", lambda client: push(client, CONFIG), 201, there(CONFIG, f"{APP}/blobs/{digest_of(CONFIG)}")),
    ("a mount", mount, 201, there(LAYER, f"{OTHER}/blobs/{digest_of(LAYER)}")),
    (
        "a manifest",
        lambda client: give(client, OLD, digest_of(OLD)),
        201,
        there(OLD, f"{APP}/manifests/{digest_of(OLD)}"),
    ),
    ("a tag", lambda client: give(client, OLD, "1"), 201, there(OLD, f"{APP}/manifests/1")),
    ("a tag that moves", lambda client: give(client, NEW, "1"), 201, there(NEW, f"{APP}/manifests/1")),
    ("a tag that goes", lambda client: delete(client, f"{APP}/manifests/1"), 202, gone(f"{APP}/manifests/1")),
    (
        "a manifest that goes",
        lambda client: delete(client, f"{APP}/manifests/{digest_of(NEW)}"),
        202,
        gone(f"{APP}/manifests/{digest_of(NEW)}"),
    ),
    ("a blob that goes", lambda client: delete(client, BLOB), 202, gone(BLOB)),
]


def test_the_power_fails_after_each_answer(tmp_path: Path) -> None:
    """One client and nobody else, so that no later write takes an earlier one along to the disk."""
    (tmp_path / "first").mkdir()
    with LyingUpstream(tmp_path) as upstream:
        disk = backed(100 * MIB, journal=True)
        with on_disk(tmp_path / "first", upstream, disk=disk, more=SECTION) as served, client_of(served) as client:
            for name, step, status, _ in STEPS:
                assert step(client) == status, name
                served.cut_power(tmp_path / f"{name}.img")
        lost = []
        for number, (name, _, _, holds) in enumerate(STEPS):
            folder, image = tmp_path / f"again-{number}", tmp_path / f"{name}.img"
            folder.mkdir()
            with on_disk(folder, upstream, disk=kept(image), more=SECTION) as served, client_of(served) as client:
                lost += [] if holds(client) else [name]
                served.check(folder / "config.toml")
            image.unlink()
        assert lost == []


def test_power_cuts(tmp_path: Path, show: Show) -> None:
    """Whatever had been answered 201 before a cut is there in the next start, blobs and images, and right."""
    first = tmp_path / "first"
    first.mkdir()
    cuts = []
    with LyingUpstream(tmp_path) as upstream:
        with on_disk(first, upstream, disk=backed(240 * MIB, journal=True), more=SECTION) as served:
            context = ssl.create_default_context(cafile=served.ca_file)
            storm = Storm(lambda _: Client(served.address("tls"), NAME, context, 60))
            with ThreadPoolExecutor(4) as pool:
                pushing = [pool.submit(storm.keep_pushing, storm.dice.random()) for _ in range(4)]
                try:
                    for number in range(CUTS):
                        known = len(storm.account.images)
                        wait_until(lambda: len(storm.account.images) > known, "an image")  # noqa: B023 - waited for
                        threading.Event().wait(storm.dice.uniform(0.0, 0.5))
                        promised, image = storm.account.promised(), tmp_path / f"cut-{number}.img"
                        served.cut_power(image)
                        cuts.append((image, *promised))
                finally:
                    storm.ended.set()
                for each in pushing:
                    each.result()
        assert storm.account.wrong == []
        for number, (image, images, blobs) in enumerate(cuts):
            folder = tmp_path / f"again-{number}"
            folder.mkdir()
            with on_disk(folder, upstream, disk=kept(image), more=SECTION) as served:
                served.check(folder / "config.toml")
                check(place_of(served), images)
                with place_of(served).connect() as client:
                    for repository, digest, size in blobs:
                        seen = judge(client, "GET", f"/v2/{repository}/blobs/{digest}", digest, size)
                        assert seen.verdict is Verdict.RIGHT, (digest, seen)
                served.check(folder / "config.toml")
            image.unlink()
    show(
        f"\nseed {SEED}: after {CUTS} cuts all of {[(len(images), len(blobs)) for _, images, blobs in cuts]} are there"
    )
