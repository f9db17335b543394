"""The type of a manifest by its bytes alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.oci.looks import type_within
from mitm_cache.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SCHEMA_1


@pytest.mark.parametrize(
    ("fields", "media_type"),
    [
        *(({"mediaType": each}, each) for each in (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)),
        ({"manifests": []}, OCI_INDEX),
        ({"config": {}, "layers": []}, OCI_MANIFEST),
        *(({"mediaType": each, "layers": []}, "") for each in SCHEMA_1),
        ({"schemaVersion": 1, "fsLayers": []}, ""),
        ({"mediaType": "text/html", "layers": []}, ""),
        ({"mediaType": "a/manifest\r\nX-Evil: 1"}, ""),
        ({"mediaType": ["application/manifest"]}, ""),
        ({"architecture": "amd64", "rootfs": {}}, ""),
        ({}, ""),
        ([], ""),
        (7, ""),
    ],
)
def test_types(fields: object, media_type: str) -> None:
    """Its own word counts first, then its form; what is no manifest that clients take has none."""
    assert type_within(json.dumps(fields).encode()) == media_type


@given(st.binary())
def test_any_bytes(content: bytes) -> None:
    """A layer may be asked for as a manifest."""
    assert type_within(content).isascii()
