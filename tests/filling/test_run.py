"""`mitm-cache pull` and `sync` beside registries that count what they are asked."""

import json
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitm_cache.cli import main
from mitm_cache.demo.access import Access
from mitm_cache.demo.image import INDEX, KIB, Image, assemble, generate, layer
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.serving import in_thread, process

NAME = "team/app"
HOST = "registry.demo"
IMAGE = generate(sizes=[100 * KIB, 200 * KIB], seed="filling")


@pytest.fixture(scope="session")
def image() -> Image:
    return IMAGE


class Cache:
    """A data directory, its configuration, and the command line."""

    def __init__(self, folder: Path, upstream: LyingUpstream) -> None:
        self.data = folder / "data"
        self.file = folder / "config.toml"
        self.file.write_text(upstream.configuration(self.data))

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(main, ["--config", str(self.file), *map(str, arguments)])

    def report(self, *arguments: object) -> dict[str, Any]:
        """The report of a run in which nothing failed."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        report: dict[str, Any] = json.loads(result.stdout)
        return report

    def blobs(self) -> set[str]:
        return {f"{path.parent.parent.name}:{path.name}" for path in (self.data / "blobs").glob("*/*/*")}


def everything() -> set[str]:
    return {*IMAGE.manifests, *IMAGE.blobs}


def test_pull(cache: Cache, upstream: LyingUpstream) -> None:
    """All of an image comes, once; a second run asks for the tag alone."""
    report = cache.report("pull", f"{HOST}/{NAME}:1")
    assert cache.blobs() == everything()
    [image] = report["images"]
    assert image | {"bytes": 0} == {
        "image": f"{HOST}/{NAME}:1", "digest": IMAGE.index.digest, "state": "new", "bytes": 0,
    }  # fmt: skip
    assert report["contents"] == {"fetched": len(everything()), "missing": 0, "already_here": 0}
    assert report["bytes"]["fetched"] == image["bytes"] > IMAGE.size
    upstream.requests.clear()
    again = cache.report("pull", f"{HOST}/{NAME}:1")
    assert again["images"][0]["state"] == "unchanged"
    assert again["contents"] == {"fetched": 0, "missing": 0, "already_here": len(everything())}
    assert upstream.requests.count(method="GET", kind="object") == upstream.requests.count(kind="manifest") == 0


def links(cache: Cache, kind: str) -> set[str]:
    """The origins of all links of a kind."""
    files = [path for path in (cache.data / "links").rglob(f"{kind}/**/*") if path.is_file()]
    return {json.loads(path.read_text())["origin"] for path in files}


def test_offline(cache: Cache, upstream: LyingUpstream, tmp_path: Path) -> None:
    """What was filled is served with upstream away, by tag and digest, and HITs while it is there."""
    cache.report("pull", f"{HOST}/{NAME}:1")
    assert links(cache, "_digests") == {"synced"}
    upstream.stop()
    with in_thread(cache.data, upstream) as served:
        pull = served.puller().pull(NAME, "1")
        assert pull.digest == IMAGE.index.digest
        assert pull.count("MISS") == 0
    upstream.start()
    with in_thread(cache.data, upstream) as served:
        pull = served.puller().pull(NAME, "1")
        assert pull.count("MISS") == 0
    assert links(cache, "_digests") == {"synced"}


def test_platforms(cache: Cache, upstream: LyingUpstream) -> None:
    """Only what is asked for comes; a platform that is not there is an error that names those that are."""
    cache.report("pull", "--platform", "linux/arm64", f"{HOST}/{NAME}:1")
    arm = IMAGE.platforms["linux/arm64"]
    wanted = {part["digest"] for part in [json.loads(arm.body)["config"], *json.loads(arm.body)["layers"]]}
    assert cache.blobs() == {IMAGE.index.digest, arm.digest, *wanted}
    result = cache.run("pull", "--platform", "linux/s390x", f"{HOST}/{NAME}:1")
    assert result.exit_code == 1
    assert "no manifest for linux/s390x; it has linux/amd64, linux/arm64" in result.stdout
    assert "is not one such as linux/amd64" in cache.run("pull", "--platform", "arm", f"{HOST}/{NAME}:1").stderr


def test_dry_run(cache: Cache, upstream: LyingUpstream) -> None:
    """It tells what would come, to the byte, and keeps nothing."""
    dry = cache.report("pull", "--dry-run", f"{HOST}/{NAME}:1")
    assert cache.blobs() == set()
    assert upstream.requests.count(kind="object") == 0
    wet = cache.report("pull", f"{HOST}/{NAME}:1")
    assert dry["bytes"] == {"fetched": 0, "missing": wet["bytes"]["fetched"]}
    assert dry["contents"]["missing"] == wet["contents"]["fetched"]
    assert cache.report("pull", "--dry-run", f"{HOST}/{NAME}:1")["bytes"]["missing"] == 0


def test_failures_are_all_told(cache: Cache, upstream: LyingUpstream, tmp_path: Path) -> None:
    """What fails is listed with its reason, the rest is done, and the status says so."""
    listed = tmp_path / "images.txt"
    listed.write_text(f"{HOST}/{NAME}:absent\n{HOST}/{NAME}:1  # here\n{HOST}/team/none:1\n")
    result = cache.run("sync", "-f", listed, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [image["image"] for image in report["images"]] == [f"{HOST}/{NAME}:1"]
    assert {failure["image"] for failure in report["failures"]} == {f"{HOST}/{NAME}:absent", f"{HOST}/team/none:1"}
    assert cache.blobs() == everything()
    words = "failed   registry.demo/team/app:absent: registry.demo has no such tag"
    assert words in cache.run("sync", "-f", listed).stdout


def test_a_moved_tag(cache: Cache, upstream: LyingUpstream) -> None:
    """A tag that has moved is updated; its old layers are not fetched again; with upstream away it is the new one."""
    with in_thread(cache.data, upstream) as served:
        served.puller().pull(NAME, "1")
    layers = {
        name: [layer(f"filling {name} 1", 100 * KIB), layer(f"more {name}", 50 * KIB)] for name in IMAGE.platforms
    }
    newer = assemble(layers)
    upstream.registry.put(NAME, newer, "1")
    upstream.requests.clear()
    report = cache.report("pull", f"{HOST}/{NAME}:1")
    assert report["images"][0]["state"] == "updated"
    objects = {record.path.split("/")[-2] for record in upstream.requests.select(kind="object", method="GET")}
    assert objects == {digest.partition(":")[2] for digest in newer.blobs if digest not in IMAGE.blobs}
    upstream.stop()
    with in_thread(cache.data, upstream) as served:
        assert served.puller().pull(NAME, "1").digest == newer.index.digest
    upstream.start()


def test_yaml_by_regex_and_semver(cache: Cache, upstream: LyingUpstream, tmp_path: Path) -> None:
    """Tags are chosen from the registry's list; a choice of nothing is a failure."""
    for tag in ("1.0.0", "1.2.0", "2.0.0", "2.0.0-rc.1", "latest"):
        upstream.registry.put(NAME, IMAGE, tag)
    listed = tmp_path / "images.yaml"
    listed.write_text(f"{HOST}:\n  images-by-semver: {{{NAME}: '^1'}}\n  images-by-tag-regex: {{{NAME}: 'rc'}}\n")
    report = cache.report("sync", "-f", listed)
    found = [image["image"].rpartition(":")[2] for image in report["images"]]
    assert found == ["1", "1.0.0", "1.2.0", "2.0.0-rc.1"]
    listed.write_text(f"{HOST}:\n  images-by-semver: {{{NAME}: '^7'}}\n")
    result = cache.run("sync", "-f", listed)
    assert result.exit_code == 1
    assert "failed   registry.demo/team/app: it has none of: versions ^7" in result.stdout
    listed.write_text(f"{HOST}:\n  images: {{{NAME}: []}}\n")
    assert len(cache.report("sync", "-f", listed)["images"]) == 6


