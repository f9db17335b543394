"""The local registry without any way in: requests as the door would make them, bodies as `proxy/receive` hands them on.

async with Local(tmp_path) as local:
    await local.push("team/app", "1", layer=b"...")
    reply = await local.ask("GET", "/v2/team/app/manifests/1")
"""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mitm_cache.cache.layout import open_layout
from mitm_cache.config import load
from mitm_cache.core import Core
from mitm_cache.journal import Journal
from mitm_cache.local import LocalRegistry
from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mitm_cache.oci.operation import classify
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import FileBody, Intake, Request, Response

OCTETS = {"Content-Type": "application/octet-stream"}
CONFIG = b'{"architecture":"amd64","os":"linux"}'


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    """The digest of bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def descriptor(content: bytes, media_type: str = "application/vnd.oci.image.layer.v1.tar") -> dict[str, Any]:
    """What refers to bytes."""
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def manifest(*layers: bytes, config: bytes = CONFIG, **more: Any) -> bytes:
    """An image's manifest."""
    fields = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(layer) for layer in layers],
    }
    return json.dumps(fields | more).encode()


def index(*manifests: bytes, **more: Any) -> bytes:
    """An index of images."""
    fields = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(each, OCI_MANIFEST) for each in manifests],
    }
    return json.dumps(fields | more).encode()


def build_cache(config: bytes, *layers: bytes) -> bytes:
    """An index of blobs, as BuildKit pushes it by `--cache-to type=registry,image-manifest=false`."""
    listed = [descriptor(layer) for layer in layers]
    listed.append(descriptor(config, "application/vnd.buildkit.cacheconfig.v0"))
    return index(manifests=listed)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, with its whole body."""

    status: int
    headers: Headers
    body: bytes
    outcome: str

    def __getitem__(self, name: str) -> str | None:
        return self.headers.get(name)

    @property
    def code(self) -> str:
        """The code of an OCI error document."""
        return str(json.loads(self.body)["errors"][0]["code"])

    @property
    def message(self) -> str:
        """The message of an OCI error document."""
        return str(json.loads(self.body)["errors"][0]["message"])

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Local:
    """A core with `[local]`, in this loop."""

    def __init__(self, tmp_path: Path, *, names: str = '["localhost:5000"]', size: str = "1G", more: str = "") -> None:
        self.data = tmp_path / "data"
        file = tmp_path / "local.toml"
        file.write_text(f'data_dir = "{self.data}"\n[local]\nnames = {names}\nmax_size = "{size}"\n{more}')
        self.config = load(file=file, environ={})
        self.layout = open_layout(self.data)

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self.core = Core(
            self.config, self.layout, listeners=[], start=self._start, journal=Journal(), stopping=threading.Event()
        )
        return self

    async def __aexit__(self, *unused: object) -> None:
        self.core.close()
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Any) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(work))

    @property
    def registry(self) -> LocalRegistry:
        assert self.core.local is not None
        return self.core.local

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        *,
        size: int | None = 0,
        user: str = "",
        **more: Any,
    ) -> Request:
        """What the door makes of a request."""
        local = self.config.known.named("local")
        assert local is not None
        return Request(
            listener="mirror",
            client="10.0.0.1",
            method=method,
            registry=local,
            operation=classify(target.partition("?")[0]),
            target=target,
            headers=Headers([("Host", "localhost:5000"), *(headers or {}).items()]),
            size=size,
            mirror=True,
            user=user,
            **more,
        )

    async def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"", **more: Any
    ) -> Reply:
        """An answer, after the body was taken where there is one."""
        request = self.request(method, target, headers, **{"size": len(body), **more})
        if method in ("GET", "HEAD"):
            return _read(await self.core.answers.handle(request))
        taken = await self.registry.receive(request)
        return _read(taken) if isinstance(taken, Response) else await give(taken, body)

    async def intake(self, method: str, target: str, headers: Mapping[str, str] | None = None, **more: Any) -> Intake:
        """Where the body of a request goes."""
        taken = await self.registry.receive(self.request(method, target, headers, **more))
        assert not isinstance(taken, Response), taken
        return taken

    async def push_blob(self, name: str, content: bytes, **more: Any) -> Reply:
        """A blob, as most clients push it."""
        opened = await self.ask("POST", f"/v2/{name}/blobs/uploads/", **more)
        place = opened["location"] or ""
        patched = await self.ask("PATCH", place, OCTETS, content, **more)
        assert (opened.status, patched.status) == (202, 202)
        return await self.ask("PUT", f"{patched['location']}?digest={digest_of(content)}", **more)

    async def push_manifest(self, name: str, reference: str, content: bytes, **more: Any) -> Reply:
        """A manifest, by its own type."""
        kind = json.loads(content)["mediaType"]
        return await self.ask("PUT", f"/v2/{name}/manifests/{reference}", {"Content-Type": kind}, content, **more)

    async def push(self, name: str, tag: str, *layers: bytes, **more: Any) -> str:
        """An image; its digest."""
        for content in (CONFIG, *layers):
            assert (await self.push_blob(name, content)).status == 201
        body = manifest(*layers, **more)
        assert (await self.push_manifest(name, tag, body)).status == 201
        return digest_of(body)

    def blobs(self) -> set[str]:
        """The digests of what is kept."""
        return {f"{path.parent.parent.name}:{path.name}" for path in (self.data / "blobs").glob("*/*/*")}

    def uploads(self) -> list[Path]:
        """What is being pushed."""
        return list((self.data / "uploads").iterdir())

    def age(self, seconds: float) -> None:
        """Make everything that is kept older."""
        for root in ("blobs", "links", "uploads"):
            for path in (self.data / root).rglob("*"):
                if path.is_file():
                    at = path.stat().st_mtime - seconds
                    os.utime(path, (at, at))


async def give(intake: Intake, body: bytes, *, piece: int = 1 << 20) -> Reply:
    """The answer to a body, which is written in a thread as in the product; what `write` raises is raised."""
    try:
        for start in range(0, len(body), piece):
            await asyncio.to_thread(intake.write, memoryview(body)[start : start + piece])
        return _read(await intake.finish())
    finally:
        intake.close()


def _read(response: Response) -> Reply:
    body = response.body
    if isinstance(body, FileBody):
        body = os.pread(body.source.fileno(), body.span.length, body.span.start)
    assert isinstance(body, bytes)
    response.close()
    return Reply(response.status, response.headers, body, response.outcome)
