"""Whatever is pushed as a manifest: it is read, or refused with a code of the specification."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import ClientError
from mitm_cache.local.manifests import MANIFESTS, Pushed, read
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mitm_cache.oci.reference import Tag
from tests.local.registry import CONFIG, build_cache, digest_of, index, manifest

KEYS = ("schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "digest", "urls", "size")
GOOD = {"digest": digest_of(CONFIG), "size": 2}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([2, OCI_MANIFEST, OCI_INDEX, GOOD]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS), below, max_size=6),
    max_leaves=12,
)


def taken(content: bytes, kind: str) -> Pushed | None:
    """What is read; None where it is refused as no manifest."""
    try:
        return read(content, kind, Tag("1"))
    except ClientError as error:
        if (error.status, error.code) != (400, "MANIFEST_INVALID"):
            raise
        return None


@given(st.dictionaries(st.sampled_from(KEYS), VALUES) | VALUES, st.sampled_from([*sorted(MANIFESTS), "", "text/plain"]))
def test_any_document(document: Any, kind: str) -> None:
    """What is taken has a known type, and names every content that it needs."""
    content = json.dumps(document).encode()
    pushed = taken(content, kind)
    if pushed is None:
        return
    assert pushed.link.media_type in MANIFESTS
    assert pushed.link.digest == Digest.of(content)
    assert {str(digest) for digest in (*pushed.manifests, *pushed.blobs)} <= {GOOD["digest"]}


@given(st.binary())
def test_any_bytes(content: bytes) -> None:
    """No bytes lead to anything but that."""
    assert taken(content, OCI_MANIFEST) is None


def test_what_it_needs() -> None:
    """An image needs its configuration and layers, each once; an index its manifests; neither its subject."""
    about = {"digest": digest_of(b"about"), "size": 5}
    image = read(manifest(b"a", b"b", b"a", subject=about), OCI_MANIFEST, Tag("1"))
    assert image.blobs == (Digest.of(CONFIG), Digest.of(b"a"), Digest.of(b"b"))
    assert (image.manifests, image.subject) == ((), Digest.of(b"about"))
    listing = read(index(manifest(), manifest(b"x")), "", Tag("1"))
    assert (listing.blobs, listing.manifests) == ((), (Digest.of(manifest()), Digest.of(manifest(b"x"))))
    cached = read(build_cache(b"{}", b"a", b"b"), "", Tag("1"))
    assert (cached.blobs, cached.manifests) == (tuple(map(Digest.of, (b"a", b"b", b"{}"))), ())