def test_private_images(tmp_path: Path) -> None:
    """The file's credentials fetch them; clients then need the policy's right alone, upstream there or not."""
    access = Access(scheme="bearer", users={"john": "s3cret-word"}, private={NAME: {"john"}})
    with LyingUpstream(tmp_path, access=access) as upstream:
        upstream.registry.put(NAME, IMAGE, "1")
        cache = Cache(tmp_path, upstream)
        listed = tmp_path / "images.yaml"
        listed.write_text(f"{HOST}:\n  images: {{{NAME}: ['1']}}\n")
        result = cache.run("sync", "-f", listed)
        assert result.exit_code == 1
        assert "wants another credential" in result.stdout
        listed.write_text(
            f"{HOST}:\n  images: {{{NAME}: ['1']}}\n  credentials: {{username: john, password: s3cret-word}}\n"
        )
        result = cache.run("sync", "-f", listed, "--json")
        assert result.exit_code == 0, result.output
        assert "s3cret-word" not in result.output
        with in_thread(cache.data, upstream) as served, served.client() as client:
            by_tag = client.get(f"/v2/{NAME}/manifests/1", {"Accept": INDEX})
            assert (by_tag.status, by_tag.outcome) == (200, "HIT")
            for digest in IMAGE.blobs:
                assert client.get(f"/v2/{NAME}/blobs/{digest}").outcome == "HIT"
            # Who may read it upstream pulls it too, and takes nobody's right by that.
            assert served.puller(user=("john", "s3cret-word")).pull(NAME, "1").count("MISS") == 0
            assert client.get(f"/v2/{NAME}/manifests/1", {"Accept": INDEX}).status == 200
            assert "s3cret-word" not in served.log.text
        assert links(cache, "_digests") == {"synced"}


