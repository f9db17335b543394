"""Pushing to a local name, as the distribution specification has it, by every way that clients take."""

import asyncio
import json
import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from mitm_cache.cache.owned import linking
from mitm_cache.errors import ClientError
from mitm_cache.local import uploads
from mitm_cache.local.manifests import read
from mitm_cache.local.store import Store
from mitm_cache.local.uploads import Uploads
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE, OCI_MANIFEST
from mitm_cache.oci.reference import Repository, Tag
from tests.local.registry import CONFIG, OCTETS, Local, descriptor, digest_of, give, index, manifest

LAYER = bytes(range(256)) * 4096
DIGEST = digest_of(LAYER)


def test_an_image(tmp_path: Path) -> None:
    """What was pushed is served, whole and by ranges, by tag and by digest."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            digest = await local.push("team/app", "1", LAYER)
            body = manifest(LAYER)
            got = await local.ask("GET", "/v2/team/app/manifests/1", {"Accept": OCI_MANIFEST})
            assert (got.status, got.body, got["docker-content-digest"]) == (200, body, digest)
            assert (got["content-type"], got.outcome) == (OCI_MANIFEST, "LOCAL")
            head = await local.ask("HEAD", f"/v2/team/app/manifests/{digest}")
            assert (head.status, head.body, head["content-length"]) == (200, b"", str(len(body)))
            blob = await local.ask("GET", f"/v2/team/app/blobs/{DIGEST}")
            assert (blob.status, blob.body) == (200, LAYER)
            part = await local.ask("GET", f"/v2/team/app/blobs/{DIGEST}", {"Range": "bytes=1000-1999"})
            assert (part.status, part.body, part["content-range"]) == (206, LAYER[1000:2000], "bytes 1000-1999/1048576")
            beyond = await local.ask("GET", f"/v2/team/app/blobs/{DIGEST}", {"Range": "bytes=1048576-"})
            assert beyond.status == 416
            assert (await local.ask("HEAD", f"/v2/team/app/blobs/{DIGEST}")).status == 200
            assert local.uploads() == []

    asyncio.run(run())


def test_it_outlives_the_process(tmp_path: Path) -> None:
    """Another process, and one without the index, serves what was accepted."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            await local.push("team/app", "1", LAYER)
        for path in (tmp_path / "data" / "index").iterdir():
            path.unlink()
        async with Local(tmp_path) as local:
            assert (await local.ask("GET", "/v2/team/app/manifests/1")).body == manifest(LAYER)
            assert (await local.ask("GET", f"/v2/team/app/blobs/{DIGEST}")).body == LAYER

    asyncio.run(run())


def test_monolithic(tmp_path: Path) -> None:
    """POST with a digest takes the whole blob; so does a PUT alone; SHA-512 is as good."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            one = await local.ask("POST", f"/v2/a/blobs/uploads/?digest={DIGEST}", OCTETS, LAYER)
            assert (one.status, one["location"]) == (201, f"/v2/a/blobs/{DIGEST}")
            assert one["docker-content-digest"] == DIGEST
            opened = await local.ask("POST", "/v2/b/blobs/uploads/")
            assert (opened.status, opened["range"]) == (202, "0-0")
            assert opened["docker-upload-uuid"]
            assert str(opened["location"]).endswith(opened["docker-upload-uuid"])
            other = digest_of(LAYER, "sha512")
            put = await local.ask("PUT", f"{opened['location']}?digest={other}", OCTETS, LAYER)
            assert (put.status, put["docker-content-digest"]) == (201, other)
            assert (await local.ask("GET", f"/v2/b/blobs/{other}")).body == LAYER
            assert (await local.ask("HEAD", f"/v2/a/blobs/{other}")).status == 200  # of a repository that it may read

    asyncio.run(run())


def test_chunks(tmp_path: Path) -> None:
    """Chunks come in order; one at another offset is told where the upload is, and changes nothing."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            first = await local.ask("PATCH", place, {"Content-Range": "0-999", **OCTETS}, LAYER[:1000])
            assert (first.status, first["range"], first["location"]) == (202, "0-999", place)
            wrong = await local.ask("PATCH", place, {"Content-Range": "500-1499", **OCTETS}, LAYER[500:1500])
            assert (wrong.status, wrong["range"], wrong["location"]) == (416, "0-999", place)
            short = await local.ask("PATCH", place, {"Content-Range": "1000-1999", **OCTETS}, LAYER[1000:1500])
            assert short.status == 416
            state = await local.ask("GET", place)
            assert (state.status, state["range"], state["location"]) == (204, "0-999", place)
            last = {"Content-Range": f"1000-{len(LAYER) - 1}", **OCTETS}
            late = await local.ask("PUT", f"{place}?digest={DIGEST}", last | {"Content-Range": "7-8"}, LAYER[:2])
            assert late.status == 416
            put = await local.ask("PUT", f"{place}?digest={DIGEST}", last, LAYER[1000:])
            assert put.status == 201
            gone = await local.ask("GET", place)
            assert (gone.code, gone.outcome, wrong.outcome) == ("BLOB_UPLOAD_UNKNOWN", "LOCAL", "REFUSED")

    asyncio.run(run())


