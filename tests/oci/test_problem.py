"""Error documents."""

import json

from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.oci.problem import document

# Distribution-spec 1.1, "Error Codes".
CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS",
}  # fmt: skip


@given(st.sampled_from(sorted(CODES)), st.text())
def test_document(code: str, message: str) -> None:
    """One error as clients read it, on one line, whatever the message holds."""
    content = document(code, message)
    assert json.loads(content) == {"errors": [{"code": code, "message": message, "detail": None}]}
    assert content.count(b"\n") == 1
    assert content.isascii()
