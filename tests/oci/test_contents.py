"""What a manifest refers to."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.demo.image import KIB, generate
from mitm_cache.oci.contents import Contents, Descriptor
from mitm_cache.oci.digest import Digest

ONE, TWO = (Digest("sha256", digit * 64) for digit in "12")


def read(document: Any) -> Contents:
    return Contents.of(json.dumps(document).encode())


def test_image() -> None:
    """An index lists manifests by platform; a manifest has a configuration and layers."""
    image = generate(sizes=[KIB, 2 * KIB])
    listed = Contents.of(image.index.body)
    assert listed.blobs == ()
    assert {one.platform: (str(one.digest), one.media_type) for one in listed.manifests} == {
        name: (each.digest, each.media_type) for name, each in image.platforms.items()
    }
    for each in image.platforms.values():
        contents = Contents.of(each.body)
        assert contents.manifests == ()
        assert [image.blobs[str(one.digest)].size for one in contents.blobs] == [one.size for one in contents.blobs]
        assert len(contents.blobs) == 3


def test_once() -> None:
    """A layer that is there twice is one content."""
    layer = {"digest": str(ONE), "size": 5}
    assert read({"config": {"digest": str(TWO), "size": 2}, "layers": [layer, layer]}).blobs == (
        Descriptor(TWO, 2),
        Descriptor(ONE, 5),
    )


def test_platform() -> None:
    """With its variant, as people write it."""
    platform = {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1"}
    assert read({"manifests": [{"digest": str(ONE), "platform": platform}]}).manifests[0].platform == "linux/arm/v7"


def test_build_cache() -> None:
    """What an index lists that is no manifest, by its type, is a blob, as in a build cache of BuildKit."""
    image, layer = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.layer.v1.tar+gzip"
    listed = [
        {"digest": str(TWO), "size": 7, "mediaType": layer},
        {"digest": str(ONE), "size": 5, "mediaType": image},
    ]
    found = read({"manifests": listed})
    assert (found.manifests, found.blobs) == ((Descriptor(ONE, 5, image),), (Descriptor(TWO, 7, layer),))


@pytest.mark.parametrize(
    "item",
    [5, {}, {"digest": "md5:0"}, {"digest": 5}, [str(ONE)], {"digest": None}],
)
def test_nonsense_is_left_out(item: object) -> None:
    """What names no content is no content."""
    assert read({"manifests": [item], "layers": [item], "config": item}) == Contents()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"5", b"[" * 100_000, b'{"layers": 5, "manifests": {}}'])
def test_no_manifest(content: bytes) -> None:
    """Other bytes refer to nothing."""
    assert Contents.of(content) == Contents()


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just(str(ONE))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["digest", "size", "platform", "os", "mediaType"]), inner, max_size=4),
    ),
)


@given(st.dictionaries(st.sampled_from(["manifests", "layers", "config"]), anything))
def test_any_document(document: dict[str, Any]) -> None:
    """Whatever a document says, sizes are numbers and platforms can be printed."""
    contents = read(document)
    for one in (*contents.manifests, *contents.blobs):
        assert one.size >= 0
        assert one.platform.isprintable()
        assert one.digest == ONE
