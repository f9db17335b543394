"""The exceptions of mitm-cache, one level deep, by whose fault they are.

Each carries the HTTP status and the OCI error code (distribution-spec 1.1, "Error Codes") that a client is
answered with. Foreign exceptions are mapped to these at the border of the room that uses the library.
"""


class MitmCacheError(Exception):
    """Anything this program refuses or fails at, with the answer that a client gets."""

    status = 500
    code = "UNKNOWN"

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status
        if code is not None:
            self.code = code


class ClientError(MitmCacheError):
    """The request is malformed or asks for what this cache does not do."""

    status = 400
    code = "UNSUPPORTED"


class LoginError(ClientError):
    """Who asks has to be known: the client is challenged for a user of the cache's own."""

    status = 401
    code = "UNAUTHORIZED"


class TokenError(LoginError):
    """A token that is none of this cache, or none any more: the client is to get another one, and to ask again."""


class UpstreamError(MitmCacheError):
    """A registry, or a host it redirects to, cannot be reached or answers nonsense.

    `retry_after` is the value of upstream's own Retry-After, where it sent one.
    """

    status = 502

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.retry_after = retry_after


class UnreachableError(UpstreamError):
    """A registry gives no answer at all: nobody is there, or nobody speaks."""


class OfflineError(UpstreamError):
    """The operator has said that a registry is not to be asked."""

    status = 404
    code = "MANIFEST_UNKNOWN"


class LoopError(UpstreamError):
    """The way upstream leads back to this cache."""

    status = 508


class StoppingError(UpstreamError):
    """This process is shutting down; what it was fetching is left to be carried on."""

    status = 503


class IntegrityError(MitmCacheError):
    """Bytes do not match the digest or the size that was promised."""

    status = 502
    code = "DIGEST_INVALID"


class StoreError(MitmCacheError):
    """The data directory cannot be read or written."""

    status = 503


class ConfigError(MitmCacheError):
    """The operator's configuration, command line or key material is wrong; the message says what is allowed."""
