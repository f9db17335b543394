"""The upstream of the comparison: nginx as a registry over TLS that redirects its blobs to another host.

Requests for blobs are counted from its access log, aborted ones too.
"""

import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from bench.peers.programs import LOOPBACK, Broken, find, running
from tests.fakes.big import Pattern, big_image
from tests.ports import free_port

NAME = "registry.bench"
STORAGE = "storage.bench"
REPOSITORY = "team/app"
_REGISTRY_ADDRESS, _STORAGE_ADDRESS = "127.0.0.2", "127.0.0.3"
_PATIENCE = 120.0

# The clear listeners are for a cache that trusts only certificates of public authorities.
_CONFIGURATION = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log warn; user root;
events {{ worker_connections 1024; }}
http {{
  sendfile on; tcp_nopush on; keepalive_requests 1000000; etag off;
  ssl_certificate {folder}/leaf.pem; ssl_certificate_key {folder}/leaf.pem; ssl_protocols TLSv1.2 TLSv1.3;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  log_format requests "$request_method $status $body_bytes_sent $uri";
  map $scheme $storage {{ https https://{storage}:{storage_port}; http http://{storage}:{clear_storage_port}; }}
  server {{
    listen {registry}:{port} ssl; listen {loopback}:{clear_port}; access_log {folder}/registry.log requests;
    root {folder}/files; add_header Docker-Distribution-Api-Version registry/2.0 always;
    location = /v2/ {{ default_type application/json; return 200 "{{}}"; }}
    location ~ ^/v2/.+/manifests/ {{
      default_type {media_type}; add_header Docker-Distribution-Api-Version registry/2.0;
      add_header Docker-Content-Digest {manifest};
    }}
    location ~ ^/v2/.+/blobs/(?<digest>sha256:[0-9a-f]+)$ {{ return 307 $storage/$digest?X-Signature=of-a-day; }}
    location = /status {{ access_log off; stub_status; }}
  }}
  server {{
    listen {storage}:{storage_port} ssl; listen {storage}:{clear_storage_port};
    access_log {folder}/storage.log requests; root {folder}/blobs; limit_rate {rate};
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """A running upstream with one image; `clear_port` speaks HTTP on 127.0.0.1, `port` TLS on `address`."""

    folder: Path
    ca_file: Path
    address: str
    port: int
    clear_port: int
    digest: str
    size: int
    manifest: str

    @property
    def blob_path(self) -> str:
        return f"/v2/{REPOSITORY}/blobs/{self.digest}"

    @property
    def manifest_path(self) -> str:
        return f"/v2/{REPOSITORY}/manifests/{self.manifest}"

    def fetched(self) -> tuple[int, int]:
        """How many GETs of the blob have ended, and their bytes; raises Broken where some do not end."""
        deadline = time.monotonic() + _PATIENCE
        while self._writing() > 1:  # this very question is one
            if time.monotonic() > deadline:
                raise Broken("the upstream is still asked for the blob")
            time.sleep(0.1)
        lines = [line.split() for line in (self.folder / "storage.log").read_text().splitlines()]
        gets = [int(size) for method, status, size, _ in lines if method == "GET" and status in {"200", "206", "499"}]
        return len(gets), sum(gets)

    def _writing(self) -> int:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.clear_port}/status") as answer:
            found = re.search(rb"Writing: (\d+)", answer.read())
        assert found is not None
        return int(found[1])


@contextmanager
def origin(folder: Path, *, size: int, rate: int) -> Iterator[Origin]:
    """An upstream with one blob of `size` bytes, sent with at most `rate` bytes a second on each connection."""
    program = find("nginx", package="apt-get install nginx")
    image = big_image(size)
    manifest = image.platforms["linux/amd64"]
    pattern = Pattern(size, "big 0")
    manifests, blobs = folder / "files" / "v2" / REPOSITORY / "manifests", folder / "blobs"
    for each in (manifests, blobs):
        each.mkdir(parents=True)
    (manifests / manifest.digest).write_bytes(manifest.body)
    with (blobs / pattern.digest).open("wb") as file:
        file.writelines(pattern.chunks(0, size))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    leaf = authority.issue_cert(NAME, STORAGE, _REGISTRY_ADDRESS, _STORAGE_ADDRESS)
    leaf.private_key_and_cert_chain_pem.write_to_path(str(folder / "leaf.pem"))
    port, clear_port = free_port(_REGISTRY_ADDRESS), free_port()
    text = _CONFIGURATION.format(
        folder=folder,
        loopback=LOOPBACK,
        registry=_REGISTRY_ADDRESS,
        storage=_STORAGE_ADDRESS,
        port=port,
        clear_port=clear_port,
        storage_port=free_port(_STORAGE_ADDRESS),
        clear_storage_port=free_port(_STORAGE_ADDRESS),
        media_type=manifest.media_type,
        manifest=manifest.digest,
        rate=rate,
    )
    (folder / "nginx.conf").write_text(text)
    command: list[str | Path] = [program, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    with running(command, log=folder / "said.log", address=(LOOPBACK, clear_port)):
        yield Origin(
            folder, folder / "ca.crt", _REGISTRY_ADDRESS, port, clear_port, pattern.digest, size, manifest.digest
        )
