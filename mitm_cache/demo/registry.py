"""A small, honest registry (pull side): manifests are its own, blobs are had by redirect from a storage host."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, override

from mitm_cache.demo.access import Access
from mitm_cache.demo.content import Content, Memory
from mitm_cache.demo.host import Host
from mitm_cache.demo.image import Image, Manifest
from mitm_cache.demo.ledger import Ledger
from mitm_cache.demo.message import Answer, Incoming, document, full, problem, ranged, redirect
from mitm_cache.demo.storage import Storage

_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<room>manifests|blobs|tags)/(?P<reference>[^/]+)")
_RELATIVE = re.compile(r"/artifacts-downloads/(?P<reference>[^/]+)")


@dataclass(slots=True)
class Repository:
    """What one name holds; `tags` gives the digest."""

    tags: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    blobs: dict[str, Content] = field(default_factory=dict)


class Registry(Host):
    """Answers for its repositories.

    `blobs` says how a blob is given: "signed" redirects to a signed URL of the storage host, "relative" to another path
    of this host (as gcr.io does), "direct" not at all. `storage_name` is how redirects call the storage host: its
    address, because that needs no DNS.
    """

    def __init__(
        self,
        name: str = "registry.demo",
        *,
        tls: ssl.SSLContext | None,
        storage: Storage,
        ledger: Ledger | None = None,
        access: Access | None = None,
    ) -> None:
        super().__init__(name, tls=tls, ledger=ledger)
        self.storage = storage
        self.storage_name = "127.0.0.1"
        self.access = access or Access()
        self.blobs: Literal["signed", "relative", "direct"] = "signed"
        self.repositories: dict[str, Repository] = {}
        self.manifest_headers: dict[str, str] = {}

    def put(self, repository: str, image: Image, *tags: str) -> None:
        """Take in an image and let `tags` point to it from now on."""
        here = self.repositories.setdefault(repository, Repository())
        here.manifests |= image.manifests
        here.blobs |= image.blobs
        here.tags |= dict.fromkeys(tags, image.index.digest)
        for digest, content in image.blobs.items():
            self.storage.put(digest, content)

    @override
    def kind(self, method: str, path: str) -> str:
        """ping, token, tag (a manifest by tag), manifest (by digest), blob, tags, download or other."""
        if path in ("/v2/", "/v2", "/token"):
            return "token" if path == "/token" else "ping"
        if _RELATIVE.fullmatch(path):
            return "download"
        if not (found := _PATH.fullmatch(path)):
            return "other"
        room = {"manifests": "manifest" if ":" in found["reference"] else "tag", "blobs": "blob", "tags": "tags"}
        return room[found["room"]]

    @override
    def answer(self, incoming: Incoming) -> Answer:
        if incoming.kind == "token":
            return self.access.token(incoming)
        if incoming.method not in ("GET", "HEAD"):
            return problem(405, "UNSUPPORTED", "this registry is for pulling", _VERSION)
        if incoming.kind == "ping":
            return self.access.refuse(incoming, None) or document(200, {}, _VERSION)
        if found := _RELATIVE.fullmatch(incoming.path):
            return self._download(incoming, found["reference"])
        if found := _PATH.fullmatch(incoming.path):
            return self.access.refuse(incoming, found["repository"]) or self._look_up(incoming, found)
        return problem(404, "UNSUPPORTED", f"nothing at {incoming.path}", _VERSION)

    def _look_up(self, incoming: Incoming, found: re.Match[str]) -> Answer:
        here = self.repositories.get(found["repository"])
        if here is None:
            return problem(404, "NAME_UNKNOWN", f"no repository {found['repository']}", _VERSION)
        if found["room"] == "tags":
            return _tags(here, incoming, found)
        return (_manifest if found["room"] == "manifests" else _blob)(self, here, incoming, found["reference"])

    def _download(self, incoming: Incoming, digest: str) -> Answer:
        for here in self.repositories.values():
            if digest in here.blobs:
                return ranged(incoming, here.blobs[digest], {"Content-Type": "application/octet-stream"})
        return problem(404, "BLOB_UNKNOWN", f"no blob {digest}")


def _tags(here: Repository, incoming: Incoming, found: re.Match[str]) -> Answer:
    if found["reference"] != "list":
        return problem(404, "UNSUPPORTED", "only tags/list is known", _VERSION)
    names = [tag for tag in sorted(here.tags) if tag > incoming.query.get("last", "")]
    number = incoming.query.get("n", "")
    page = names[: int(number)] if number.isdecimal() else names
    link = {"Link": f'<{incoming.path}?n={len(page)}&last={page[-1]}>; rel="next"'} if page and page != names else {}
    return document(200, {"name": found["repository"], "tags": page}, _VERSION | link)


def _manifest(registry: Registry, here: Repository, incoming: Incoming, reference: str) -> Answer:
    manifest = here.manifests.get(here.tags.get(reference, reference))
    if manifest is None:
        return problem(404, "MANIFEST_UNKNOWN", f"no manifest {reference}", _VERSION)
    if not _accepts(incoming.headers, manifest.media_type):
        return problem(404, "MANIFEST_UNKNOWN", f"{manifest.media_type} found, but not accepted", _VERSION)
    headers = {"Content-Type": manifest.media_type, "Docker-Content-Digest": manifest.digest, **_VERSION}
    return full(200, Memory(manifest.body), headers | registry.manifest_headers)


def _accepts(headers: Mapping[str, str], media_type: str) -> bool:
    accepted = {each.partition(";")[0].strip() for each in headers.get("accept", "*/*").split(",")}
    return bool(accepted & {media_type, "*/*", "application/*"})


def _blob(registry: Registry, here: Repository, incoming: Incoming, digest: str) -> Answer:
    content = here.blobs.get(digest)
    if content is None:
        return problem(404, "BLOB_UNKNOWN", f"no blob {digest}", _VERSION)
    # HEAD is answered here: what a storage host signs for GET it refuses for HEAD.
    if incoming.method == "GET" and registry.blobs == "signed":
        return redirect(registry.storage.sign(registry.storage.put(digest, content), name=registry.storage_name))
    if incoming.method == "GET" and registry.blobs == "relative":
        return redirect(f"/artifacts-downloads/{digest}", 302)
    headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest, **_VERSION}
    return ranged(incoming, content, headers)
