"""An air-gapped cache serves what was imported, and nothing there is a registry: offline, or with nobody to ask."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, generate
from mitm_cache.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.exchange.making import contents, done, layout, referrer, write_folder
from tests.fakes.registry import LyingUpstream
from tests.serving import Threaded, in_thread

IMAGE = generate(sizes=[3 * KIB, 40 * KIB], seed="serving")
PULLED = generate(sizes=[5 * KIB], platforms=["linux/amd64"], seed="pulled")
NEWER = generate(sizes=[7 * KIB], platforms=["linux/amd64"], seed="newer")
ACCEPTS = {
    "containerd": f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*",
    "docker": f"{OCI_INDEX}, {DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}",
    "any": "*/*",
}
SIGNATURE, FILES = referrer(IMAGE.index.digest, len(IMAGE.index.body))
OFFLINE = "[cache]\noffline = true\n"


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    (tmp_path / "upstream").mkdir()
    with LyingUpstream(tmp_path / "upstream") as upstream:
        yield upstream


@pytest.fixture
def data(tmp_path: Path, upstream: LyingUpstream) -> Path:
    """An image with a signature, imported for the upstream's name."""
    name = f"{upstream.registry.name}/team/app:1"
    made = layout({name: IMAGE}, referring=(SIGNATURE,)) | FILES
    done(tmp_path / "data", "import", write_folder(tmp_path / "in", made))
    return tmp_path / "data"


@pytest.fixture(params=["offline", "away"])
def cache(request: pytest.FixtureRequest, data: Path, upstream: LyingUpstream) -> Iterator[Threaded]:
    """Without upstream: by configuration, or because nobody is there."""
    offline = request.param == "offline"
    if not offline:
        upstream.__exit__(None, None, None)
    with in_thread(data, upstream, more=OFFLINE if offline else "") as cache:
        yield cache
    if offline:
        assert list(upstream.requests) == []


@pytest.mark.parametrize("accept", ACCEPTS.values(), ids=ACCEPTS)
def test_every_client_finds_it(cache: Threaded, accept: str) -> None:
    """A tag that was imported is there for every Accept that takes it, by HEAD and GET, with all that belongs to it."""
    with cache.client() as client:
        assert client.get("/v2/").status == 200
        head = client.head("/v2/team/app/manifests/1", {"Accept": accept})
        assert (head.status, head.headers["Docker-Content-Digest"]) == (200, IMAGE.index.digest)
        reply = client.get("/v2/team/app/manifests/1", {"Accept": accept})
        assert (reply.status, reply.body, reply.headers["Content-Type"]) == (200, IMAGE.index.body, OCI_INDEX)
        for digest, content in contents(IMAGE).items():
            kind = "blobs" if digest in IMAGE.blobs else "manifests"
            assert client.head(f"/v2/team/app/{kind}/{digest}", {"Accept": accept}).outcome == "HIT"
            assert client.get(f"/v2/team/app/{kind}/{digest}", {"Accept": accept}).body == content


def test_a_client_that_does_not_take_it(cache: Threaded) -> None:
    """Nobody is given a manifest of a type that it does not know."""
    with cache.client() as client:
        reply = client.get("/v2/team/app/manifests/1", {"Accept": DOCKER_MANIFEST})
        assert reply.status in (404, 502, 503)
        assert IMAGE.index.body != reply.body


@pytest.mark.parametrize("listener", ["tls", "mirror"])
def test_lists(cache: Threaded, listener: str) -> None:
    """Tags, catalog and referrers are made of what is here where no list of upstream's is kept."""
    space = f"?ns={cache.registry}" if listener == "mirror" else ""
    with cache.client(listener) as client:
        tags = client.get(f"/v2/team/app/tags/list{space}")
        assert (tags.status, json.loads(tags.body)["tags"]) == (200, ["1"])
        catalog = client.get(f"/v2/_catalog{space}")
        assert (catalog.status, json.loads(catalog.body)["repositories"]) == (200, ["team/app"])
        referrers = client.get(f"/v2/team/app/referrers/{IMAGE.index.digest}{space}")
        (found,) = json.loads(referrers.body)["manifests"]
        assert found["digest"] == f"sha256:{hashlib.sha256(SIGNATURE).hexdigest()}"
        assert found["artifactType"] == "application/vnd.example.signature"
        assert client.get(f"/v2/team/app/manifests/{found['digest']}{space}").body == SIGNATURE
        child = IMAGE.platforms["linux/amd64"].digest
        assert json.loads(client.get(f"/v2/team/app/referrers/{child}{space}").body)["manifests"] == []


def test_pages_of_tags(cache: Threaded) -> None:
    """A client that asks for pages gets them."""
    with cache.client() as client:
        assert json.loads(client.get("/v2/team/app/tags/list?n=10").body)["tags"] == ["1"]
        assert json.loads(client.get("/v2/team/app/tags/list?last=1").body)["tags"] == []


def test_what_is_not_here(cache: Threaded) -> None:
    """It says so; nothing is known of a repository that nobody has brought."""
    with cache.client() as client:
        assert client.get("/v2/team/none/manifests/1").status >= 400
        assert client.get("/v2/team/none/tags/list").status >= 400
        assert client.get(f"/v2/team/none/blobs/{next(iter(IMAGE.blobs))}").status >= 400


def test_an_import_beside_the_service(tmp_path: Path, data: Path, upstream: LyingUpstream) -> None:
    """What is imported while it serves is served from then on, in the place of what a pull has brought before."""
    upstream.registry.put("team/app", PULLED, "2")
    name = f"{upstream.registry.name}/team/app:2"
    with in_thread(data, upstream) as cache, cache.client() as client:
        for accept in ACCEPTS.values():
            assert client.get("/v2/team/app/manifests/2", {"Accept": accept}).body == PULLED.index.body
    with in_thread(data, upstream, more=OFFLINE) as cache, cache.client() as client:
        done(data, "import", write_folder(tmp_path / "newer", layout({name: NEWER})))
        for accept in ACCEPTS.values():
            assert client.get("/v2/team/app/manifests/2", {"Accept": accept}).body == NEWER.index.body
        assert json.loads(client.get("/v2/team/app/tags/list").body)["tags"] == ["1", "2"]


def test_policy_has_the_last_word(data: Path, upstream: LyingUpstream) -> None:
    """Imported content is for whom the policy lets have it: a row that denies hides it from lists too."""
    more = f'{OFFLINE}[[policy]]\nrepository = "team/*"\naction = "deny"\n'
    with in_thread(data, upstream, more=more) as cache, cache.client() as client:
        assert client.get("/v2/team/app/manifests/1").status == 403
        assert client.get("/v2/team/app/tags/list").status == 403
        assert b"team/app" not in client.get("/v2/_catalog").body
