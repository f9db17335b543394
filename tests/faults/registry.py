"""A real registry, distribution's, on loopback: pushed to in clear text, with a second door that ends TLS."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.peers.programs import LOOPBACK, find, running
from mitm_cache.demo.image import Image
from tests.fakes.trust import Trust
from tests.ports import free_port


@dataclass(frozen=True, slots=True)
class Doors:
    """Where it listens: `clear` and `tls` lead to the same content."""

    clear: tuple[str, int]
    tls: tuple[str, int]


@contextmanager
def registry(folder: Path, trust: Trust, name: str, content: Mapping[str, Mapping[str, Image]]) -> Iterator[Doors]:
    """Run one that has these images by repository and tag; `name` is what its certificate is for."""
    program = find("docker-registry", package="apt-get install docker-registry")
    folder.mkdir()
    leaf = trust.pem(folder / "leaf.pem", name)
    with ExitStack() as stack:
        doors = []
        for kind in ("clear", "tls"):
            address = (LOOPBACK, free_port())
            tls = {"tls": {"certificate": str(leaf), "key": str(leaf)}} if kind == "tls" else {}
            document = {
                "version": "0.1",
                "log": {"level": "error", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(folder / "files"), "maxthreads": 100}},
                "http": {"addr": f"{LOOPBACK}:{address[1]}", "secret": "faults", **tls},
            }
            configuration = folder / f"{kind}.yml"
            configuration.write_text(json.dumps(document))
            command: list[str | Path] = [program, "serve", configuration]
            stack.enter_context(running(command, log=folder / f"{kind}.log", address=address))
            doors.append(address)
        for repository, images in content.items():
            _push(doors[0], repository, images)
        yield Doors(doors[0], doors[1])


def _push(address: tuple[str, int], repository: str, images: Mapping[str, Image]) -> None:
    connection = http.client.HTTPConnection(*address, timeout=60)

    def ask(method: str, target: str, body: bytes = b"", kind: str = "application/octet-stream") -> str:
        connection.request(method, target, body, {"Content-Type": kind})
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status in (201, 202), (method, target, answer.status, said)
        return answer.headers["Location"]

    for tag, image in images.items():
        for digest, blob in image.blobs.items():
            where = urlsplit(ask("POST", f"/v2/{repository}/blobs/uploads/"))
            ask("PUT", f"{where.path}?{where.query}&digest={digest}", b"".join(blob.chunks(0, blob.size)))
        for manifest in image.platforms.values():
            ask("PUT", f"/v2/{repository}/manifests/{manifest.digest}", manifest.body, manifest.media_type)
        ask("PUT", f"/v2/{repository}/manifests/{tag}", image.index.body, image.index.media_type)
    connection.close()
