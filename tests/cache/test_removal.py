"""What leaves with an image, what stays, and what is left when a removal meets other work."""

import fcntl
import os
import threading
import time
from collections.abc import Callable

import pytest

from mitm_cache.cache.catalog import Cached, Catalog
from mitm_cache.cache.confirmed import Confirmed
from mitm_cache.cache.entry import Link, Origin
from mitm_cache.cache.evict import alone
from mitm_cache.cache.pins import Pins
from mitm_cache.cache.removal import Remover, plan
from mitm_cache.demo.image import KIB, assemble, generate, layer
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_INDEX
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.registries import LOCAL
from tests.stored import ACCEPT, DAY, HOUR, REGISTRY, Stored

AMD = "linux/amd64"
APP = Repository("team/app")
BASE, LEFT, RIGHT = (layer(name, size) for name, size in (("base", 4 * KIB), ("left", 2 * KIB), ("right", KIB)))
ONE, OTHER = assemble({AMD: [BASE, LEFT]}), assemble({AMD: [BASE, RIGHT]})


def named(*names: str) -> Callable[[Catalog], list[Cached]]:
    """Picks images by their whole names."""
    return lambda catalog: [image for image in catalog.images if str(image) in names]


def links(stored: Stored) -> set[str]:
    """Every link there is, by its place."""
    kinds = ("_tags", "_digests")
    files = [path.relative_to(stored.layout.links) for path in stored.layout.links.rglob("*") if path.is_file()]
    return {str(path) for path in files if set(kinds) & set(path.parts)}


def test_shared_layers_stay(stored: Stored) -> None:
    """What another image needs stays, in another repository too; the rest is freed to the byte, with its links."""
    stored.put("team/app", "1", ONE)
    stored.put("team/other", "1", OTHER)
    before, alone = stored.size(), Catalog(stored.root).sizes(stored.find("quay.io/team/app:1"))[0]
    assert Remover(stored.layout).preview(named("quay.io/team/app:1")).freed == alone
    assert stored.size() == before
    removed = Remover(stored.layout).remove(named("quay.io/team/app:1"))
    assert (removed.freed, removed.blobs, removed.young) == (alone, 4, 0)  # index, manifest, configuration, one layer
    assert stored.size() == before - alone
    assert stored.names() == ["quay.io/team/other:1"]
    assert {name.split("/_")[0] for name in links(stored)} == {"quay.io/team/other"}
    assert Catalog(stored.root).is_complete(stored.find("quay.io/team/other:1"))
    stored.index.put("barrier", "x")
    assert stored.links.tagged(REGISTRY, APP, Tag("1"), ACCEPT) is None
    assert stored.links.holds(REGISTRY, APP, Digest.parse(BASE.content.digest)) is None


def test_another_tag_of_it(stored: Stored) -> None:
    """A tag that leaves takes nothing with it that another tag needs."""
    stored.put("team/app", "1", ONE)
    stored.put("team/app", "2", ONE)
    before = stored.size()
    assert Remover(stored.layout).remove(named("quay.io/team/app:1")).freed == 0
    assert (stored.names(), stored.size()) == (["quay.io/team/app:2"], before)
    assert Remover(stored.layout).remove(named("quay.io/team/app:2")).freed == before
    assert (stored.names(), stored.size(), links(stored)) == ([], 0, set())


def test_what_upstream_said(stored: Stored) -> None:
    """The index forgets a removed tag too, or it would be served on from there while another name keeps it here."""
    top = stored.put("team/app", "1", ONE)
    stored.put("team/app", "2", ONE)
    confirmed = Confirmed(stored.index)
    confirmed.keep(REGISTRY, APP, Tag("1"), ACCEPT, Link(top, OCI_INDEX, 3), time.time())
    stored.index.put("barrier", "x")
    Remover(stored.layout).remove(named("quay.io/team/app:1"))
    assert confirmed.find(REGISTRY, APP, Tag("1"), ACCEPT) is None
    assert stored.names() == ["quay.io/team/app:2"]


