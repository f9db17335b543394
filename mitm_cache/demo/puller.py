"""A plain client: pulls an image as docker does, believes no byte, and notes what each request brought."""

import base64
import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from mitm_cache.demo.image import INDEX, MANIFEST
from mitm_cache.demo.wire import Address, Wire
from mitm_cache.errors import IntegrityError, UpstreamError

OUTCOME = "X-Cache"

_DOCKER = "application/vnd.docker.distribution.manifest"
_ACCEPT = f"{MANIFEST}, {INDEX}, {_DOCKER}.v2+json, {_DOCKER}.list.v2+json"
_MAX_MANIFEST = 4 * 1024 * 1024
_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Fetched:
    """One request and what came of it."""

    method: str
    what: str
    status: int
    size: int
    ms: float
    outcome: str
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Pull:
    """A whole pull, every digest and size of it verified."""

    digest: str
    requests: tuple[Fetched, ...]
    seconds: float

    @property
    def size(self) -> int:
        return sum(each.size for each in self.requests)

    def count(self, outcome: str) -> int:
        return sum(each.outcome == outcome for each in self.requests)


class Puller:
    """Asks for `name` at the address `connect`, as a node does whose hosts file names the cache.

    It trusts `ca_files` only. With a `user` it brings that credential, else the anonymous token if one is wanted.
    """

    def __init__(
        self,
        name: str,
        *,
        connect: Address,
        ca_files: Iterable[Path],
        user: tuple[str, str] | None = None,
        parallel: int = 3,
    ) -> None:
        self.name = name
        self.parallel = parallel
        self._hosts = {name: connect}
        self._user = "Basic " + base64.b64encode(":".join(user).encode()).decode() if user else ""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for path in ca_files:
            self._context.load_verify_locations(path)

    def pull(self, repository: str, tag: str, *, platforms: Collection[str] | None = None) -> Pull:
        """Pull what `tag` points to now, for these platforms or for all.

        Raises:
            UpstreamError: an answer other than 200, or none.
            IntegrityError: bytes that are not what their digest or size says.
        """
        try:
            with _Run(self, repository) as run:
                return run.pull(tag, platforms)
        except (OSError, HTTPException) as error:
            raise UpstreamError(f"pulling {self.name}/{repository}:{tag}: {error!r}") from error

    def wire(self) -> Wire:
        return Wire(self._context, self._hosts)

    def log_in(self, wire: Wire, challenge: str) -> str:
        """The credential that answers a challenge, or nothing."""
        scheme, _, rest = challenge.partition(" ")
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or "realm" not in asked:
            return self._user
        query = urlencode({key: asked[key] for key in ("service", "scope") if key in asked})
        response = wire.ask("GET", f"{asked['realm']}?{query}", {"Authorization": self._user} if self._user else {})
        body = response.read(_MAX_MANIFEST)
        return f"Bearer {json.loads(body)['token']}" if response.status == 200 else ""


class _Run:
    """One pull: its connections (one set per thread), its token and its notes."""

    def __init__(self, puller: Puller, repository: str) -> None:
        self._puller = puller
        self._base = f"https://{puller.name}/v2/{repository}"
        self._authorization = ""
        self._own = threading.local()
        self._stack = ExitStack()
        self._fetched: list[Fetched] = []
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def pull(self, tag: str, platforms: Collection[str] | None) -> Pull:
        _, seen = self._ask("HEAD", f"/manifests/{tag}", f"tag {tag}")
        digest = seen.get("Docker-Content-Digest", "")
        index = self._document({"digest": digest, "size": int(seen.get("Content-Length", "-1"))}, "index")
        # By digest: platforms may share a blob.
        wanted: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for described in index.get("manifests", []):
            platform = f"{described['platform']['os']}/{described['platform']['architecture']}"
            if platforms is None or platform in platforms:
                manifest = self._document(described, f"manifest {platform}")
                for what, part in [("config", manifest["config"]), *(("layer", each) for each in manifest["layers"])]:
                    wanted[part["digest"]] = (f"{what} {part['digest'][7:19]}", part)
        with ThreadPoolExecutor(self._puller.parallel) as pool:
            blobs = list(pool.map(lambda item: self._verified("blobs", item[1], item[0]), wanted.values()))
        # In the order in which they were asked for, not in that of their ends.
        documents = [each for each in self._fetched if each not in blobs]
        return Pull(digest, (*documents, *blobs), time.monotonic() - self._begun)

    def _document(self, described: Mapping[str, Any], what: str) -> dict[str, Any]:
        value = json.loads(self._verified("manifests", described, what).body)
        assert isinstance(value, dict)
        return value

    def _verified(self, room: str, described: Mapping[str, Any], what: str) -> Fetched:
        return self._ask("GET", f"/{room}/{described['digest']}", what, described)[0]

    def _ask(
        self, method: str, path: str, what: str, described: Mapping[str, Any] | None = None
    ) -> tuple[Fetched, HTTPMessage]:
        begun = time.monotonic()
        response = self._send(method, path)
        if response.status == 401:
            response.read(_MAX_MANIFEST)
            challenge = response.headers.get("WWW-Authenticate", "")
            self._authorization = self._puller.log_in(self._wire(), challenge)
            response = self._send(method, path)
        if response.status != 200:
            raise UpstreamError(f"{method} {self._base}{path}: {response.status} {response.read(500)!r}")
        size, body = _read(response, described, path) if described else (len(response.read()), b"")
        ms = (time.monotonic() - begun) * 1000
        outcome = response.headers.get(OUTCOME, "-").partition(" ")[0]
        fetched = Fetched(method, what, response.status, size, ms, outcome, body)
        self._fetched.append(fetched)
        return fetched, response.headers

    def _send(self, method: str, path: str) -> HTTPResponse:
        headers = {"Accept": _ACCEPT if "/manifests/" in path else "*/*", "User-Agent": "mitm-cache-demo"}
        if self._authorization:
            headers["Authorization"] = self._authorization
        return self._wire().ask(method, self._base + path, headers)

    def _wire(self) -> Wire:
        if not hasattr(self._own, "wire"):
            self._own.wire = self._stack.enter_context(self._puller.wire())
        wire = self._own.wire
        assert isinstance(wire, Wire)
        return wire


def _read(response: HTTPResponse, described: Mapping[str, Any], path: str) -> tuple[int, bytes]:
    """Read to the end and verify; the bytes themselves are kept of manifests only."""
    seen, size, kept = hashlib.sha256(), 0, bytearray()
    while piece := response.read(_PIECE):
        seen.update(piece)
        size += len(piece)
        if "/manifests/" in path and size <= _MAX_MANIFEST:
            kept += piece
    if size != described["size"] or f"sha256:{seen.hexdigest()}" != described["digest"]:
        raise IntegrityError(f"{path}: {size} bytes of sha256:{seen.hexdigest()}, promised {described['size']}")
    return size, bytes(kept)