def test_resumed(tmp_path: Path) -> None:
    """What came before a connection broke stays, also for another process, which knows no hash of it."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            intake = await local.intake("PATCH", place, OCTETS, size=len(LAYER))
            intake.write(LAYER[:700_000])
            intake.close()  # the client has left
            assert (await local.ask("GET", place))["range"] == "0-699999"
            whole = await local.intake("POST", f"/v2/a/blobs/uploads/?digest={DIGEST}", OCTETS, size=len(LAYER))
            whole.write(LAYER[:700_000])
            whole.close()  # nobody knows where to go on
            assert len(local.uploads()) == 1
        async with Local(tmp_path) as local:
            rest = {"Content-Range": f"700000-{len(LAYER) - 1}", **OCTETS}
            assert (await local.ask("PATCH", place, rest, LAYER[700_000:])).status == 202
            assert (await local.ask("PUT", f"{place}?digest={DIGEST}")).status == 201
            assert (await local.ask("GET", f"/v2/a/blobs/{DIGEST}")).body == LAYER

    asyncio.run(run())


def test_two_writers(tmp_path: Path) -> None:
    """While a request works on an upload another is told so; when it has ended, that one goes on."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            first = await local.intake("PATCH", place, OCTETS, size=1000)
            second = await local.ask("PATCH", place, OCTETS, b"x" * 1000)
            assert (second.status, second.code) == (409, "BLOB_UPLOAD_INVALID")
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(local.ask("PUT", f"{place}?digest={digest_of(LAYER[:1000])}"))
                assert (await give(first, LAYER[:1000])).status == 202
            assert waiting.result().status == 201

    asyncio.run(run())


def test_a_wrong_digest(tmp_path: Path) -> None:
    """Bytes that are not what they are said to be are refused, and leave nothing."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            for way in ("POST", "PUT"):
                place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
                target = f"/v2/a/blobs/uploads/?digest={DIGEST}" if way == "POST" else f"{place}?digest={DIGEST}"
                refused = await local.ask(way, target, OCTETS, b"something else")
                assert (refused.status, refused.code) == (400, "DIGEST_INVALID")
                await local.ask("DELETE", place)
            assert (local.blobs(), local.uploads()) == (set(), [])
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            assert (await local.ask("PUT", place)).code == "DIGEST_INVALID"
            assert (await local.ask("PUT", f"{place}?digest=md5:0")).code == "DIGEST_INVALID"

    asyncio.run(run())


def test_uploads_belong_to_repositories(tmp_path: Path) -> None:
    """An upload is known in its own repository alone, until it is cancelled."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            for target in (
                place.replace("/v2/a/", "/v2/b/"),
                "/v2/a/blobs/uploads/" + "0" * 48,
                "/v2/a/blobs/uploads/x",
            ):
                for method in ("GET", "PATCH", "DELETE"):
                    assert (await local.ask(method, target)).code == "BLOB_UPLOAD_UNKNOWN"
            assert (await local.ask("DELETE", place)).status == 204
            assert (await local.ask("GET", place)).status == 404

    asyncio.run(run())


