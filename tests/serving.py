"""The real product for tests: in a thread of this process (one at a time), or as processes of its own.

with LyingUpstream(tmp_path) as upstream, in_thread(tmp_path / "data", upstream) as cache:
    with cache.client() as client:
        reply = client.get("/v2/team/app/manifests/1")
    line = cache.log.wait(1, outcome="MISS")[0]

with process(data, upstream) as one, process(data, upstream) as other: ...   # two over one data directory
"""

import http.client
import io
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
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol, Self, override

from mitm_cache.app import App, run_in_thread
from mitm_cache.config import load
from mitm_cache.demo.puller import Puller
from tests.fakes.registry import LyingUpstream

ROOT = Path(__file__).parent.parent
LISTENERS = ("tls", "clear", "connect", "mirror")

type Line = Mapping[str, Any]

_BANNER = re.compile(r"(\w+)\s+(\S+):(\d+)\s")
_NUMBERS = count(1)
_PATIENCE = 120.0


class Log(io.StringIO):
    """Access lines as they are written; safe to read while the product serves."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._lines: list[str] = []

    @override
    def write(self, text: str) -> int:
        with self._changed:
            self._lines += text.splitlines()
            self._changed.notify_all()
        return len(text)

    @property
    def text(self) -> str:
        """All of it, as it was written."""
        with self._changed:
            return "\n".join(self._lines)

    def select(self, **where: object) -> list[Line]:
        """The lines whose named fields have these values, as in `select(outcome="HIT", status=200)`."""
        with self._changed:
            lines = [json.loads(line) for line in self._lines]
        return [line for line in lines if all(line[key] == value for key, value in where.items())]

    def count(self, **where: object) -> int:
        """How many `select` would give."""
        return len(self.select(**where))

    def wait(self, number: int = 1, *, timeout: float = 30, **where: object) -> list[Line]:
        """Block until there are at least `number` such lines: one is written after its client has the last byte.

        Raises:
            TimeoutError: there are not, in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.count(**where) >= number, timeout):
                raise TimeoutError(f"{self.count(**where)} of {number} lines {where} in {timeout} s:\n{self.text}")
        return self.select(**where)

    @override
    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that has been read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes = field(repr=False)

    @property
    def outcome(self) -> str:
        return str(self.headers["X-Cache"])

    @property
    def code(self) -> str:
        """The code of an OCI error document."""
        return str(json.loads(self.body)["errors"][0]["code"])

    @property
    def message(self) -> str:
        """The message of an OCI error document."""
        return str(json.loads(self.body)["errors"][0]["message"])