def test_what_a_tag_was(stored: Stored) -> None:
    """A tag that has moved, and was pulled by the new digest, stays that when the old image leaves; the file too."""
    stored.put("team/app", "1", ONE)
    top = stored.put("team/app", None, OTHER)
    confirmed, link = Confirmed(stored.index), Link(top, OCI_INDEX, len(OTHER.index.body))
    confirmed.keep(REGISTRY, APP, Tag("1"), ACCEPT, link, time.time())
    stored.index.put("barrier", "x")
    old = f"quay.io/team/app@{ONE.index.digest}"
    assert stored.names() == [old, "quay.io/team/app:1"]
    Remover(stored.layout).remove(named(old))
    assert stored.names() == ["quay.io/team/app:1"]
    assert stored.find("quay.io/team/app:1").digest == top
    assert confirmed.find(REGISTRY, APP, Tag("1"), ACCEPT) is not None
    stored.lose_index()
    assert stored.names() == ["quay.io/team/app:1"]
    Remover(stored.layout).remove(named("quay.io/team/app:1"))
    assert (stored.names(), stored.size(), links(stored)) == ([], 0, set())


def test_both_that_a_tag_was(stored: Stored) -> None:
    """A tag that leaves does not come back as what it was before."""
    stored.put("team/app", "1", ONE)
    top = stored.put("team/app", None, OTHER)
    Confirmed(stored.index).keep(REGISTRY, APP, Tag("1"), ACCEPT, Link(top, OCI_INDEX, 3), time.time())
    stored.index.put("barrier", "x")
    Remover(stored.layout).remove(named("quay.io/team/app:1"))
    assert stored.names() == [f"quay.io/team/app@{ONE.index.digest}"]


def test_broken_off(stored: Stored) -> None:
    """What has left by then is not told of by the index either."""
    stored.put("team/app", "1", ONE)
    held = stored.layout.links / REGISTRY / str(APP) / "_digests" / Digest.parse(BASE.content.digest).filename

    def choose(catalog: Catalog) -> list[Cached]:
        if held.is_file():
            held.unlink()
            held.mkdir()  # which is not removed as a link is
        return named("quay.io/team/app:1")(catalog)

    with pytest.raises(StoreError, match="cannot be removed"):
        Remover(stored.layout).remove(choose)
    assert not any("/_tags/" in name for name in links(stored))
    stored.index.put("barrier", "x")
    assert stored.links.tagged(REGISTRY, APP, Tag("1"), ACCEPT) is None


def test_young_ones_stay(stored: Stored) -> None:
    """What was used within minutes may be part of a pull: the name leaves, and the bytes do later."""
    stored.put("team/app", "1", ONE, age=10)
    before = stored.size()
    removed = Remover(stored.layout).remove(named("quay.io/team/app:1"))
    assert (removed.freed, removed.young_bytes) == (0, before)
    assert (stored.names(), stored.size()) == ([], before)
    for digest in Catalog(stored.root).blobs:
        stored.use(digest, 600)
    assert Remover(stored.layout).remove(named(), strays=True).freed == before
    assert stored.size() == 0


def test_strays(stored: Stored) -> None:
    """Content that no image needs leaves where that is asked for, and its links with it; else it stays."""
    stored.put("team/app", "1", ONE)
    stored.put("team/app", "2", OTHER)
    manifest = Digest.parse(OTHER.index.digest)
    stored.blobs.remove(manifest)
    stored.blobs.remove(Digest.parse(OTHER.platforms[AMD].digest))
    before = stored.size()
    assert plan(Catalog(stored.root), []).blobs == {}
    removed = Remover(stored.layout).remove(named(), strays=True)
    assert (removed.images, removed.blobs) == ((), 2)  # its configuration and its layer
    assert stored.size() == before - removed.freed
    assert Catalog(stored.root).is_complete(stored.find("quay.io/team/app:1"))
    assert f"quay.io/team/app/_digests/{Digest.parse(RIGHT.content.digest).filename}" not in links(stored)


