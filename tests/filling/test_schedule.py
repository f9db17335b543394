"""`[[sync]]`: the service fills the cache by itself, one process of it, and goes on whatever happens."""

from pathlib import Path

import pytest

from mitm_cache import parsing
from mitm_cache.cache.synced import Synced, read_synced
from mitm_cache.demo.image import KIB, generate
from mitm_cache.errors import ConfigError
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.serving import process

NAME, HOST = "team/app", "registry.demo"
IMAGE = generate(sizes=[50 * KIB], seed="schedule")


def test_the_service_does_it_once(tmp_path: Path) -> None:
    """With two workers it is done by one; a summary and a metric tell of it; a restart does not repeat it."""
    listed, broken = tmp_path / "images.txt", tmp_path / "broken.yaml"
    listed.write_text(f"{HOST}/{NAME}:1\n")
    broken.write_text("quay.io: [\n")
    more = f"""
[serve]
workers = 2
[[sync]]
file = "{broken}"
every = "1h"
[[sync]]
file = "{listed}"
every = "1h"
"""
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put(NAME, IMAGE, "1")
        data = tmp_path / "data"
        with process(data, upstream, more=more) as served:
            wait_until(lambda: Synced.last(data / "run", str(listed)).finished > 0, "a filling")
            assert served.blobs() == {*IMAGE.manifests, *IMAGE.blobs}
        found = {synced.file: synced for synced in read_synced(data / "run")}
        assert (found[str(listed)].images, found[str(listed)].failed) == (1, 0)
        assert found[str(listed)].succeeded == found[str(listed)].finished
        assert (found[str(broken)].failed, found[str(broken)].succeeded) == (1, 0.0)
        assert upstream.requests.count(kind="tag", method="HEAD", path=f"/v2/{NAME}/manifests/1") == 1
        upstream.requests.clear()
        with process(data, upstream, more=more) as served:
            assert served.puller().pull(NAME, "1").count("MISS") == 0
        assert upstream.requests.count(kind="object") == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"file": "x"}, r"sync is written as \[\[sync\]\]"),
        ([{"every": "6h"}], "sync: file is missing"),
        ([{"file": "/x"}], "sync: every is missing"),
        ([{"file": "/x", "every": "6h", "when": 1}], "sync.when is not a key of this version"),
        ([{"file": "/x", "every": "10s"}], "sync.every: '10s' is less than a minute"),
        ([{"file": "/x", "every": 6}], "sync.every: 6 is not a length of time"),
        ([{"file": "/x", "every": "6h", "platforms": ["arm"]}], "sync.platforms: 'arm' is not one such as"),
    ],
)
def test_wrong(value: object, words: str) -> None:
    """What is wrong in the configuration is said by its key."""
    with pytest.raises(ConfigError, match=words):
        parsing.syncs("sync", value)


def test_damaged_record(tmp_path: Path) -> None:
    """A record that cannot be read is as none."""
    Synced("/a", 1.0, 2.0, 2.0, 3, 0, 4).keep(tmp_path)
    [path] = tmp_path.iterdir()
    assert Synced.last(tmp_path, "/a") == Synced("/a", 1.0, 2.0, 2.0, 3, 0, 4)
    for text in ("", "[]", '{"file": "/a"}', '{"file": "/b"}', "{" * 10000):
        path.write_text(text)
        assert Synced.last(tmp_path, "/a") == Synced("/a")
        assert [one for one in read_synced(tmp_path) if one != Synced("/a")] == []
