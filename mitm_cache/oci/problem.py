"""Error documents (OCI distribution-spec 1.1, "Error Codes"): what the cache says when it answers for itself."""

import json

STATUS_CODES = {
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "NAME_UNKNOWN",
    405: "UNSUPPORTED",
    429: "TOOMANYREQUESTS",
}
"""The code that fits a status where nothing more is known."""


def document(code: str, message: str) -> bytes:
    """One error as the JSON body that registry clients print."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode() + b"\n"
