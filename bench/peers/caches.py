"""The caches that are compared, each as its own project or package runs it, in front of the same upstream."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trustme

from bench.peers.origin import NAME, STORAGE, Origin
from bench.peers.programs import LOOPBACK, environment, find, running
from tests.ports import free_port

OURS = "mitm-cache"


@dataclass(frozen=True, slots=True)
class Cache:
    """A running cache: clients connect to `port` of loopback, ask for `name` and trust `ca_file`."""

    pid: int
    port: int
    name: str
    ca_file: Path


type Starter = Callable[[Origin, Path], AbstractContextManager[Cache]]


def issue(folder: Path, *names: str) -> tuple[Path, Path]:
    """The certificate of a new authority, and a leaf of it with its key and chain."""
    authority = trustme.CA()
    ca_file, leaf = folder / "ca.crt", folder / "leaf.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(leaf))
    return ca_file, leaf


# What docker-registry-proxy's caching server does, without the tunnel in front of it: one certificate for all names, a
# redirect is followed by nginx and kept under the first path, others wait for the lock. What it leaves at nginx's
# defaults is left so here: the age of the lock (5 s) above all, the version of HTTP upstream, the buffers.
_NGINX = """
worker_processes auto; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log warn; user root;
events {{ worker_connections 1024; }}
http {{
  default_type application/octet-stream; gzip off; keepalive_timeout 300s;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  log_format hits "$time_local $upstream_cache_status $request_method $uri $status $body_bytes_sent $upstream_addr";
  proxy_cache_path {folder}/cache levels=1:2 max_size=32g inactive=60d keys_zone=cache:10m use_temp_path=off;
  server {{
    listen {loopback}:{port} ssl; ssl_certificate {leaf}; ssl_certificate_key {leaf};
    access_log {folder}/access.log hits;
    proxy_read_timeout 900; proxy_cache_lock on; proxy_cache_lock_timeout 880s; {lock_age}
    proxy_cache_valid 200 206 60d; proxy_force_ranges on; proxy_ignore_client_abort on; proxy_cache_revalidate on;
    proxy_hide_header Set-Cookie; proxy_ignore_headers X-Accel-Expires Expires Cache-Control Set-Cookie;
    proxy_ssl_server_name on; proxy_ssl_verify on; proxy_ssl_verify_depth 2; proxy_ssl_trusted_certificate {trust};
    proxy_intercept_errors on;
    location ~ ^/v2/.+/(blobs|manifests)/sha256: {{
      proxy_pass https://{upstream}; proxy_set_header Host {name}; proxy_ssl_name {name};
      proxy_cache cache; proxy_cache_key $uri; error_page 301 302 307 = @storage;
    }}
    location @storage {{
      set $where $upstream_http_location;
      proxy_pass $where; proxy_ssl_name {storage_name}; proxy_set_header Authorization "";
      proxy_cache cache; proxy_cache_key $uri;
    }}
    location / {{ proxy_pass https://{upstream}; proxy_set_header Host {name}; proxy_ssl_name {name}; }}
  }}
}}
"""


@contextmanager
def nginx(upstream: Origin, folder: Path, *, lock_age: int | None) -> Iterator[Cache]:
    """nginx with proxy_cache and its lock; `lock_age` in seconds, nginx's own 5 s where there is none."""
    program = find("nginx", package="apt-get install nginx")
    ca_file, leaf = issue(folder, NAME)
    port = free_port()
    text = _NGINX.format(
        folder=folder,
        loopback=LOOPBACK,
        port=port,
        leaf=leaf,
        trust=upstream.ca_file,
        upstream=f"{upstream.address}:{upstream.port}",
        name=NAME,
        storage_name=STORAGE,
        lock_age=f"proxy_cache_lock_age {lock_age}s;" if lock_age else "",
    )
    (folder / "nginx.conf").write_text(text)
    command: list[str | Path] = [program, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    with running(command, log=folder / "said.log", address=(LOOPBACK, port)) as pid:
        yield Cache(pid, port, NAME, ca_file)


_DISTRIBUTION = """
version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
proxy: {{remoteurl: "https://{upstream}"}}
http: {{addr: "{loopback}:{port}", secret: bench, tls: {{certificate: {leaf}, key: {leaf}}}}}
"""


@contextmanager
def distribution(upstream: Origin, folder: Path) -> Iterator[Cache]:
    """The registry of the distribution project as a mirror of this upstream, under the upstream's name."""
    program = find("docker-registry", package="apt-get install docker-registry")
    ca_file, leaf = issue(folder, NAME)
    port = free_port()
    where = f"{upstream.address}:{upstream.port}"
    configuration = folder / "config.yml"
    configuration.write_text(
        _DISTRIBUTION.format(folder=folder, upstream=where, loopback=LOOPBACK, port=port, leaf=leaf)
    )
    command: list[str | Path] = [program, "serve", configuration]
    trust = {"SSL_CERT_FILE": str(upstream.ca_file)}
    with running(command, log=folder / "said.log", address=(LOOPBACK, port), environ=trust) as pid:
        yield Cache(pid, port, NAME, ca_file)


_DRAYAGE = """
listen = "{loopback}:{clear_port}"
cache_dir = "{folder}/cache"
tls_listen = "{loopback}:{port}"
ca_cert_path = "{ca_file}"
ca_key_path = "{key}"
[upstreams.docker_io]
registry = "http://localhost:{upstream_port}"
"""


@contextmanager
def drayage(upstream: Origin, folder: Path) -> Iterator[Cache]:
    """drayage as a transparent proxy over TLS; upstream it gets HTTP, since no other authority can be given to it.

    It answers to the hosts of its upstreams' URLs, and what asks for a name without a dot it sends to Docker Hub's.
    """
    program = find("drayage", package="pip install drayage")
    ca_file, key = folder / "ca.crt", folder / "ca.key"
    subprocess.run([program, "gen-ca", "--dir", folder], check=True, capture_output=True, env=environment())
    (folder / "cache").mkdir()
    port = free_port()
    text = _DRAYAGE.format(
        folder=folder,
        loopback=LOOPBACK,
        port=port,
        clear_port=free_port(),
        ca_file=ca_file,
        key=key,
        upstream_port=upstream.clear_port,
    )
    (folder / "config.toml").write_text(text)
    command: list[str | Path] = [program, "serve", "-c", folder / "config.toml"]
    with running(command, log=folder / "said.log", address=(LOOPBACK, port)) as pid:
        yield Cache(pid, port, "localhost", ca_file)


_OURS = """
data_dir = "{folder}/data"
[listen]
tls = ["{loopback}:{port}"]
clear = []
connect = []
mirror = []
[upstream]
ca_file = "{trust}"
[registries."{name}"]
url = "https://{name}:{upstream_port}"
resolve = ["{upstream}"]
"""


@contextmanager
def ours(upstream: Origin, folder: Path) -> Iterator[Cache]:
    """`mitm-cache serve`, one process, as nodes with hosts entries reach it."""
    port = free_port()
    text = _OURS.format(
        folder=folder,
        loopback=LOOPBACK,
        port=port,
        trust=upstream.ca_file,
        name=NAME,
        upstream=upstream.address,
        upstream_port=upstream.port,
    )
    (folder / "config.toml").write_text(text)
    command: list[str | Path] = [sys.executable, "-m", "mitm_cache", "--config", folder / "config.toml", "serve"]
    with running(command, log=folder / "said.log", address=(LOOPBACK, port)) as pid:
        yield Cache(pid, port, NAME, folder / "data" / "ca" / "ca.crt")


CACHES: dict[str, Starter] = {
    OURS: ours,
    "nginx": partial(nginx, lock_age=None),
    "nginx-880s": partial(nginx, lock_age=880),
    "distribution": distribution,
    "drayage": drayage,
}
"""In the order of a first turn; the next turn goes the other way."""
