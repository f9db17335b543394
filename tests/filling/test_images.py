"""Images as people and registries make them: circles of referrers, variants of platforms, odd layers."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from mitm_cache.demo.content import Memory
from mitm_cache.demo.image import CONFIG, INDEX, KIB, LAYER, MANIFEST, Image, Manifest, assemble, generate, layer
from mitm_cache.demo.message import Answer, Incoming, Proceed, text
from tests.fakes.faults import body, schema_1
from tests.fakes.registry import LyingUpstream
from tests.filling.test_run import HOST, NAME, Cache

IMAGE = generate(sizes=[40 * KIB], platforms=["linux/amd64"], seed="as they are")
PULL_SECONDS = 60


@pytest.fixture(scope="session")
def image() -> Image:
    return IMAGE


def beside(cache: Cache, *arguments: str) -> dict[str, Any]:
    """The report of a process that has to end by itself."""
    command = [sys.executable, "-m", "mitm_cache", "--config", str(cache.file), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, timeout=PULL_SECONDS, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def put(upstream: LyingUpstream, manifest: Manifest, *tags: str) -> None:
    here = upstream.registry.repositories[NAME]
    here.manifests[manifest.digest] = manifest
    here.tags |= dict.fromkeys(tags, manifest.digest)


def made(media_type: str, **document: object) -> Manifest:
    return Manifest(media_type, json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}).encode())


def test_a_tag_that_is_its_own_digest(cache: Cache, upstream: LyingUpstream) -> None:
    """A tag such as sha256-… on the image that it names, which keeps registries from collecting it, ends."""
    put(upstream, IMAGE.index, IMAGE.index.digest.replace(":", "-"))
    report = beside(cache, "pull", f"{HOST}/{NAME}:1")
    assert [image["image"] for image in report["images"]] == [f"{HOST}/{NAME}:1"]


def test_referrers_in_a_circle(cache: Cache, upstream: LyingUpstream) -> None:
    """A registry that lists the same referrer for everything, itself included, is asked to an end."""
    other = generate(sizes=[KIB], platforms=["linux/amd64"], seed="about")
    upstream.registry.put(NAME, other)
    for image in (IMAGE, other):
        put(upstream, image.index)
    listed = made(INDEX, manifests=[other.index.descriptor(), IMAGE.index.descriptor()])
    upstream.lie(f"/v2/{NAME}/referrers/*", body(listed.body, INDEX))
    beside(cache, "pull", f"{HOST}/{NAME}:1")
    assert {*other.manifests, *other.blobs} <= cache.blobs()


def test_every_page_of_referrers(cache: Cache, upstream: LyingUpstream) -> None:
    """A list that goes on by a Link header is followed to its end."""
    signatures = [generate(sizes=[KIB], platforms=["linux/amd64"], seed=f"page {number}") for number in range(3)]
    for each in signatures:
        upstream.registry.put(NAME, each)

    def paged(incoming: Incoming, proceed: Proceed) -> Answer:
        number = int(incoming.query.get("page", "0"))
        page = made(INDEX, manifests=[signatures[number].index.descriptor()])
        more = {"Link": f'<{incoming.path}?page={number + 1}>; rel="next"'} if number + 1 < len(signatures) else {}
        return text(200, page.body, INDEX, more)

    upstream.lie(f"/v2/{NAME}/referrers/{IMAGE.index.digest}", paged)
    upstream.lie(f"/v2/{NAME}/referrers/*", body(made(INDEX, manifests=[]).body, INDEX))
    cache.report("pull", f"{HOST}/{NAME}:1")
    for each in signatures:
        assert {*each.manifests, *each.blobs} <= cache.blobs()


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/arm/v7", "linux/arm/v7"),
    ],
)
def test_variants(cache: Cache, upstream: LyingUpstream, wanted: str, there: str) -> None:
    """A platform's first variant is the platform itself, however it is written."""
    image = generate(sizes=[KIB], platforms=[there, "linux/s390x"], seed="variants")
    upstream.registry.put(NAME, image, "2")
    cache.report("pull", "--platform", wanted, f"{HOST}/{NAME}:2")
    assert image.platforms[there].digest in cache.blobs()
    assert image.platforms["linux/s390x"].digest not in cache.blobs()


