"""A stock mitmdump as a process, with scripts of `addons/` and one of the tests' own that witnesses what was loaded."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, override

import pycurl

from tests.fakes.registry import LyingUpstream
from tests.serving import Log, Reply, settings

ROOT = Path(__file__).parents[2]
ADDONS = ROOT / "addons"
NAMES = ("access_log", "follow_redirects", "intercept_registries", "mint_certs", "pull_through")
PROGRAM = Path(sys.executable).parent / "mitmdump"
WITNESS = Path(__file__).parent / "witness.py"
_LISTENING = re.compile(r"proxy.* listening at 127\.0\.0\.1:(\d+)")
_PATIENCE = 60.0


@dataclass(slots=True, eq=False)
class Mitmdump:
    """One that runs. `log` has its standard output: with `-q`, access lines and nothing else."""

    popen: "subprocess.Popen[str]"
    data: Path
    confdir: Path
    seen_file: Path
    log: Log = field(default_factory=Log)
    said: list[str] = field(default_factory=list)
    port: int = 0
    _ready: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def own_ca(self) -> Path:
        """The CA of mitm-cache."""
        return self.data / "ca" / "ca.crt"

    @property
    def stock_ca(self) -> Path:
        """The CA that every mitmproxy writes."""
        return self.confdir / "mitmproxy-ca-cert.pem"

    @property
    def text(self) -> str:
        """All it has said."""
        return "".join(self.said)

    def count(self, text: str) -> int:
        """How many lines speak of this by now."""
        return sum(text in line for line in self.said)

    def wait(self, text: str, number: int) -> None:
        """Block until that many lines do."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(text) >= number, _PATIENCE), self.text

    def at_work(self) -> set[str]:
        """The classes of ours, by their full names, that the witness saw objects of."""
        return set(json.loads(self.seen_file.read_text()))

    def blobs(self) -> set[str]:
        """The digests of what is kept."""
        return {f"{path.parent.parent.name}:{path.name}" for path in (self.data / "blobs").glob("*/*/*")}

    def client(
        self, host: str, ca: Path, *, port: int = 443, sni: str | None = None, direct: bool = False
    ) -> "ProxiedClient":
        """A connection to a host by CONNECT, or with `direct` as a hosts entry would lead it."""
        return ProxiedClient(self.port, host, port, ca, sni=sni or host, direct=direct)

    def tunnel(self, host: str, port: int = 443) -> socket.socket:
        """A connection behind CONNECT."""
        return open_tunnel(self.port, host, port, 30)

    def status_by_http_2(self, url: str, *, host: str) -> int:
        """What a client of HTTP/2 is answered that trusts mitmproxy's CA."""
        handle = pycurl.Curl()
        try:
            handle.setopt(pycurl.URL, url)
            handle.setopt(pycurl.PROXY, f"http://127.0.0.1:{self.port}")
            handle.setopt(pycurl.NOPROXY, "")
            handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
            handle.setopt(pycurl.CAINFO, str(self.stock_ca))
            handle.setopt(pycurl.HTTPHEADER, [f"Host: {host}"])
            handle.setopt(pycurl.WRITEFUNCTION, lambda _: None)
            handle.perform()
            assert handle.getinfo(pycurl.INFO_HTTP_VERSION) == pycurl.CURL_HTTP_VERSION_2_0
            return int(handle.getinfo(pycurl.RESPONSE_CODE))
        finally:
            handle.close()

    def memory(self, what: str) -> int:
        """Bytes, by its name in proc_pid_status(5)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{what}:")[2].split()[0]) * 1024

    def follow(self) -> None:
        """Read what it says, and return once it listens or has ended."""
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()
        assert self._ready.wait(_PATIENCE), self.text

    def _follow(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                self.said.append(line)
                self._changed.notify_all()
            if line.startswith("{"):
                self.log.write(line)
            if found := _LISTENING.search(line):
                self.port = int(found[1])
            if line == "witness: running\n":
                self._ready.set()
        self._ready.set()

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        if self.popen.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        status = self.popen.wait(_PATIENCE)
        if self._reader is not None:
            self._reader.join()
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        return status


def open_tunnel(proxy: int, host: str, port: int, timeout: float | None) -> socket.socket:
    """A connection to a host by a proxy on a port of this machine."""
    plain = socket.create_connection(("127.0.0.1", proxy), timeout)
    plain.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = plain.recv(1)
        if not byte:
            break
        head += byte
    if not head.startswith(b"HTTP/1.1 200 "):
        plain.close()
        raise ConnectionRefusedError(head.decode())
    return plain


class ProxiedClient(http.client.HTTPConnection):
    """HTTP over TLS over CONNECT, or over TLS alone."""

    def __init__(self, proxy: int, host: str, port: int, ca: Path, *, sni: str, direct: bool) -> None:
        super().__init__(host, port, timeout=30)
        self._proxy, self._sni, self._direct = proxy, sni, direct
        self._tls = ssl.create_default_context(cafile=ca)

    @override
    def connect(self) -> None:
        if self._direct:
            plain = socket.create_connection(("127.0.0.1", self._proxy), self.timeout)
        else:
            plain = open_tunnel(self._proxy, self.host, self.port, self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self._sni)
        except BaseException:
            plain.close()
            raise

    def issuer(self) -> str:
        """Who has signed the certificate that was shown: the organization."""
        assert isinstance(self.sock, ssl.SSLSocket)
        shown = self.sock.getpeercert()
        assert shown
        names = dict(pair for group in shown["issuer"] for pair in group)  # type: ignore[misc]  # typeshed's type is a union of everything
        return str(names["organizationName"])

    def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> Reply:
        """An answer, read to its end."""
        self.request(method, target, body, headers or {})
        response = self.getresponse()
        return Reply(response.status, response.headers, response.read())

    def get(self, target: str, **headers: str) -> Reply:
        return self.ask("GET", target, headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


@contextmanager
def mitmdump(
    folder: Path,
    *addons: str,
    upstream: LyingUpstream | None = None,
    others: Mapping[str, int] | None = None,
    scripts: Collection[Path] = (),
    options: Collection[str] = (),
    config: str | None = None,
    ready: bool = True,
) -> Iterator[Mitmdump]:
    """`mitmdump -s ADDON …` on a free port, with a data directory and a configuration in `folder`.

    `upstream` is where its registry is, for us and, by the witness, for mitmproxy itself; `others` are ports of this
    machine by the names that mitmproxy knows them by; `scripts` are loaded too; `ready`: assert that it runs.
    """
    data, confdir, seen = folder / "data", folder / "confdir", folder / "seen.json"
    file = folder / "config.toml"
    file.write_text(
        config if config is not None else settings(data, upstream) if upstream else f'data_dir = "{data}"\n'
    )
    chosen = [
        "listen_host=127.0.0.1",
        "listen_port=0",
        f"confdir={confdir}",
        f"mitm_cache_config={file}",
        f"witness_file={seen}",
        *options,
    ]
    if upstream is not None:
        hosts = {upstream.registry.name: upstream.registry.address[1], **(others or {})}
        chosen.append(f"witness_hosts={' '.join(f'{name}={port}' for name, port in hosts.items())}")
        chosen.append(f"ssl_verify_upstream_trusted_ca={upstream.ca_file}")
    command = [str(PROGRAM)]
    for script in (*(ADDONS / f"{name}.py" for name in addons), *scripts, WITNESS):
        command += ["-s", str(script)]
    for option in chosen:
        command += ["--set", option]
    popen = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running = Mitmdump(popen, data, confdir, seen)
    running.follow()
    try:
        if ready:
            assert running.port, running.text
        yield running
    finally:
        running.stop()
