"""An S3-like host: objects are had by URLs that somebody who knows the secret has signed, and in no other way."""

import hashlib
import hmac
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import override
from urllib.parse import quote, urlencode

from mitm_cache.demo.content import Content
from mitm_cache.demo.host import Host
from mitm_cache.demo.ledger import Ledger
from mitm_cache.demo.message import Answer, Incoming, ranged, text

_SECRET = b"the demo's own secret"
_STAMP = "%Y%m%dT%H%M%SZ"


class Storage(Host):
    """Holds objects by path. A URL is signed for one method, one path and a time, as S3's presigned URLs are."""

    def __init__(
        self,
        name: str = "blobs.demo",
        *,
        tls: ssl.SSLContext | None,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name, tls=tls, ledger=ledger)
        self.clock = clock
        self.lifetime = 600
        self.objects: dict[str, Content] = {}

    def put(self, digest: str, content: Content) -> str:
        """Keep a blob; returns its path."""
        algorithm, _, encoded = digest.partition(":")
        path = f"/demo-bucket/blobs/{algorithm}/{encoded[:2]}/{encoded}/data"
        self.objects[path] = content
        return path

    def sign(self, path: str, *, method: str = "GET", name: str | None = None) -> str:
        """A URL that is good for one method and for `lifetime` seconds."""
        date = datetime.fromtimestamp(self.clock(), UTC).strftime(_STAMP)
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"DEMO/{date[:8]}/us-east-1/s3/aws4_request",
            "X-Amz-Date": date,
            "X-Amz-Expires": str(self.lifetime),
            "X-Amz-SignedHeaders": "host",
        }
        query["X-Amz-Signature"] = _signature(method, path, date, query["X-Amz-Expires"])
        return self.url(f"{quote(path)}?{urlencode(query)}", name=name)

    @override
    def kind(self, method: str, path: str) -> str:
        return "object"

    @override
    def answer(self, incoming: Incoming) -> Answer:
        query = incoming.query
        date, expires = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        if "authorization" in incoming.headers:
            return _error(400, "InvalidArgument", "Only one auth mechanism allowed")
        if "X-Amz-Signature" not in query:
            return _error(403, "AccessDenied", "Access Denied")
        expected = _signature(incoming.method, incoming.path, date, expires)
        if not hmac.compare_digest(expected, query["X-Amz-Signature"]):
            return _error(403, "SignatureDoesNotMatch", "The signature we calculated does not match")
        signed = datetime.strptime(date, _STAMP).replace(tzinfo=UTC).timestamp()
        if self.clock() > signed + int(expires):
            return _error(403, "AccessDenied", "Request has expired")
        content = self.objects.get(incoming.path)
        if content is None:
            return _error(404, "NoSuchKey", "The specified key does not exist.")
        etag = hashlib.md5(incoming.path.encode(), usedforsecurity=False).hexdigest()
        return ranged(incoming, content, {"Content-Type": "application/octet-stream", "ETag": f'"{etag}"'})


def _signature(method: str, path: str, date: str, expires: str) -> str:
    return hmac.new(_SECRET, f"{method}\n{path}\n{date}\n{expires}".encode(), hashlib.sha256).hexdigest()


def _error(status: int, code: str, message: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return text(status, body, "application/xml")