def test_places_lead_back(tmp_path: Path) -> None:
    """A client goes on where it came from: by its path's prefix, by `?ns=`, or by the Host."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            by_path = await local.ask("POST", "/v2/app/blobs/uploads/", {}, given="mine/")
            assert str(by_path["location"]).startswith("/v2/mine/app/blobs/uploads/")
            done = await local.ask("POST", f"/v2/app/blobs/uploads/?digest={DIGEST}", OCTETS, LAYER, given="mine/")
            assert done["location"] == f"/v2/mine/app/blobs/{DIGEST}"
            # containerd adds the digest to the query, and names the registry only at first.
            by_space = local.request("POST", "/v2/app/blobs/uploads/")
            by_space = type(by_space)(
                **{name: getattr(by_space, name) for name in by_space.__slots__ if name != "headers"},
                headers=type(by_space.headers)([("Host", "cache.example:5000")]),
            )
            response = await local.registry.receive(by_space)
            assert not hasattr(response, "write")
            assert str(response.headers.get("location")).endswith("?ns=local")
            by_host = await local.ask("POST", "/v2/app/blobs/uploads/")
            assert "?" not in str(by_host["location"])

    asyncio.run(run())


def test_manifests_are_checked(tmp_path: Path) -> None:
    """A manifest is what its type and name say, and what it needs is there; a subject may come later."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            body = manifest(LAYER)
            missing = await local.push_manifest("a", "1", body)
            assert (missing.status, missing.code) == (404, "MANIFEST_BLOB_UNKNOWN")
            assert (await local.ask("GET", "/v2/a/manifests/1")).code == "MANIFEST_UNKNOWN"
            child = await local.push_manifest("a", "1", index(body))
            assert (child.status, child.code) == (404, "MANIFEST_BLOB_UNKNOWN")
            digest = await local.push("a", "1", LAYER)
            assert (await local.push_manifest("a", "2", index(body))).status == 201
            other = await local.push_manifest("a", digest_of(b""), body)
            assert (other.status, other.code) == (400, "DIGEST_INVALID")
            by_digest = await local.push_manifest("a", digest_of(body, "sha512"), body)
            assert (by_digest.status, by_digest["location"]) == (201, f"/v2/a/manifests/{digest_of(body, 'sha512')}")
            subject = descriptor(b"later", OCI_MANIFEST)
            about = await local.push_manifest("a", "about", manifest(LAYER, subject=subject))
            assert (about.status, about["oci-subject"]) == (201, subject["digest"])
            foreign = descriptor(b"elsewhere") | {"urls": ["https://example.com/layer"]}
            assert (await local.push_manifest("a", "3", manifest(layers=[foreign]))).status == 201
            assert digest == digest_of(body)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", OCI_MANIFEST),
        (b"[]", OCI_MANIFEST),
        (manifest(), "application/vnd.docker.distribution.manifest.v2+json"),
        (manifest(mediaType="text/plain"), "text/plain"),
        (manifest(manifests=[]), OCI_MANIFEST),
        (manifest(schemaVersion=1), OCI_MANIFEST),
        (manifest(layers=[{"size": 3}]), OCI_MANIFEST),
        (manifest(layers=[{"digest": "sha256:no"}]), OCI_MANIFEST),
        (manifest(layers={}), ""),
        (manifest(layers={"a": 1}), OCI_MANIFEST),
        (manifest(config=CONFIG, subject=7), OCI_MANIFEST),
        (index(mediaType=OCI_MANIFEST), OCI_MANIFEST),
        (json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}).encode(), OCI_MANIFEST),
        (b"", OCI_MANIFEST),
        (b"[" * 100_000, OCI_MANIFEST),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, body: bytes, kind: str) -> None:
    """It is refused with words, and nothing is kept."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            await local.push_blob("a", CONFIG)
            refused = await local.ask("PUT", "/v2/a/manifests/1", {"Content-Type": kind} if kind else {}, body)
            if body == manifest(layers={}):
                assert refused.status == 201  # no layers, as some write it
                return
            assert (refused.status, refused.code) == (400, "MANIFEST_INVALID")
            assert "refused" in refused.message
            assert (await local.ask("GET", "/v2/a/tags/list")).json["tags"] == []

    asyncio.run(run())


def test_too_long(tmp_path: Path) -> None:
    """A manifest has 4 MiB at most, whether its client says so before or not."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            told = await local.ask("PUT", "/v2/a/manifests/1", {"Content-Type": OCI_MANIFEST}, b"x" * (MAX_SIZE + 1))
            assert (told.status, told.code) == (413, "SIZE_INVALID")
            intake = await local.intake("PUT", "/v2/a/manifests/1", size=None)
            intake.write(b"x" * MAX_SIZE)
            with pytest.raises(Exception, match="4,194,304") as refused:
                intake.write(b"x")
            assert getattr(refused.value, "status", 0) == 413
            intake.close()

    asyncio.run(run())


