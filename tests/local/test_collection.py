"""What leaves the local registry by itself, and what never does."""

import asyncio
import fcntl
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.evict import Sweeper
from mitm_cache.cache.layout import Layout
from mitm_cache.cache.owned import last_let_go, let_go, linking, owned
from mitm_cache.cache.pins import Pins
from mitm_cache.errors import ClientError
from mitm_cache.local.account import Account
from mitm_cache.local.collection import Collection
from mitm_cache.local.space import measure
from mitm_cache.local.store import Store
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_MANIFEST
from mitm_cache.oci.reference import Repository
from tests.local.registry import CONFIG, OCTETS, Local, build_cache, descriptor, digest_of, index, manifest

HOUR = 3600.0
LAYER = bytes(range(256)) * 400


def test_what_nobody_needs(tmp_path: Path) -> None:
    """A blob without a manifest leaves after an hour; what a manifest needs stays, by however few tags."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            digest = await local.push("a", "1", LAYER)
            await local.push_blob("a", b"stray")
            await local.registry.collect()
            assert digest_of(b"stray") in local.blobs()
            local.age(HOUR + 10)
            await local.registry.collect()
            assert local.blobs() == {digest, digest_of(LAYER), digest_of(CONFIG)}
            assert (await local.ask("HEAD", f"/v2/a/blobs/{digest_of(b'stray')}")).status == 404
            await local.ask("DELETE", "/v2/a/manifests/1")
            local.age(HOUR + 10)
            await local.registry.collect()
            assert (await local.ask("GET", f"/v2/a/manifests/{digest}")).status == 200

    asyncio.run(run())


def test_a_build_cache(tmp_path: Path) -> None:
    """An index of blobs is taken when all of them are here, and keeps them."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            cache = build_cache(b"{}", LAYER)
            await local.push_blob("a", LAYER)
            refused = await local.push_manifest("a", "cache", cache)
            assert (refused.status, refused.code) == (404, "MANIFEST_BLOB_UNKNOWN")
            await local.push_blob("a", b"{}")
            assert (await local.push_manifest("a", "cache", cache)).status == 201
            local.age(HOUR + 10)
            await local.registry.collect()
            assert local.blobs() == {digest_of(cache), digest_of(LAYER), digest_of(b"{}")}
            assert (await local.ask("GET", f"/v2/a/blobs/{digest_of(LAYER)}")).body == LAYER

    asyncio.run(run())


def test_what_was_deleted(tmp_path: Path) -> None:
    """The bytes of what was deleted leave, unless somebody else holds them; nothing is left of the repository."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            digest = await local.push("a", "1", LAYER)
            await local.push_blob("b", LAYER)
            other = Link(Digest.of(CONFIG), "application/octet-stream", len(CONFIG), Origin.PULLED)
            local.core.links.hold("quay.io", Repository("team/app"), other)
            assert (await local.ask("DELETE", f"/v2/a/manifests/{digest}")).status == 202
            local.age(HOUR / 2)
            await local.registry.collect()
            assert local.blobs() == {digest_of(LAYER), digest_of(CONFIG)}
            local.age(HOUR)
            local.age(-HOUR)
            await local.ask("HEAD", f"/v2/b/blobs/{digest_of(LAYER)}")  # counted on
            local.age(HOUR - 60)
            await local.registry.collect()
            assert local.blobs() == {digest_of(LAYER), digest_of(CONFIG)}
            assert not (tmp_path / "data/links/local/a").exists()
            local.age(120)
            await local.registry.collect()
            assert local.blobs() == {digest_of(CONFIG)}  # it is the cache's
            assert list((tmp_path / "data/links/local").iterdir()) == []
            await local.push("a", "1", LAYER)
            assert (await local.ask("GET", "/v2/a/manifests/1")).status == 200

    asyncio.run(run())


def test_counting_on_what_is_old(tmp_path: Path) -> None:
    """Who asks for a blob before a push, and who pushes a manifest, keeps what is there from leaving."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            await local.push_blob("a", LAYER)
            await local.push_blob("a", CONFIG)
            local.age(HOUR * 2)
            assert (await local.ask("HEAD", f"/v2/a/blobs/{digest_of(LAYER)}")).status == 200
            await local.registry.collect()
            assert local.blobs() == {digest_of(LAYER)}
            await local.push_blob("a", CONFIG)
            assert (await local.push_manifest("a", "1", manifest(LAYER))).status == 201

    asyncio.run(run())


