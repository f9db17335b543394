"""An image put into a registry by plain requests, so that there is something to be read."""

import hashlib
import http.client
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from mitm_cache.demo.image import KIB, MANIFEST, generate
from tests.conformance.suite import Existing, SuiteError

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


class Pusher:
    """One connection to a registry in clear text. Raises SuiteError for every answer but 201 and 202."""

    def __init__(self, host: str, port: int, repository: str) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=30)
        self._base = f"/v2/{repository}"

    def _ask(self, method: str, target: str, body: bytes = b"", kind: str = "application/octet-stream") -> str:
        self._connection.request(method, target, body, {"Content-Type": kind})
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status not in (201, 202):
            raise SuiteError(f"{method} {target}: {answer.status} {said.decode(errors='replace')}")
        return answer.headers["Location"] or ""

    def blob(self, content: bytes) -> str:
        """Its digest."""
        digest = _digest(content)
        place = urlsplit(self._ask("POST", f"{self._base}/blobs/uploads/"))
        query = f"{place.query}&" if place.query else ""
        self._ask("PUT", f"{place.path}?{query}digest={digest}", content)
        return digest

    def manifest(self, content: bytes, media_type: str, tag: str = "") -> str:
        """Its digest."""
        self._ask("PUT", f"{self._base}/manifests/{tag or _digest(content)}", content, media_type)
        return _digest(content)

    def close(self) -> None:
        self._connection.close()


def push(host: str, port: int, repository: str) -> Existing:
    """An index with two platforms, under a tag, and an artifact that refers to it."""
    image = generate(sizes=[3 * KIB, 40 * KIB], seed="conformance")
    pusher = Pusher(host, port, repository)
    for content in image.blobs.values():
        pusher.blob(b"".join(content.chunks(0, content.size)))
    for one in image.platforms.values():
        pusher.manifest(one.body, one.media_type)
    top = pusher.manifest(image.index.body, image.index.media_type, "1")
    pusher.blob(EMPTY)
    pusher.manifest(_artifact(image.index.descriptor()), MANIFEST)
    pusher.close()
    return Existing(
        repository=repository,
        tags=("1",),
        manifests=tuple(image.manifests),
        blobs=tuple(image.blobs),
        subjects=(top,),
    )


def _artifact(subject: Mapping[str, object]) -> bytes:
    nothing = {"mediaType": EMPTY_TYPE, "digest": _digest(EMPTY), "size": len(EMPTY)}
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.example.signature",
            "config": nothing,
            "layers": [nothing],
            "subject": subject,
        }
    ).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
