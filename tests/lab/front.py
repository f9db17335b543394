"""nginx before the registries, their store and their token hosts: TLS, the access log, and faults on demand."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.lab.host import Host
from tests.lab.process import Process

_STATUS_PORT = 8099
_HEAD = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  map $http_authorization $kind {{ default other; "" none; ~*^bearer bearer; ~*^basic basic; }}
  log_format lab escape=json '{fields}';
  access_log {log} lab;
  client_max_body_size 0; proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_buffers 16 64k;
  proxy_buffer_size 64k; proxy_read_timeout 600; keepalive_timeout 65; tcp_nodelay on; server_tokens off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  ssl_protocols TLSv1.2 TLSv1.3;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
  proxy_set_header X-Forwarded-Proto https; proxy_set_header X-Real-IP $remote_addr;
  server {{ listen 127.0.0.1:{status}; location = /generation {{ return 200 "{generation}"; access_log off; }}
    location / {{ return 204; }} }}
  # Whatever comes in clear text: seen in the log rather than refused.
  server {{ listen 80 default_server; return 308 https://$host$request_uri; }}
"""
_FIELDS = {
    "host": "$host",
    "method": "$request_method",
    "path": "$uri",
    "status": "$status",
    "user_agent": "$http_user_agent",
    "range": "$http_range",
    "authorization": "$kind",
    "sent": "$body_bytes_sent",
    "scheme": "$scheme",
    "client": "$remote_addr",
}
_NUMBERS = ("status", "sent")


@dataclass(frozen=True)
class Site:
    """One TLS host: its names, its addresses, and nginx's directives for it."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]
    directives: str
    logged: bool = True


class Front:
    """The only door of the lab's internet."""

    def __init__(self, host: Host, ca: trustme.CA, sites: list[Site], log: Path) -> None:
        self._host, self._sites, self._log = host, sites, log
        self._folder = host.folder / "nginx"
        self._folder.mkdir()
        self._faults: dict[str, str] = {}
        self._generation = 0
        self._process: Process | None = None
        for site in sites:
            # One certificate for all the names of a site, with its chain.
            ca.issue_cert(*site.names).private_key_and_cert_chain_pem.write_to_path(str(self._pem(site)))

    def _pem(self, site: Site) -> Path:
        return self._folder / f"{site.names[0]}-{site.addresses[0]}.pem"

    def _configure(self) -> None:
        quoted = (f'"{name}":' + (value if name in _NUMBERS else f'"{value}"') for name, value in _FIELDS.items())
        head = _HEAD.format(
            folder=self._folder,
            fields="{" + ",".join(quoted) + "}",
            log=self._log,
            status=_STATUS_PORT,
            generation=self._generation,
        )
        text = head + "".join(map(self._server, self._sites)) + "}\n"
        (self._folder / "nginx.conf").write_text(text)

    def _server(self, site: Site) -> str:
        # What clients do not see has no faults: a registry whose own store fails answers otherwise.
        faults = self._faults if site.logged else {}
        fault = next((faults[name] for name in site.names if name in faults), "")
        pem = self._pem(site)
        listen = " ".join(f"listen {address}:443 ssl http2;" for address in site.addresses)
        return (
            f"server {{ {listen} server_name {' '.join(site.names)};\n"
            f"  ssl_certificate {pem}; ssl_certificate_key {pem};\n"
            f"  {'' if site.logged else 'access_log off;'} {fault}\n  {site.directives} }}\n"
        )

    def start(self) -> None:
        self._configure()
        command = ["nginx", "-c", str(self._folder / "nginx.conf"), "-e", "stderr"]
        self._process = self._host.start("nginx", *command)
        self._process.wait_until(lambda: self._host.listening(443), "nginx on 443")

    def end(self) -> None:
        """Let nobody listen: connections are refused until `start`."""
        assert self._process is not None
        self._process.stop()

    def freeze(self) -> None:
        """Connections are taken, and nothing is answered, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.popen.pid, number)

    def probe(self, path: str) -> str:
        """Ask the front itself, on loopback."""
        return self._host.attempt("curl", "-s", "-m", "5", f"http://127.0.0.1:{_STATUS_PORT}{path}").stdout

    def set_faults(self, faults: Mapping[str, str]) -> None:
        """Put nginx directives into hosts, by name: `return 503;`, `limit_rate 1m;`. Those before are gone."""
        assert self._process is not None
        self._faults = dict(faults)
        self._generation += 1
        self._configure()
        before = self._workers()
        self._process.popen.send_signal(signal.SIGHUP)
        now = str(self._generation)
        self._process.wait_until(lambda: self.probe("/generation") == now, "nginx with the new faults")
        # The old worker goes on accepting for a moment after the new one has begun.
        self._process.wait_until(lambda: not before & self._workers(), "the end of nginx's old worker")

    def _workers(self) -> set[int]:
        """The workers that accept connections; one that is told to end calls itself otherwise at once."""
        assert self._process is not None
        found = set()
        for line in Path(f"/proc/{self._process.popen.pid}/task").glob("*/children"):
            for pid in line.read_text().split():
                try:
                    title = Path(f"/proc/{pid}/cmdline").read_text()
                except FileNotFoundError:
                    continue
                if "shutting down" not in title:
                    found.add(int(pid))
        return found