def test_order(stored: Stored) -> None:
    """What refers leaves before what it refers to: a removal that is broken off leaves no image by halves."""
    image = generate(sizes=[KIB, KIB], platforms=[AMD, "linux/arm64"])
    stored.put("team/app", "1", image)
    catalog = Catalog(stored.root)
    leaving = list(plan(catalog, catalog.images).blobs)
    assert leaving[0] == Digest.parse(image.index.digest)
    assert set(leaving[1:3]) == {Digest.parse(each.digest) for each in image.platforms.values()}
    assert len(leaving) == 3 + len(image.blobs)


def test_what_comes_meanwhile(stored: Stored) -> None:
    """An image that arrives between the choice and the removal keeps what it shares."""
    stored.put("team/app", "1", ONE)

    def choose(catalog: Catalog) -> list[Cached]:
        stored.put("team/other", "1", OTHER)
        return named("quay.io/team/app:1")(catalog)

    Remover(stored.layout).remove(choose)
    assert Catalog(stored.root).is_complete(stored.find("quay.io/team/other:1"))
    assert stored.names() == ["quay.io/team/other:1"]


def test_what_comes_after_the_plan(stored: Stored) -> None:
    """An image that arrives when the last choice has been made keeps what it shares, and a name that comes back too."""
    stored.put("team/app", "1", ONE)
    rounds = []

    def choose(catalog: Catalog) -> list[Cached]:
        chosen = named("quay.io/team/app:1")(catalog)
        rounds.append(chosen)
        if len(rounds) == 2:
            stored.put("team/other", "1", OTHER)
        return chosen

    Remover(stored.layout).remove(choose)
    assert len(rounds) == 2
    assert Catalog(stored.root).is_complete(stored.find("quay.io/team/other:1"))
    assert stored.names() == ["quay.io/team/other:1"]


def test_another_tag_after_the_plan(stored: Stored) -> None:
    """The very image, pulled by another tag of its repository when the last choice has been made, stays there."""
    stored.put("team/app", "1", ONE)
    rounds = []

    def choose(catalog: Catalog) -> list[Cached]:
        chosen = named("quay.io/team/app:1")(catalog)
        rounds.append(chosen)
        if len(rounds) == 2:
            stored.put("team/app", "2", ONE)
        return chosen

    assert Remover(stored.layout).remove(choose).blobs == 0
    assert len(rounds) == 2
    assert stored.names() == ["quay.io/team/app:2"]
    assert Catalog(stored.root).is_complete(stored.find("quay.io/team/app:2"))


def test_held_elsewhere_meanwhile(stored: Stored) -> None:
    """The very image, pulled by another name between the choice and the removal, stays whole there."""
    stored.put("team/app", "1", ONE)
    rounds = []

    def choose(catalog: Catalog) -> list[Cached]:
        chosen = named("quay.io/team/app:1")(catalog)
        rounds.append(chosen)
        if len(rounds) == 1:
            stored.put("team/other", "1", ONE)
        return chosen

    removed = Remover(stored.layout).remove(choose)
    assert (removed.blobs, removed.young) == (0, 0)
    assert stored.names() == ["quay.io/team/other:1"]
    assert Catalog(stored.root).is_complete(stored.find("quay.io/team/other:1"))


def test_pinned_meanwhile(stored: Stored) -> None:
    """A pin counts until nobody else may set one."""
    top = stored.put("team/app", "1", ONE)
    before = stored.size()

    def choose(catalog: Catalog) -> list[Cached]:
        chosen = [image for image in catalog.images if not image.pinned]
        Pins(stored.layout.links).add(REGISTRY, APP, Tag("1"), top)
        return chosen

    assert Remover(stored.layout).remove(choose).images == ()
    assert (stored.names(), stored.size()) == (["quay.io/team/app:1"], before)


