"""Real proxies in processes of their own, each with what it said: tinyproxy, microsocks, stunnel before tinyproxy."""

import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.needs import find_tool, needs_tool
from tests.ports import free_port

needs_tinyproxy = needs_tool("tinyproxy", package="tinyproxy-bin")
needs_microsocks = needs_tool("microsocks", package="microsocks")
needs_stunnel = needs_tool("stunnel4", package="stunnel4")
USER, PASSWORD = "alice", "s3cret-word"
_PATIENCE = 20.0


@dataclass(slots=True, eq=False)
class Running:
    """A proxy at work on a port of 127.0.0.1."""

    scheme: str
    port: int
    said: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def url(self, user: str | None = None, password: str = "") -> str:
        """How it is written in the configuration; what is odd in a password is percent-encoded by the caller."""
        who = "" if user is None else f"{user}:{password}@"
        return f"{self.scheme}://{who}127.0.0.1:{self.port}"

    def heard(self, text: str) -> bool:
        """Whether its log speaks of this; waits a little, because a log may follow the answer."""
        with self._changed:
            return self._changed.wait_for(lambda: any(text in line for line in self.said), _PATIENCE)

    def speaks_of(self, text: str) -> bool:
        """Whether its log speaks of this by now."""
        with self._changed:
            return any(text in line for line in self.said)

    def follow(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                self.said.append(line.rstrip())
                self._changed.notify_all()


@contextmanager
def _running(scheme: str, port: int, command: Sequence[str]) -> Iterator[Running]:
    program = find_tool(command[0])
    assert program is not None
    process = subprocess.Popen(
        [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    running = Running(scheme, port)
    reader = threading.Thread(target=running.follow, args=(process,), daemon=True)
    reader.start()
    try:
        _wait_for(port, process)
        yield running
    finally:
        process.terminate()
        process.wait(_PATIENCE)
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _wait_for(port: int, process: "subprocess.Popen[str]") -> None:
    while True:
        assert process.poll() is None, "the proxy ended at once"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            threading.Event().wait(0.02)  # nothing tells when a program listens
        else:
            return


@contextmanager
def tinyproxy(folder: Path, user: str | None = None, password: str = "") -> Iterator[Running]:
    """An http proxy whose log holds the first line of each request."""
    port = free_port()
    file = folder / f"tinyproxy-{port}.conf"
    auth = "" if user is None else f"BasicAuth {user} {password}\n"
    file.write_text(f"Port {port}\nListen 127.0.0.1\nLogLevel Connect\nTimeout 30\n{auth}")
    with _running("http", port, ["tinyproxy", "-d", "-c", str(file)]) as running:
        yield running


@contextmanager
def microsocks(user: str | None = None, password: str = "") -> Iterator[Running]:
    """A socks5 proxy whose log holds each host that it was asked for."""
    port = free_port()
    auth = [] if user is None else ["-u", user, "-P", password]
    with _running("socks5", port, ["microsocks", "-i", "127.0.0.1", "-p", str(port), *auth]) as running:
        yield running


@contextmanager
def stunnel(folder: Path, pem: Path, behind: Running) -> Iterator[Running]:
    """TLS before another proxy: an https proxy."""
    port = free_port()
    file = folder / f"stunnel-{port}.conf"
    file.write_text(
        f"foreground = yes\npid =\nsyslog = no\n[proxy]\naccept = 127.0.0.1:{port}\n"
        f"connect = 127.0.0.1:{behind.port}\ncert = {pem}\n"
    )
    with _running("https", port, ["stunnel4", str(file)]) as running:
        yield running
