"""The peer: nginx serving the same file, with the same kind of key, from the page cache."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONFIGURATION = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log warn; user root;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000;
  ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets off; ssl_buffer_size 16k;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/leaf.crt; ssl_certificate_key {folder}/leaf.key;
            root {folder}/files; default_type application/octet-stream; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    pid: int
    port: int
    files: Path


@contextmanager
def nginx(folder: Path, *, chain: bytes, key: bytes) -> Iterator[Nginx]:
    """One worker over TLS on a free port of this machine; `files` is what it serves."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise SystemExit("the benchmark needs nginx: apt-get install nginx")
    (folder / "files").mkdir(parents=True)
    (folder / "leaf.crt").write_bytes(chain)
    (folder / "leaf.key").write_bytes(key)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(_CONFIGURATION.format(folder=folder, port=port))
    process = subprocess.Popen([program, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    try:
        _wait(port, process)
        yield Nginx(process.pid, port, folder / "files")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("nginx did not start")
