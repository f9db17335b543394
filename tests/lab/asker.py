"""Many requests by one process on a host of the lab: `python -m tests.lab.asker`, questions and replies as JSON."""

import base64
import hashlib
import http.client
import json
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from tests.lab.host import Host

ROOT = Path(__file__).parents[2]
ANY = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, */*"


@dataclass(frozen=True)
class Question:
    """A request as it is on the wire: `name` is what the server is called, `address` where it is.

    With `proxy` the connection begins with a CONNECT to that name.
    """

    name: str
    address: str
    port: int
    target: str
    tls: bool = True
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    proxy: bool = False


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    encoded: str = field(repr=False)
    error: str = ""

    @cached_property
    def body(self) -> bytes:
        return base64.b64decode(self.encoded)

    @property
    def digest(self) -> str:
        """Of the body."""
        return f"sha256:{hashlib.sha256(self.body).hexdigest()}"

    @property
    def outcome(self) -> str:
        return self.headers.get("x-cache", "")


def ask(host: Host, questions: Sequence[Question], *, timeout: float = 120) -> list[Reply]:
    """Ask all of them from `host`, one after the other, each on a connection of its own."""
    text = json.dumps([asdict(question) for question in questions])
    # Where the code is has to be said: the host's programs get no environment of ours.
    env = {"PYTHONPATH": str(ROOT)}
    done = host.run(sys.executable, "-m", "tests.lab.asker", env=env, timeout=timeout, text=text)
    return [Reply(**row) for row in json.loads(done.out)]


def _ask(question: Question, context: ssl.SSLContext) -> Reply:
    connection = http.client.HTTPConnection(question.name, timeout=60)
    plain = socket.create_connection((question.address, question.port), 60)
    try:
        if question.proxy:
            plain.sendall(f"CONNECT {question.name}:443 HTTP/1.1\r\nHost: {question.name}:443\r\n\r\n".encode())
            said = b""
            while not said.endswith(b"\r\n\r\n"):
                more = plain.recv(1)
                if not more:
                    break
                said += more
            if b" 200 " not in said.partition(b"\r\n")[0]:
                return Reply(0, {}, "", f"CONNECT: {said!r}")
        connection.sock = context.wrap_socket(plain, server_hostname=question.name) if question.tls else plain
        connection.request(question.method, question.target, headers={"Accept": ANY, **question.headers})
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, base64.b64encode(response.read()).decode())
    except (OSError, http.client.HTTPException) as error:
        return Reply(0, {}, "", f"{type(error).__name__}: {error}")
    finally:
        connection.close()
        plain.close()


def main() -> None:
    """Questions from standard input, replies to standard output."""
    context = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
    json.dump([asdict(_ask(Question(**row), context)) for row in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