def test_an_index_in_an_index(cache: Cache, upstream: LyingUpstream) -> None:
    """Of indexes without a platform of their own those count that have a platform which is wanted."""
    arm = generate(sizes=[KIB], platforms=["linux/arm64"], seed="nested")
    upstream.registry.put(NAME, arm)
    put(upstream, made(INDEX, manifests=[IMAGE.index.descriptor(), arm.index.descriptor()]), "nested")
    cache.report("pull", "--platform", "linux/arm64", f"{HOST}/{NAME}:nested")
    assert {*arm.manifests, *arm.blobs} <= cache.blobs()
    assert not IMAGE.blobs.keys() & cache.blobs()
    result = cache.run("pull", "--platform", "linux/s390x", f"{HOST}/{NAME}:nested")
    assert result.exit_code == 1
    assert "no manifest for linux/s390x" in result.stdout
    cache.report("pull", f"{HOST}/{NAME}:nested")
    assert IMAGE.blobs.keys() <= cache.blobs()


def test_odd_layers(cache: Cache, upstream: LyingUpstream) -> None:
    """An empty layer comes, none at all is no error, and one that no registry has is not asked for."""
    here = upstream.registry.repositories[NAME]
    config, empty = Memory(b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}'), Memory(b"")
    for content in (config, empty):
        here.blobs[content.digest] = content
    described = {"mediaType": CONFIG, "digest": config.digest, "size": config.size}
    foreign = {
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": f"sha256:{'7' * 64}",
        "size": 9,
        "urls": ["https://elsewhere.example/layer"],
    }
    layers = [{"mediaType": LAYER, "digest": empty.digest, "size": 0}, foreign]
    put(upstream, made(MANIFEST, config=described, layers=layers), "odd")
    put(upstream, made(MANIFEST, config=described, layers=[]), "none")
    cache.report("pull", f"{HOST}/{NAME}:odd", f"{HOST}/{NAME}:none")
    assert {config.digest, empty.digest} <= cache.blobs()
    assert upstream.requests.count(path=f"/v2/{NAME}/blobs/{foreign['digest']}") == 0
    listed = json.loads(cache.run("ls", "--json").stdout)["images"]
    assert [(image["tag"], image["complete"]) for image in listed] == [("none", True), ("odd", True)]
    assert listed[1]["platforms"] == [{"platform": "linux/amd64", "blobs": 2, "blobs_cached": 2, "complete": True}]


def test_schema_1(cache: Cache, upstream: LyingUpstream) -> None:
    """The oldest manifests are refused in words, by tag and beside others."""
    upstream.lie(f"/v2/{NAME}/manifests/1", schema_1())
    result = cache.run("pull", f"{HOST}/{NAME}:1")
    assert result.exit_code == 1
    assert "is a manifest of schema 1" in result.stdout


def test_two_images_that_share_all(cache: Cache, upstream: LyingUpstream) -> None:
    """Both are told, and what they share is counted once."""
    upstream.registry.put(NAME, IMAGE, "2")
    report = cache.report("pull", f"{HOST}/{NAME}:1", f"{HOST}/{NAME}:2")
    assert [image["state"] for image in report["images"]] == ["new", "new"]
    assert report["bytes"]["fetched"] == sum(image["bytes"] for image in report["images"])


def test_ctrl_c(cache: Cache, upstream: LyingUpstream) -> None:
    """A run that is interrupted while it waits for bytes ends at once, says so, and goes on later."""
    big = assemble({"linux/amd64": [layer("interrupted", 500 * KIB)]})
    upstream.registry.put(NAME, big, "big")
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(100 * KIB))
    command = [sys.executable, "-m", "mitm_cache", "--config", str(cache.file), "pull", f"{HOST}/{NAME}:big"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        upstream.requests.wait(2, kind="object")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"")
    assert err == b"Interrupted; the same command goes on from here.\n"
    gate.release()
    cache.report("pull", f"{HOST}/{NAME}:big")
    assert big.blobs.keys() <= cache.blobs()
