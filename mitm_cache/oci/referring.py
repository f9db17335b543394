"""Manifests that refer to another one: signatures, lists of parts (OCI image-spec 1.1, "subject"). Pure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_INDEX


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest's own word on what it is about; `size` in bytes."""

    subject: Digest
    digest: Digest
    size: int
    media_type: str
    artifact_type: str = ""
    annotations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: bytes, digest: Digest, media_type: str) -> Self | None:
        """From a manifest's bytes; None where it refers to no other."""
        try:
            document = json.loads(content)
            subject = Digest.parse(str(document["subject"]["digest"]))
        except (ValueError, KeyError, TypeError, RecursionError, ClientError):
            return None
        annotations = document.get("annotations")
        pairs = annotations.items() if isinstance(annotations, dict) else ()
        return cls(
            subject,
            digest,
            len(content),
            media_type,
            _artifact_type(document),
            {key: value for key, value in pairs if isinstance(value, str)},
        )

    def descriptor(self) -> dict[str, object]:
        """As it stands in a registry's list of referrers."""
        fields: dict[str, object] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type:
            fields["artifactType"] = self.artifact_type
        if self.annotations:
            fields["annotations"] = self.annotations
        return fields


def listing(referrers: Iterable[Referrer]) -> bytes:
    """The list of referrers that a registry answers with (distribution-spec, "Listing Referrers")."""
    found = sorted(referrers, key=lambda one: one.digest)
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one.descriptor() for one in found]}
    return json.dumps(document, separators=(",", ":")).encode()


def _artifact_type(document: dict[str, Any]) -> str:
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else "")
    return kind if isinstance(kind, str) else ""
