"""What cases of pushes are made of: requests to the cache's own registry, and what it says."""

import hashlib
import json
from collections.abc import Callable

from mitm_cache.oci.manifest import OCI_MANIFEST
from tests.hostile.case import Case
from tests.hostile.scene import MINE, Scene
from tests.proxy.raw import Answer, Raw, request

CONTENT = b"abc"
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
UPLOADS = "/v2/app/blobs/uploads/"
WHOLE = f"{UPLOADS}?digest={DIGEST}"
NOTHING = hashlib.sha256(b"nothing has this").hexdigest()
STRANGER = "127.0.0.1"


def push(target: str, *lines: str, body: bytes = b"", method: str = "POST") -> bytes:
    """A request to the cache's own registry; `lines` say how long its body is, where it has one."""
    return request(target, *(lines or (f"Content-Length: {len(body)}",)), method=method, host=MINE) + body


def tell(scene: Scene, *sent: bytes, method: str = "POST", source: str = STRANGER) -> Answer:
    """The answer to what is sent on a connection of its own."""
    with Raw(scene.cache.address("clear"), source=source) as raw:
        raw.send(*sent)
        return raw.answer(method)


def open_upload(scene: Scene, name: str = "app", source: str = STRANGER) -> str:
    """Where an upload goes on."""
    answer = tell(scene, push(f"/v2/{name}/blobs/uploads/"), source=source)
    assert answer.status == 202
    return answer.headers["location"]


def holds(scene: Scene, name: str, digest: str = DIGEST, source: str = STRANGER) -> bool:
    """Whether a repository gives a blob; asked by GET, which links nothing."""
    return tell(scene, push(f"/v2/{name}/blobs/{digest}", method="GET"), method="GET", source=source).status == 200


def said(name: str, sent: bytes, statuses: tuple[int, ...], method: str = "POST") -> Case:
    """One request, refused with one of these statuses, by the cache alone."""

    def run(scene: Scene) -> None:
        answer = tell(scene, sent, method=method)
        assert answer.status in statuses, (answer.status, answer.body)

    return Case(name, " or ".join(map(str, statuses)), run)


def case(name: str, must: str, run: Callable[[Scene], None], *, asks: bool = False) -> Case:
    return Case(name, must, run, asks=asks)


def kept(scene: Scene, name: str, content: bytes, source: str = STRANGER) -> str:
    """A blob that a repository holds now; its digest."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    sent = push(f"/v2/{name}/blobs/uploads/?digest={digest}", body=content)
    assert tell(scene, sent, source=source).status == 201
    return digest


def image(**more: object) -> bytes:
    """A manifest whose config is the only content that it needs."""
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 3}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []} | more).encode()