def test_abandoned_uploads(tmp_path: Path) -> None:
    """An upload that nobody goes on with leaves after a day, and one that somebody works on does not."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            left = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            intake = await local.intake("PATCH", place, OCTETS, size=10)
            local.age(23 * HOUR)
            await local.registry.collect()
            assert len(local.uploads()) == 2
            local.age(2 * HOUR)
            await local.registry.collect()
            assert (await local.ask("GET", left)).status == 404
            assert (await local.ask("GET", place)).status == 204
            intake.close()

    asyncio.run(run())


def test_the_limit(tmp_path: Path) -> None:
    """What does not fit is refused with words; manifests without a tag leave for it, the longest unused first."""

    async def run() -> None:
        async with Local(tmp_path, size="350K") as local:
            layers = [bytes([number]) * 100_000 for number in range(4)]
            digests = [await local.push("a", tag, layer) for tag, layer in zip("xyz", layers[:3], strict=True)]
            over = await local.ask("POST", f"/v2/a/blobs/uploads/?digest={digest_of(layers[3])}", OCTETS, layers[3])
            assert (over.status, over.code) == (403, "DENIED")
            assert "local.max_size is 358,400 bytes" in over.message
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            assert (await local.ask("PATCH", place, OCTETS, layers[3])).status == 403
            for tag in "xy":
                await local.ask("DELETE", f"/v2/a/manifests/{tag}")
            local.age(HOUR * 2)
            assert (await local.ask("GET", f"/v2/a/manifests/{digests[0]}")).status == 200  # it is used
            assert (await local.ask("PATCH", place, OCTETS, layers[3])).status == 202
            statuses = [(await local.ask("HEAD", f"/v2/a/manifests/{digest}")).status for digest in digests]
            assert statuses == [200, 404, 200]
            assert digest_of(layers[1]) not in local.blobs()
            assert measure(local.layout) <= 350 << 10

    asyncio.run(run())


def test_what_is_being_pulled_stays_whole(tmp_path: Path) -> None:
    """An image without a tag of which somebody has the manifest just now keeps its layers, however old these are."""

    async def run() -> None:
        async with Local(tmp_path, size="300K") as local:
            digest = await local.push("a", "1", LAYER, b"x" * 100_000)
            await local.ask("DELETE", "/v2/a/manifests/1")
            local.age(HOUR * 2)
            assert (await local.ask("GET", f"/v2/a/manifests/{digest}")).status == 200
            beside = b"y" * 150_000
            target = f"/v2/b/blobs/uploads/?digest={digest_of(beside)}"
            assert (await local.ask("POST", target, OCTETS, beside)).status == 403
            for layer in (LAYER, b"x" * 100_000):
                assert (await local.ask("GET", f"/v2/a/blobs/{digest_of(layer)}")).body == layer
            local.age(HOUR * 2)
            let_go(local.layout)  # or it would not be looked for again at once
            assert (await local.ask("POST", target, OCTETS, beside)).status == 201
            assert local.blobs() == {digest_of(beside)}

    asyncio.run(run())


def rest(local: Local) -> None:
    """As if it had been looked for room just now, and that had taken long."""
    account = Account(local.layout.run / "space")
    with account.opened() as sums:
        sums.fresh = sums.empty = time.monotonic() + HOUR
        sums.deletion = last_let_go(local.layout)
    account.close()


@pytest.mark.parametrize("how", ["cancelled", "wrong", "wrong at its end", "too long"])
def test_an_upload_that_leaves_makes_room(tmp_path: Path, how: str) -> None:
    """At once, for who is refused otherwise."""
    body = b"x" * 60_000
    wrong = f"?digest={digest_of(b'y')}"

    async def run() -> None:
        async with Local(tmp_path, size="100K") as local:
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            assert (await local.ask("PATCH", place, OCTETS, body)).status == 202
            target = f"/v2/b/blobs/uploads/?digest={digest_of(body)}"
            assert (await local.ask("POST", target, OCTETS, body)).status == 403
            rest(local)
            assert (await local.ask("POST", target, OCTETS, body)).status == 403
            match how:
                case "cancelled":
                    assert (await local.ask("DELETE", place)).status == 204
                case "wrong":
                    assert (await local.ask("PUT", f"{place}{wrong}")).status == 400
                case "wrong at its end":
                    assert (await local.ask("PUT", f"{place}{wrong}", OCTETS, b"y")).status == 400
                case _:
                    intake = await local.intake("PATCH", place, OCTETS, size=None)
                    with pytest.raises(ClientError, match="is full"):
                        intake.write(body)
                    intake.close()
            assert (await local.ask("POST", target, OCTETS, body)).status == 201

    asyncio.run(run())


def test_a_tag_that_moves_makes_room(tmp_path: Path) -> None:
    """What it leaves behind is collected where it is old, for the next one who would be refused."""
    body = b"y" * 60_000

    async def run() -> None:
        async with Local(tmp_path, size="100K") as local:
            await local.push("a", "1", b"x" * 60_000)
            await local.push("a", "2", b"z")
            local.age(HOUR * 2)
            target = f"/v2/b/blobs/uploads/?digest={digest_of(body)}"
            assert (await local.ask("POST", target, OCTETS, body)).status == 403
            rest(local)
            assert (await local.push_manifest("a", "1", manifest(b"z"))).status == 201
            assert (await local.ask("POST", target, OCTETS, body)).status == 201

    asyncio.run(run())


def test_what_is_being_written_counts_once(tmp_path: Path) -> None:
    """Of a push under way its whole size counts, and not also what has come of it by now."""

    async def run() -> None:
        async with Local(tmp_path, size="300K") as local:
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            assert (await local.ask("PATCH", place, OCTETS, b"x" * 50_000)).status == 202
            intake = await local.intake("PATCH", place, OCTETS, size=150_000)
            intake.write(b"x" * 140_000)
            beside = b"y" * 100_000
            target = f"/v2/a/blobs/uploads/?digest={digest_of(beside)}"
            assert (await local.ask("POST", target, OCTETS, beside)).status == 201
            another = await local.ask("POST", f"/v2/a/blobs/uploads/?digest={digest_of(b'z')}", OCTETS, b"z" * 20_000)
            assert (another.status, another.code) == (403, "DENIED")
            intake.write(b"x" * 10_000)
            assert (await intake.finish()).status == 202
            ended = await local.ask("PUT", f"{place}?digest={digest_of(b'x' * 200_000)}")
            assert ended.status == 201
            assert measure(local.layout) == 300_000

    asyncio.run(run())


def test_a_body_without_a_length(tmp_path: Path) -> None:
    """It may have what there is, and no more; one that does not fit leaves the room to others."""

    async def run() -> None:
        async with Local(tmp_path, size="100K") as local:
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            intake = await local.intake("PATCH", place, OCTETS, size=None)
            intake.write(b"x" * 90_000)
            with pytest.raises(ClientError, match=r"local\.max_size is 102,400 bytes") as refused:
                intake.write(b"x" * 20_000)
            assert refused.value.code == "DENIED"
            intake.close()
            assert (await local.ask("GET", place)).status == 404
            assert (await local.push_blob("a", b"y" * 90_000)).status == 201

    asyncio.run(run())


def test_bodies_without_a_length_share_what_there_is(tmp_path: Path) -> None:
    """What one of them has got another one cannot have too."""

    async def run() -> None:
        async with Local(tmp_path, size="100K") as local:
            places = [str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"]) for _ in range(3)]
            first, *others = [await local.intake("PATCH", places[0], OCTETS, size=None)]
            first.write(b"x" * 60_000)
            for place in places[1:]:
                with suppress(AssertionError, ClientError):  # refused at once, or as soon as it writes
                    others.append(await local.intake("PATCH", place, OCTETS, size=None))
                    others[-1].write(b"x" * 60_000)
            assert measure(local.layout) <= 100 << 10
            for each in (first, *others):
                each.close()
            assert (await local.push_blob("a", b"y" * 30_000)).status == 201

    asyncio.run(run())


def test_uploads_leave_where_room_is_wanted(tmp_path: Path) -> None:
    """One that nobody has gone on with for an hour leaves for another push, sooner than an image without a tag."""

    async def run() -> None:
        async with Local(tmp_path, size="300K") as local:
            digest = await local.push("a", "1", LAYER)
            await local.ask("DELETE", "/v2/a/manifests/1")
            place = str((await local.ask("POST", "/v2/a/blobs/uploads/"))["location"])
            assert (await local.ask("PATCH", place, OCTETS, b"x" * 150_000)).status == 202
            local.age(HOUR * 2)
            assert (await local.push_blob("a", b"y" * 150_000)).status == 201
            assert (await local.ask("GET", place)).status == 404
            assert (await local.ask("GET", f"/v2/a/manifests/{digest}")).status == 200

    asyncio.run(run())


def test_what_is_not_held_costs_no_memory(tmp_path: Path) -> None:
    """Of thousands of foreign layers that a manifest names nothing is kept in mind."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            await local.push_blob("a", CONFIG)
            foreign = [
                {"mediaType": "x", "digest": f"sha256:{number:064x}", "size": 1, "urls": ["https://example.com/"]}
                for number in range(20_000)
            ]
            for number in range(10):
                body = manifest(layers=foreign, annotations={"n": str(number)})
                assert (await local.push_manifest("a", str(number), body)).status == 201
            collection = Collection(Store(local.layout, local.core.blobs))
            tracemalloc.start()
            try:
                collection.collect()
                assert tracemalloc.get_traced_memory()[1] < 60 << 20
            finally:
                tracemalloc.stop()

    asyncio.run(run())


