"""What the internet's side saw: the access log of the front, read as requests."""

import json
import re
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.process import wait_until

Kind = Literal["ping", "manifest by tag", "manifest by digest", "blob", "object", "token", "other"]

_KINDS: list[tuple[str, Kind]] = [
    (r"/v2/", "ping"),
    (r"/v2/.+/manifests/[a-z0-9]+:[0-9a-f]+", "manifest by digest"),
    (r"/v2/.+/manifests/[^/:]+", "manifest by tag"),
    (r"/v2/.+/blobs/[a-z0-9]+:[0-9a-f]+", "blob"),
    (r"(/artifacts-downloads)?/registry/docker/registry/v2/blobs/.+/data", "object"),
    (r"/token|/v2/token|/v2/auth", "token"),
]


@dataclass(frozen=True)
class Request:
    """One request that reached a registry, its store or its token host."""

    host: str
    method: str
    path: str
    status: int
    user_agent: str
    range: str
    authorization: str
    sent: int
    scheme: str
    client: str

    @property
    def kind(self) -> Kind:
        """What was asked for; `object` is a blob at the store a registry redirects to."""
        return next((kind for form, kind in _KINDS if re.fullmatch(form, self.path)), "other")

    @property
    def is_content(self) -> bool:
        """Whether this fetched what a cache that has it never needs again: a blob or a manifest by digest."""
        return self.method == "GET" and self.kind in ("blob", "object", "manifest by digest")


class AccessLog:
    """The requests so far; a mark is a place in their order."""

    # A path that the front answers for itself; it is logged as everything else is.
    BARRIER = "/lab-barrier/"

    def __init__(self, path: Path, probe: Callable[[str], object]) -> None:
        self._path, self._probe = path, probe

    def _lines(self) -> list[str]:
        return self._path.read_text(errors="replace").splitlines() if self._path.exists() else []

    def mark(self) -> int:
        """The place after everything that has been answered by now.

        A client may see its last byte before the front writes the line. The front is one thread, so once a request of
        our own has its line, all earlier answers have theirs.
        """
        name = uuid.uuid4().hex
        self._probe(self.BARRIER + name)
        wait_until(lambda: any(name in line for line in self._lines()), "the barrier in the access log")
        return len(self._lines())

    def requests(self, host: str | None = None, since: int = 0) -> list[Request]:
        """Everything answered by now, of one host or all."""
        until = self.mark()
        rows = (Request(**json.loads(line)) for line in self._lines()[since:until])
        return [row for row in rows if not row.path.startswith(self.BARRIER) and host in (None, row.host)]

    def content(self, since: int = 0) -> list[Request]:
        """GETs of blobs and of manifests by digest: there must be none for what is cached."""
        return [request for request in self.requests(since=since) if request.is_content]

    def counts(self, host: str | None = None, since: int = 0) -> "Counter[tuple[str, str, str]]":
        """How many requests by host, method and kind."""
        return Counter((request.host, request.method, request.kind) for request in self.requests(host, since))
