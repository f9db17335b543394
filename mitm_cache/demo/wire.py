"""The HTTP client of the demo: keep-alive connections, a hosts file of its own, redirects, and nothing clever."""

import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, override
from urllib.parse import urljoin, urlsplit

type Address = tuple[str, int]

_MAX_REDIRECTS = 5
_TIMEOUT = 120.0


class _Connection(http.client.HTTPSConnection):
    """Connects to an address while it asks for, and verifies, a name."""

    def __init__(self, name: str, address: Address, context: ssl.SSLContext) -> None:
        super().__init__(name, timeout=_TIMEOUT)
        self._to = address
        self._tls = context

    @override
    def connect(self) -> None:
        plain = socket.create_connection(self._to, _TIMEOUT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


@dataclass(slots=True)
class Wire:
    """Connections to any number of hosts, for one thread. `hosts` says where a name is really to be found."""

    context: ssl.SSLContext
    hosts: Mapping[str, Address]
    _open: dict[tuple[str, int], _Connection] = field(default_factory=dict, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._open.values():
            connection.close()

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The answer, past redirects; its body is for the caller to read, to the end. Credentials stay home."""
        for _ in range(_MAX_REDIRECTS):
            response = self.once(method, url, headers)
            location = response.headers.get("Location")
            if not (300 <= response.status < 400 and location):
                return response
            response.read()
            target = urljoin(url, location)
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            url = target
        raise http.client.HTTPException(f"more than {_MAX_REDIRECTS} redirects")

    def once(self, method: str, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The answer as it is."""
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port or 443
        if (name, port) not in self._open:
            self._open[name, port] = _Connection(name, self.hosts.get(name, (name, port)), self.context)
        connection = self._open[name, port]
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers={"Host": parts.netloc, **headers})
        return connection.getresponse()