def test_used_meanwhile(stored: Stored) -> None:
    """What is old when it is chosen and was used before it can leave does not."""
    top = stored.put("team/app", "1", ONE, age=9 * DAY)

    def choose(catalog: Catalog) -> list[Cached]:
        chosen = [image for image in catalog.images if (catalog.used(image) or 0) < time.time() - DAY]
        stored.use(top, HOUR)
        return chosen

    assert Remover(stored.layout).remove(choose).images == ()
    assert stored.names() == ["quay.io/team/app:1"]


def test_evicted_meanwhile(stored: Stored) -> None:
    """What a sweep has removed since the choice is no part of what is removed."""
    stored.put("team/app", "1", ONE)

    def choose(catalog: Catalog) -> list[Cached]:
        chosen = named("quay.io/team/app:1")(catalog)
        for digest in list(stored.blobs.names()):
            stored.blobs.remove(digest)
        return chosen

    removed = Remover(stored.layout).remove(choose)
    assert (removed.images, removed.blobs, removed.freed) == ((), 0, 0)


def test_a_stray_that_is_evicted_meanwhile(stored: Stored) -> None:
    """What no image needs, and a sweep has removed since it was listed, is passed over."""
    stray = stored.keep(b"stray")
    stored.use(stray, HOUR)

    def choose(catalog: Catalog) -> list[Cached]:
        assert stray in catalog.blobs
        stored.blobs.remove(stray)
        return []

    assert Remover(stored.layout).remove(choose, strays=True).blobs == 0
    stored.use(stored.keep(b"stray"), HOUR)
    assert Remover(stored.layout).preview(choose, strays=True).blobs == 0


def test_others_may_sweep(stored: Stored) -> None:
    """While the catalog is read nobody is kept waiting; who chooses for the last time is alone."""
    stored.put("team/app", "1", ONE)
    free = []

    def choose(catalog: Catalog) -> list[Cached]:
        with alone(stored.layout.evicting) as mine:
            free.append(mine)
        return catalog.images

    Remover(stored.layout).remove(choose)
    assert (free, stored.names()) == ([True, False], [])


def test_what_the_local_registry_holds(stored: Stored) -> None:
    """What was pushed and is no part of an image yet is not for others to remove; a name that leaves takes its own."""
    stored.put("team/app", "1", ONE)
    mine = Link(Digest.parse(LEFT.content.digest), "application/octet-stream", LEFT.content.size, Origin.LOCAL)
    stored.links.hold(LOCAL, APP, mine)
    Remover(stored.layout).remove(named("quay.io/team/app:1"), strays=True)
    assert links(stored) == {f"local/team/app/_digests/{mine.digest.filename}"}
    assert list(stored.blobs.names()) == [mine.digest]
    stored.put("team/app", "1", OTHER, registry=LOCAL, origin=Origin.LOCAL)
    for path in (stored.layout.links / LOCAL).rglob("*"):
        os.utime(path, (0, 0))  # no push counts on it
    Remover(stored.layout).remove(named("local/team/app:1"))
    assert list(stored.blobs.names()) == [mine.digest]


def test_one_at_a_time(stored: Stored) -> None:
    """It waits for a sweep that goes on."""
    stored.put("team/app", "1", ONE)
    rounds = [threading.Event(), threading.Event()]
    waiting = iter(rounds)

    def choose(catalog: Catalog) -> list[Cached]:
        next(waiting).set()
        return catalog.images

    with stored.layout.evicting.open("w") as sweep:
        fcntl.flock(sweep, fcntl.LOCK_EX)
        work = threading.Thread(target=Remover(stored.layout).remove, args=[choose])
        work.start()
        assert rounds[0].wait(10)
        assert not rounds[1].wait(0.2)
        assert stored.names() == ["quay.io/team/app:1"]
    work.join()
    assert (rounds[1].is_set(), stored.names()) == (True, [])