def test_named_by_more_than_tags(tmp_path: Path) -> None:
    """What an index lists, what is about a manifest that has a name, and what is pinned, has a name too."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            for content in (CONFIG, LAYER):
                await local.push_blob("a", content)
            child, lonely, pinned = manifest(LAYER), manifest(CONFIG), manifest(CONFIG, LAYER)
            top = index(child)
            about = manifest(subject=descriptor(top, OCI_MANIFEST))
            again = manifest(subject=descriptor(about, OCI_MANIFEST))
            for each in (child, lonely, pinned, about, again):
                assert (await local.push_manifest("a", digest_of(each), each)).status == 201
            await local.push_manifest("a", "1", top)
            pin = Digest.of(pinned)
            Pins(local.layout.links).add("local", Repository("a"), pin, pin)
            refused = await local.ask("DELETE", f"/v2/a/manifests/{pin}")
            assert (refused.status, refused.code) == (403, "DENIED")
            local.age(HOUR * 2)
            left = Collection(Store(local.layout, local.core.blobs)).nameless()
            assert left == {("local/a", Digest.of(lonely))}
            for each in (child, pinned, about, again, top):
                assert (await local.ask("GET", f"/v2/a/manifests/{digest_of(each)}")).status == 200

    asyncio.run(run())


def test_a_damaged_manifest_keeps_its_layers(tmp_path: Path) -> None:
    """Nobody can say what it needs: who pushes it anew finds the rest."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            digest = await local.push("a", "1", LAYER)
            local.age(HOUR * 2)
            local.core.blobs.path(Digest.parse(digest)).unlink()
            await local.registry.collect()
            assert digest_of(LAYER) in local.blobs()
            assert (await local.ask("GET", "/v2/a/manifests/1")).status == 404
            assert (await local.push_manifest("a", "1", manifest(LAYER))).status == 201

    asyncio.run(run())


