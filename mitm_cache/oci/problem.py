"""Error documents (OCI distribution-spec 1.1, "Error Codes"): what the cache says when it answers for itself."""

import json


def document(code: str, message: str) -> bytes:
    """One error as the JSON body that registry clients print."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode() + b"\n"