class Client(http.client.HTTPConnection):
    """One keep-alive connection to a listener. It calls the cache by the name of a registry."""

    def __init__(self, address: tuple[str, int], name: str, tls: ssl.SSLContext | None, timeout: float) -> None:
        super().__init__(name, timeout=timeout)
        self._address, self._tls = address, tls

    @override
    def connect(self) -> None:
        plain = socket.create_connection(self._address, self.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host) if self._tls else plain

    def send_request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> None:
        """Ask, and wait for nothing."""
        self.request(method, target, body, {"Host": self.host, **(headers or {})})

    def open(
        self, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
    ) -> http.client.HTTPResponse:
        """The head of an answer; its body is for the caller to read (`read1` gives what is there by now)."""
        self.send_request(method, target, headers)
        return self.getresponse()

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        """An answer, read to its end; http.client raises where it was cut."""
        self.send_request(method, target, headers, body)
        response = self.getresponse()
        return Reply(response.status, response.headers, response.read())

    def get(self, target: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.ask("GET", target, headers)

    def head(self, target: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.ask("HEAD", target, headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class Endpoint(Protocol):
    """A product that accepts connections."""

    data: Path
    ca_file: Path
    log: Log
    registry: str

    def address(self, listener: str) -> tuple[str, int]: ...


class _Clients:
    """What tests do with a product, however it runs."""

    def client(self: Endpoint, listener: str = "tls", *, name: str | None = None, timeout: float = 30) -> Client:
        """A connection that asks for the registry `name`, the first upstream if none is given."""
        context = ssl.create_default_context(cafile=self.ca_file) if listener == "tls" else None
        return Client(self.address(listener), name or self.registry, context, timeout)

    def puller(
        self: Endpoint, *, name: str | None = None, user: tuple[str, str] | None = None, parallel: int = 3
    ) -> Puller:
        """The demo's client, which pulls whole images and verifies every digest."""
        where = self.address("tls")
        return Puller(name or self.registry, connect=where, ca_files=[self.ca_file], user=user, parallel=parallel)

    def blobs(self: Endpoint) -> set[str]:
        """The digests of what is kept."""
        folder = self.data / "blobs"
        return {f"{path.parent.parent.name}:{path.name}" for path in folder.glob("*/*/*")}

    def spool(self: Endpoint) -> set[str]:
        """The names of what downloads have left, or are writing."""
        return {path.name for path in (self.data / "spool").iterdir()}


@dataclass(slots=True, eq=False)
class Threaded(_Clients):
    """The product in a thread of this process."""

    app: App
    data: Path
    ca_file: Path
    log: Log
    registry: str

    def address(self, listener: str) -> tuple[str, int]:
        return self.app.bound.address(listener)


@dataclass(slots=True, eq=False)
class Process(_Clients):
    """The product as a process; `said` is its standard error."""

    popen: "subprocess.Popen[str]"
    data: Path
    ca_file: Path
    registry: str
    log: Log = field(default_factory=Log)
    said: list[str] = field(default_factory=list)
    _listeners: dict[str, tuple[str, int]] = field(default_factory=dict)
    _worker: int = 0
    _ready: threading.Event = field(default_factory=threading.Event)
    _readers: list[threading.Thread] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The process that serves, where there is one worker."""
        if self.running() and self.workers:
            (self._worker,) = self.workers
        return self._worker

    @property
    def workers(self) -> list[int]:
        """The processes that the supervisor has: those that serve, and one that waits where there are several."""
        pid = self.popen.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def address(self, listener: str) -> tuple[str, int]:
        return self._listeners[listener]

    def running(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """End it as `kill -9` does."""
        os.kill(self.popen.pid, signal.SIGKILL)  # its workers end with it
        self._join()

    def stop(self, *, seconds: float = 20) -> int:
        """Ask it to end as a service manager does; its exit status. Killed, with an error, where it does not."""
        if self.running():
            os.kill(self.popen.pid, signal.SIGTERM)
        try:
            return self._join(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _join(self, seconds: float = _PATIENCE) -> int:
        status = self.popen.wait(seconds)
        for reader in self._readers:
            reader.join()
        for stream in (self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()
        return status

    def start_reading(self) -> None:
        """Follow its output, and return once it accepts connections."""
        for stream, take in ((self.popen.stdout, self.log.write), (self.popen.stderr, self._take)):
            assert stream is not None
            reader = threading.Thread(target=_follow, args=(stream, take), daemon=True)
            reader.start()
            self._readers.append(reader)
        if not self._ready.wait(_PATIENCE) or not self._listeners:
            said = "".join(self.said)
            self.kill()
            raise AssertionError(f"mitm-cache did not start:\n{said}")

    def _take(self, line: str) -> None:
        self.said.append(line)
        found = _BANNER.match(line)
        if found and found[1] in LISTENERS:
            self._listeners[found[1]] = (found[2].strip("[]"), int(found[3]))
        if line == "Ready.\n":
            self._ready.set()
        elif line == "":
            self._ready.set()  # its end


def _follow(stream: IO[str], take: Any) -> None:
    for line in stream:
        take(line)
    take("")


def settings(data: Path, *upstreams: LyingUpstream, listen: Collection[str] = LISTENERS, more: str = "") -> str:
    """A configuration as TOML. Every upstream's CA is trusted; `more` is added at the end (tables of its own)."""
    first, *others = upstreams
    bundle = data.with_name(f"{data.name}-upstreams.crt")
    bundle.write_text("".join(each.ca_file.read_text() for each in upstreams))
    text = first.configuration(data, listen=listen).replace(f'"{first.ca_file}"', f'"{bundle}"')
    for each in others:
        address = each.registry.address[0]
        text += f'[registries."{each.registry.name}"]\nurl = "{each.registry.url()}"\nresolve = "{address}"\n'
    if "[serve]" not in more:
        more += '\n[serve]\ndrain = "2s"\n'  # requests that a test has left hanging are not waited for
    return f'{text}[log]\nformat = "json"\n{more}'


def _configured(data: Path, upstreams: tuple[LyingUpstream, ...], listen: Collection[str], more: str) -> Path:
    path = data.with_name(f"{data.name}-{next(_NUMBERS)}.toml")
    path.write_text(settings(data, *upstreams, listen=listen, more=more))
    return path


def _asking(more: str) -> dict[str, str]:
    """The environment of a product that asks for a tag each time, unless a test says otherwise."""
    return {} if "tag_ttl" in more else {"MITM_CACHE_CACHE_TAG_TTL": "0s"}


@contextmanager
def in_thread(
    data: Path,
    *upstreams: LyingUpstream,
    listen: Collection[str] = LISTENERS,
    more: str = "",
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Threaded]:
    """The product over `data`, accepting connections; only one at a time in a process."""
    log = Log()
    environ = _asking(more) | dict(environ)
    app = App(load(file=_configured(data, upstreams, listen, more), environ=environ), output=log)
    with run_in_thread(app):
        yield Threaded(app, data, app.authority.certificate_path, log, upstreams[0].registry.name)


@contextmanager
def process(data: Path, *upstreams: LyingUpstream, more: str = "") -> Iterator[Process]:
    """`python -m mitm_cache serve` over `data`, accepting connections on ports of its own; ended by its pid."""
    path = _configured(data, upstreams, LISTENERS, more)
    command = [sys.executable, "-m", "mitm_cache", "--config", str(path), "serve"]
    popen = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | _asking(more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    served = Process(popen, data, data / "ca" / "ca.crt", upstreams[0].registry.name)
    served.start_reading()
    try:
        yield served
    finally:
        served.stop()
