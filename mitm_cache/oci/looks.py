"""What kind of manifest some bytes are, where nobody has said it: by their own word, or their form. Pure."""

import json

from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST, is_schema_1, may_be_manifest

OCTETS = "application/octet-stream"


def is_told(media_type: str) -> bool:
    """Whether a Content-Type says anything about a manifest."""
    return media_type not in ("", OCTETS)


def type_within(content: bytes) -> str:
    """The media type of a manifest or an index; "" where the bytes are neither, or of schema 1."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    own = document.get("mediaType")
    if own:
        good = isinstance(own, str) and own.isascii() and own.isprintable()
        return own if good and may_be_manifest(own) and not is_schema_1(own) else ""
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    return OCI_MANIFEST if isinstance(document.get("layers"), list) else ""
