"""What a manifest says it is about, and the list that a registry makes of it."""

import json

import pytest

from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mitm_cache.oci.referring import Referrer, listing

SUBJECT, OWN = Digest.of(b"subject"), Digest.of(b"own")


def _of(document: object) -> Referrer | None:
    return Referrer.of(json.dumps(document).encode(), OWN, OCI_MANIFEST)


def test_its_type_is_its_own_or_its_configurations() -> None:
    """`artifactType`, and without one the media type of the configuration (distribution-spec, "Listing Referrers")."""
    about = {"subject": {"digest": str(SUBJECT)}}
    for more in ({"artifactType": "a/b"}, {"config": {"mediaType": "a/b"}}):
        found = _of(about | more)
        assert found is not None
        assert (found.subject, found.digest, found.artifact_type) == (SUBJECT, OWN, "a/b")


@pytest.mark.parametrize(
    "document",
    [[], {}, {"subject": None}, {"subject": {"digest": "md5:1"}}, {"subject": {}}, {"subject": [1]}, "text"],
)
def test_what_refers_to_nothing(document: object) -> None:
    """Whatever it looks like, it is none, and no error."""
    assert _of(document) is None


def test_the_list() -> None:
    """An index in the order of digests, with types and notes; odd notes are left out."""
    about = {"subject": {"digest": str(SUBJECT)}, "annotations": {"k": "v", "odd": 1}, "artifactType": 7}
    one = _of(about)
    other = Referrer(SUBJECT, Digest.of(b"z"), 3, OCI_MANIFEST, "a/b")
    assert one is not None
    document = json.loads(listing([one, other]))
    assert (document["mediaType"], document["schemaVersion"]) == (OCI_INDEX, 2)
    by_digest = {entry["digest"]: entry for entry in document["manifests"]}
    assert list(by_digest) == sorted(by_digest)
    assert by_digest[str(OWN)]["annotations"] == {"k": "v"}
    assert "artifactType" not in by_digest[str(OWN)]
    assert by_digest[str(other.digest)]["artifactType"] == "a/b"