def test_deleting(tmp_path: Path) -> None:
    """A tag leaves alone; a digest leaves with its tags; a blob leaves its repository."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            digest = await local.push("a", "1", LAYER)
            await local.push("a", "2", LAYER)
            assert (await local.ask("DELETE", "/v2/a/manifests/1")).status == 202
            assert (await local.ask("DELETE", "/v2/a/manifests/1")).code == "MANIFEST_UNKNOWN"
            assert (await local.ask("GET", "/v2/a/tags/list")).json == {"name": "a", "tags": ["2"]}
            assert (await local.ask("GET", f"/v2/a/manifests/{digest}")).status == 200
            assert (await local.ask("DELETE", f"/v2/a/manifests/{digest}")).status == 202
            for reference in ("2", digest):
                assert (await local.ask("GET", f"/v2/a/manifests/{reference}")).code == "MANIFEST_UNKNOWN"
                assert (await local.ask("DELETE", f"/v2/a/manifests/{reference}")).status == 404
            assert (await local.ask("GET", "/v2/a/tags/list")).json["tags"] == []
            assert (await local.ask("DELETE", f"/v2/a/blobs/{DIGEST}")).status == 202
            assert (await local.ask("GET", f"/v2/a/blobs/{DIGEST}")).code == "BLOB_UNKNOWN"
            assert (await local.ask("DELETE", f"/v2/a/blobs/{DIGEST}")).code == "BLOB_UNKNOWN"

    asyncio.run(run())


def test_what_is_not_here(tmp_path: Path) -> None:
    """The specification's codes, and no other method or path."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            expected = {
                "/v2/a/manifests/1": "MANIFEST_UNKNOWN",
                f"/v2/a/manifests/{DIGEST}": "MANIFEST_UNKNOWN",
                f"/v2/a/blobs/{DIGEST}": "BLOB_UNKNOWN",
                "/v2/a/tags/list": "NAME_UNKNOWN",
            }
            for target, code in expected.items():
                reply = await local.ask("GET", target)
                assert (reply.status, reply.code, reply.outcome) == (404, code, "LOCAL")  # as each push asks
                head = await local.ask("HEAD", target)
                assert (head.body, head.outcome) == (b"", "LOCAL")
            assert (await local.ask("GET", "/v2/")).status == 200
            assert (await local.ask("GET", "/token")).status == 404
            for method, target in (("POST", "/v2/a/manifests/1"), ("PUT", "/token"), ("PUT", f"/v2/a/blobs/{DIGEST}")):
                reply = await local.ask(method, target)
                assert (reply.code, reply.outcome) == ("UNSUPPORTED", "REFUSED")
            await local.push_blob("a", LAYER)
            assert (await local.ask("GET", f"/v2/a/manifests/{DIGEST}")).code == "MANIFEST_UNKNOWN"

    asyncio.run(run())