def test_pulled_content_keeps_upstreams_rights(tmp_path: Path) -> None:
    """What a client has pulled of a repository beside what was synced is not open to others."""
    access = Access(scheme="basic", users={"john": "s3cret-word"}, private={NAME: {"john"}})
    other = generate(sizes=[60 * KIB], seed="other")
    with LyingUpstream(tmp_path, access=access) as upstream:
        upstream.registry.put(NAME, IMAGE, "1")
        upstream.registry.put(NAME, other, "2")
        cache = Cache(tmp_path, upstream)
        listed = tmp_path / "images.yaml"
        listed.write_text(
            f"{HOST}:\n  images: {{{NAME}: ['1']}}\n  credentials: {{username: john, password: s3cret-word}}\n"
        )
        cache.report("sync", "-f", listed)
        asked_each_time = '[cache]\ntag_ttl = "0s"'
        with in_thread(cache.data, upstream, more=asked_each_time) as served, served.client() as client:
            served.puller(user=("john", "s3cret-word")).pull(NAME, "2")
            assert client.get(f"/v2/{NAME}/manifests/2", {"Accept": INDEX}).status == 401
            for digest in other.blobs:
                assert client.get(f"/v2/{NAME}/blobs/{digest}").status == 401
            # A tag that has moved to what was not synced is still what was synced, for strangers.
            upstream.registry.put(NAME, other, "1")
            john = {"Authorization": f"Basic {b64encode(b'john:s3cret-word').decode()}"}
            newer = client.get(f"/v2/{NAME}/manifests/1", {"Accept": INDEX, **john})
            assert (newer.status, newer.headers["Docker-Content-Digest"]) == (200, other.index.digest)
            again = client.get(f"/v2/{NAME}/manifests/1", {"Accept": INDEX})
            assert (again.status, again.headers["Docker-Content-Digest"]) == (200, IMAGE.index.digest)


def test_foreign_content_is_not_taken_on_trust(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A manifest that names a blob of another repository, which is cached, does not open that blob."""
    cache = Cache(tmp_path, upstream)
    cache.report("pull", f"{HOST}/{NAME}:1")
    upstream.registry.put("evil/app", IMAGE, "1")
    stolen = sorted(IMAGE.blobs)[0]
    del upstream.registry.repositories["evil/app"].blobs[stolen]
    result = cache.run("pull", f"{HOST}/evil/app:1")
    assert result.exit_code == 1
    assert f"answered 404 for {HOST}/evil/app@{stolen}" in result.stdout
    held = {path.name for path in (cache.data / "links" / HOST / "evil/app" / "_digests").iterdir()}
    assert stolen.replace(":", "-") not in held


def test_bytes_are_counted_once(cache: Cache, upstream: LyingUpstream) -> None:
    """A layer that two repositories of one run wait for at the same time has come once."""
    upstream.registry.put("team/copy", IMAGE, "1")
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(10 * KIB))
    with ThreadPoolExecutor(1) as pool:
        names = [f"{HOST}/{NAME}:1", f"{HOST}/team/copy:1"]
        filling = pool.submit(cache.report, "pull", "--parallel", "12", *names)
        upstream.requests.wait(len(IMAGE.blobs), kind="blob", method="HEAD")
        gate.release()
        report = filling.result()
    sizes = [path.stat().st_size for path in (cache.data / "blobs").glob("*/*/*")]
    assert len(sizes) == report["contents"]["fetched"] == len(everything())
    assert report["bytes"]["fetched"] == sum(image["bytes"] for image in report["images"]) == sum(sizes)


def test_clients_that_wait_share_the_download(cache: Cache, upstream: LyingUpstream) -> None:
    """A pull through the service and a filling beside it cost one GET for each blob."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(10 * KIB))
    with process(cache.data, upstream) as served, ThreadPoolExecutor(2) as pool:
        pulling = pool.submit(lambda: served.puller().pull(NAME, "1"))
        upstream.requests.wait(3, kind="object")
        filling = pool.submit(cache.run, "pull", f"{HOST}/{NAME}:1", "--json")
        upstream.requests.wait(2, kind="tag", method="HEAD")
        gate.release()
        assert pulling.result().digest == IMAGE.index.digest
        assert filling.result().exit_code == 0, filling.result().output
    objects = [record.path for record in upstream.requests.select(kind="object", method="GET")]
    assert len(objects) == len(set(objects)) == len(IMAGE.blobs)
    assert links(cache, "_digests") == {"synced"}


@pytest.mark.parametrize("kind", ["tag", "manifest", "blob", "object"])
def test_a_registry_that_wants_a_pause(cache: Cache, upstream: LyingUpstream, kind: str) -> None:
    """Who is told to come back later does not come before that, and has it all in the end."""
    lie = upstream.lie(kind, faults.refuse(429, "TOOMANYREQUESTS", {"Retry-After": "3"}), times=1)
    began = time.monotonic()
    report = cache.report("pull", f"{HOST}/{NAME}:1")
    assert lie.told == 1
    assert time.monotonic() - began >= 3  # more than the second that would be waited otherwise
    assert cache.blobs() == everything()
    assert report["images"][0]["state"] == "new"