# Eviction by the cache's limits.


def sweeper(local: Local, limit: int) -> Sweeper:
    """One that keeps the cache below `limit` bytes."""
    core = local.core
    return Sweeper(layout=local.layout, blobs=core.blobs, links=core.links, limit=lambda _: limit)


def test_eviction_leaves_it_alone(tmp_path: Path) -> None:
    """What is local does not count and stays, a blob without a manifest too; what is not, leaves."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            digest = await local.push("a", "1", LAYER)
            await local.push_blob("a", b"just pushed")
            draft = tmp_path / "draft"
            draft.write_bytes(b"cached")
            cached = Link(Digest.of(b"cached"), "application/octet-stream", 6, Origin.PULLED)
            local.core.links.hold("quay.io", Repository("team/app"), cached)
            local.core.blobs.adopt(cached.digest, draft)
            shared = Link(Digest.of(LAYER), "application/octet-stream", len(LAYER), Origin.PULLED)
            local.core.links.hold("quay.io", Repository("team/app"), shared)
            local.age(HOUR * 24 * 365)
            swept = sweeper(local, 6).sweep()
            assert swept is not None
            assert (swept.total, swept.removed) == (6, 0)
            swept = sweeper(local, 1).sweep()
            assert swept is not None
            assert (swept.total, swept.removed, swept.freed) == (6, 1, 6)
            assert local.blobs() == {digest, *map(digest_of, (LAYER, CONFIG, b"just pushed"))}
            assert {str(each) for each in owned(local.layout)} == local.blobs()
            swept = sweeper(local, 1).sweep(1 << 30)
            assert swept is not None
            assert swept.removed == 0

    asyncio.run(run())


def test_linked_while_it_is_swept(tmp_path: Path) -> None:
    """A sweep looks again before it removes: what a push has linked meanwhile stays."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            store = Store(local.layout, local.core.blobs)
            draft = tmp_path / "draft"
            draft.write_bytes(LAYER)
            link = Link(Digest.of(LAYER), "application/octet-stream", len(LAYER), Origin.PULLED)
            local.core.links.hold("quay.io", Repository("team/app"), link)
            local.core.blobs.adopt(link.digest, draft)
            local.age(HOUR * 2)

            def limit(_: int) -> int:
                # It has been decided by now what there is.
                store.link(Repository("mine"), link.digest)
                return 1

            core = local.core
            swept = Sweeper(layout=local.layout, blobs=core.blobs, links=core.links, limit=limit).sweep()
            assert swept is not None
            assert swept.removed == 0
            assert (await local.ask("GET", f"/v2/mine/blobs/{link.digest}")).body == LAYER

    asyncio.run(run())


def test_nobody_removes_while_somebody_links(tmp_path: Path) -> None:
    """Who removes waits for who links, and lets nobody begin to meanwhile."""
    layout = Layout(tmp_path, "")
    layout.run.mkdir()
    with linking(layout), linking(layout), layout.linking.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with layout.linking.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_forgetting_leaves_it_alone(tmp_path: Path) -> None:
    """The links to what was evicted leave, but for those of a push that has brought it anew."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            await local.push("a", "1", LAYER)
            link = Link(Digest.of(LAYER), "application/octet-stream", len(LAYER), Origin.PULLED)
            local.core.links.hold("quay.io", Repository("team/app"), link)
            local.core.links.forget({link.digest})
            assert [*(tmp_path / "data/links/quay.io").rglob("sha256-*")] == []
            assert (await local.ask("GET", f"/v2/a/blobs/{link.digest}")).status == 200

    asyncio.run(run())