def test_uploads_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins uploads without end fills no disk: empty ones leave first, and none that is being written."""
    monkeypatch.setattr(uploads, "MAX_BEGUN", 50)
    monkeypatch.setattr(uploads, "LOOK", 10)

    async def run() -> None:
        async with Local(tmp_path) as local:
            begun = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            assert (await local.ask("PATCH", begun, OCTETS, LAYER)).status == 202
            written = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            intake = await local.intake("PATCH", written, OCTETS, size=len(LAYER))
            local.age(60)
            for _ in range(200):
                assert (await local.ask("POST", "/v2/a/blobs/uploads/")).status == 202
            assert len(local.uploads()) <= 60
            assert (await give(intake, LAYER)).status == 202
            for place in (begun, written):
                assert (await local.ask("PUT", f"{place}?digest={DIGEST}")).status == 201

    asyncio.run(run())


def test_workers_take_turns(tmp_path: Path) -> None:
    """What a process has hashed of an upload it does not read again after another one has gone on with it."""
    here, there = Uploads(tmp_path), Uploads(tmp_path)
    repository = Repository("a")
    upload = here.begin(repository)
    upload.write(b"abc")
    upload.close()
    for uploads_, piece in ((there, b"def"), (here, b"ghi")):
        if uploads_ is here:
            with upload.path.open("r+b") as file:
                file.write(b"XYZ")  # who read it again would see that
        other = uploads_.open(repository, upload.name)
        assert other is not None
        other.catch_up()
        other.write(piece)
        if uploads_ is here:
            assert other.prove("sha256") == digest_of(b"abcdefghi").partition(":")[2]
        other.close()


def test_a_large_manifest_is_not_kept_in_memory(tmp_path: Path) -> None:
    """Nor are many of them whose clients stall."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            intakes = [await local.intake("PUT", "/v2/a/manifests/1", size=MAX_SIZE) for _ in range(32)]
            piece = b"x" * (1 << 18)
            tracemalloc.start()
            try:
                for intake in intakes:
                    for _ in range(15):
                        intake.write(piece)
                assert tracemalloc.get_traced_memory()[1] < 16 << 20
            finally:
                tracemalloc.stop()
                for intake in intakes:
                    intake.close()
            assert local.uploads() == []

    asyncio.run(run())


def test_an_index_that_says_it_again_and_again(tmp_path: Path) -> None:
    """Each content is looked at once, however often it is named."""
    body = manifest(LAYER)
    again = json.loads(index(body))
    again["manifests"] *= 20_000

    def read_it() -> int:
        return len(read(json.dumps(again).encode(), "", Tag("1")).manifests)

    assert read_it() == 1


def test_deleted_while_it_is_tagged(tmp_path: Path) -> None:
    """A push that tags what another client deletes is before that or after it: no tag is left that leads nowhere."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            digest = await local.push("a", "1", LAYER)
            body = manifest(LAYER)
            store = Store(local.layout, local.core.blobs)
            link = store.manifest(Repository("a"), Digest.parse(digest))
            assert link is not None
            async with asyncio.TaskGroup() as group:
                with linking(local.layout):  # a push that has looked at all that it needs
                    deleting = group.create_task(asyncio.to_thread(store.delete, Repository("a"), link))
                    await asyncio.wait([deleting], timeout=0.5)
                    store.links.give("local", Repository("a"), Tag("2"), link)
            assert (await local.ask("GET", "/v2/a/tags/list")).json["tags"] == []
            assert (await local.push_manifest("a", "2", body)).status == 201

    asyncio.run(run())


def test_one_manifest_is_read_at_a_time(tmp_path: Path) -> None:
    """And not by the event loop: one that is small on the wire may be large in memory, and take its time."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            await local.push_blob("a", CONFIG)
            reading = local.registry._threads.reading
            async with asyncio.TaskGroup() as group:
                with reading:
                    pushing = group.create_task(local.push_manifest("a", "1", manifest()))
                    done, _ = await asyncio.wait([pushing], timeout=0.3)
                    assert done == set()
            assert pushing.result().status == 201

    asyncio.run(run())


def test_the_disk_is_freed_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To let go of an upload that is wanted no more may take seconds where it is large."""
    freed: list[str] = []
    close = os.close

    def watched(fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        if "/uploads/" in name and name.endswith(" (deleted)"):
            freed.append(threading.current_thread().name)
        close(fd)

    async def run() -> None:
        async with Local(tmp_path, size="100K") as local:
            monkeypatch.setattr(os, "close", watched)
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            assert (await local.ask("PATCH", place, OCTETS, b"x" * 1000)).status == 202
            assert (await local.ask("DELETE", place)).status == 204
            wrong = f"/v2/a/blobs/uploads/?digest={digest_of(b'y')}"
            assert (await local.ask("POST", wrong, OCTETS, b"x")).status == 400
            gone = await local.intake("POST", wrong, OCTETS, size=1000)
            gone.write(b"x")
            gone.close()
            long = await local.intake("POST", wrong, OCTETS, size=None)
            with pytest.raises(ClientError, match="is full"):
                long.write(b"x" * (101 << 10))
            long.close()
        monkeypatch.undo()

    asyncio.run(run())
    assert len(freed) == 4
    assert all(name.startswith("local") for name in freed), freed
