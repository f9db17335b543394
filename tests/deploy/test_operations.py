"""What docs/operations.md tells to copy is what a cache on another disk or another host needs."""

import shutil
from pathlib import Path

from mitm_cache.demo.image import Image, generate
from tests.fakes.registry import LyingUpstream
from tests.serving import Threaded, in_thread


def stocked(upstream: LyingUpstream) -> Image:
    """An image in the registry."""
    image = generate(sizes=(4096, 100_000), platforms=["linux/amd64"])
    upstream.registry.put("team/app", image, "1")
    return image


def pull(cache: Threaded, image: Image, ca_file: Path) -> None:
    """Pull it as a client that trusts this certificate only."""
    cache.ca_file = ca_file
    assert cache.puller().pull("team/app", "1").digest == image.index.digest


def copy(what: list[str], old: Path, new: Path) -> None:
    new.mkdir(mode=0o700)
    for name in what:
        if (old / name).is_dir():
            shutil.copytree(old / name, new / name)
        else:
            shutil.copy2(old / name, new / name)


def test_a_backup_is_enough(tmp_path: Path) -> None:
    """FORMAT, the CA, blobs and links: the same CA, and nothing is fetched again."""
    old, new = tmp_path / "old", tmp_path / "new"
    with LyingUpstream(tmp_path) as upstream:
        image = stocked(upstream)
        with in_thread(old, upstream) as cache:
            pull(cache, image, old / "ca/ca.crt")
        copy(["FORMAT", "ca", "blobs", "links"], old, new)
        upstream.requests.clear()
        with in_thread(new, upstream) as cache:
            pull(cache, image, old / "ca/ca.crt")
        content = [each for each in upstream.requests.select() if each.kind in ("manifest", "blob", "object")]
        assert content == []
        assert (old / "FORMAT").read_text() == (new / "FORMAT").read_text()


def test_two_hosts_with_one_ca(tmp_path: Path) -> None:
    """Key and certificate alone make a second host whose answers the nodes trust, and which is another cache."""
    one, other = tmp_path / "one", tmp_path / "other"
    with LyingUpstream(tmp_path) as upstream:
        image = stocked(upstream)
        with in_thread(one, upstream) as cache:
            pull(cache, image, one / "ca/ca.crt")
        (other / "ca").mkdir(parents=True, mode=0o700)
        for name in ("ca.key", "ca.crt"):
            shutil.copy2(one / "ca" / name, other / "ca")
        with in_thread(other, upstream) as cache:
            pull(cache, image, one / "ca/ca.crt")
        assert (one / "FORMAT").read_text() != (other / "FORMAT").read_text()
