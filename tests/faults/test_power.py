"""The power fails while clients pull: what was kept is right in the next start, whatever else the disk has lost."""

import os
import random
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, MIB, Image
from tests.fakes.big import big_image
from tests.fakes.registry import LyingUpstream
from tests.faults.conftest import Show
from tests.faults.disk import backed, kept, on_disk
from tests.faults.pulls import CLEAN, Place, Tally, Verdict, pull
from tests.needs import needs_root, needs_tool

pytestmark = [
    pytest.mark.faults,
    needs_root(),
    needs_tool("unshare", package="util-linux"),
    needs_tool("mkfs.ext4", package="e2fsprogs"),
]
SEED = int(os.environ.get("MITM_CACHE_FAULTS_SEED", "1"))
CUTS = 10
CLIENTS = 4
REPOSITORY = "team/app"


def test_power_cuts(tmp_path: Path, show: Show) -> None:
    """Ten times: the next start serves every image right, with no damage found, and much of it without upstream."""
    dice = random.Random(SEED)
    images = {f"v{n}": big_image(*(dice.randrange(20 * KIB, 900 * KIB) for _ in range(2))) for n in range(60)}
    folder = tmp_path / "first"
    folder.mkdir()
    cuts = [tmp_path / f"cut-{number}.img" for number in range(CUTS)]
    ended = threading.Event()
    tally = Tally()
    with LyingUpstream(tmp_path) as upstream:
        for tag, image in images.items():
            upstream.registry.put(REPOSITORY, image, tag)
        with on_disk(folder, upstream, disk=backed(200 * MIB, journal=True)) as served:
            place = Place.of(served)

            def keep_pulling(seed: float) -> None:
                own = random.Random(seed)
                while not ended.is_set():
                    tag = own.choice(list(images))
                    pull(place, REPOSITORY, images[tag], tag, tally)

            with ThreadPoolExecutor(CLIENTS) as pool:
                clients = [pool.submit(keep_pulling, dice.random()) for _ in range(CLIENTS)]
                try:
                    for cut in cuts:
                        threading.Event().wait(dice.uniform(0.1, 1.0))
                        served.cut_power(cut)
                finally:
                    ended.set()
                for client in clients:
                    client.result()
        assert tally.words(*(set(Verdict) - CLEAN - {Verdict.RIGHT})) == []
        found: Counter[str] = Counter()
        for number, cut in enumerate(cuts):
            found += start_again(tmp_path / f"again-{number}", upstream, cut, images)
    show(f"\nseed {SEED}: {tally.pulls[Verdict.RIGHT]} pulls right; after {CUTS} cuts: {dict(found)}")
    assert found["hits"] > 0


def start_again(folder: Path, upstream: LyingUpstream, cut: Path, images: Mapping[str, Image]) -> Counter[str]:
    """Serve what a cut has left, to a client of every image; how many blobs were hits, and how many were fetched."""
    folder.mkdir()
    tally = Tally()
    with on_disk(folder, upstream, disk=kept(cut)) as served:
        served.check(folder / "config.toml")
        upstream.requests.clear()
        place = Place.of(served)
        for tag, image in images.items():
            pull(place, REPOSITORY, image, tag, tally)
        assert tally.pulls == {Verdict.RIGHT: len(images)}, tally.notes
        served.check(folder / "config.toml")
        blobs = {digest for image in images.values() for digest in image.blobs}
        return Counter(hits=len(tally.hits & blobs), fetched=upstream.requests.count(kind="object", method="GET"))
