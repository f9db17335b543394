"""A client that trusts nobody: what it asks for it knows by heart, and says of every answer what was wrong with it."""

import enum
import hashlib
import http.client
import json
import socket
import ssl
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Self, override

from mitm_cache.demo.image import INDEX, MANIFEST, Image, Manifest
from tests.serving import Client, Process

ANY = {"Accept": f"{MANIFEST}, {INDEX}, */*"}
_PIECE = 64 << 10


class Verdict(enum.Enum):
    """What an answer was, or a whole pull: that of its first answer which was not right."""

    RIGHT = "right"
    CUT = "cut"
    """The connection ended before the answer: clients try again."""
    ERROR = "error"
    """A status from 400 on with the document that the distribution specification wants."""
    REFUSED = "refused"
    """Nobody accepts connections."""
    HUNG = "hung"
    """Nothing came for the client's whole patience."""
    MALFORMED = "malformed"
    """An error in a form that clients do not know."""
    SHORT = "short"
    """A 200 that says it is whole, with fewer bytes than there are."""
    WRONG = "wrong"
    """A 200 with other bytes, or another digest."""


CLEAN = {Verdict.CUT, Verdict.ERROR}
"""How a pull may fail."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer: `outcome` is X-Cache, `note` what was wrong in words."""

    verdict: Verdict
    outcome: str = ""
    note: str = ""


@dataclass(slots=True)
class Tally:
    """What many pulls came to; any thread may add to it."""

    pulls: Counter[Verdict] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    hits: set[str] = field(default_factory=set)
    """Digests that were served as HIT."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, verdict: Verdict) -> None:
        with self._lock:
            self.pulls[verdict] += 1

    def note(self, target: str, seen: Seen) -> None:
        """Remember an answer, by what it was asked for."""
        with self._lock:
            if seen.verdict is not Verdict.RIGHT:
                self.notes.append(f"{seen.verdict.value}: {target}: {seen.note}")
            elif seen.outcome == "HIT":
                self.hits.add(target)

    def words(self, *among: Verdict) -> list[str]:
        """What was said about answers of these verdicts."""
        names = tuple(f"{each.value}:" for each in among)
        return [note for note in self.notes if note.startswith(names)]

    @property
    def failed(self) -> int:
        """Pulls that were not right."""
        return self.pulls.total() - self.pulls[Verdict.RIGHT]


class Strict(Client):
    """A connection whose end without TLS's goodbye is no end of a body."""

    @override
    def connect(self) -> None:
        plain = socket.create_connection(self._address, self.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self._tls is not None
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host, suppress_ragged_eofs=False)


@dataclass(frozen=True, slots=True)
class Place:
    """A cache as its clients know it."""

    address: tuple[str, int]
    name: str
    tls: ssl.SSLContext
    timeout: float = 60.0

    @classmethod
    def of(cls, served: Process) -> Self:
        """The listener for clients that come by TLS."""
        return cls(served.address("tls"), served.registry, ssl.create_default_context(cafile=served.ca_file))

    def connect(self) -> Strict:
        return Strict(self.address, self.name, self.tls, self.timeout)


def pull(place: Place, repository: str, image: Image, tag: str, tally: Tally) -> Verdict:
    """Pull a whole image as containerd does: HEAD of the tag, then everything by digest, on one connection."""
    verdict = Verdict.RIGHT
    with place.connect() as client:
        for method, target, digest, size in _requests(repository, image, tag):
            seen = judge(client, method, target, digest, size)
            tally.note(digest if method == "GET" else target, seen)
            verdict = seen.verdict
            if verdict is not Verdict.RIGHT:
                break
    tally.add(verdict)
    return verdict


def _requests(repository: str, image: Image, tag: str) -> list[tuple[str, str, str, int]]:
    base = f"/v2/{repository}"
    found = [("HEAD", f"{base}/manifests/{tag}", image.index.digest, len(image.index.body))]
    found += [("GET", f"{base}/manifests/{each.digest}", each.digest, len(each.body)) for each in _documents(image)]
    return found + [("GET", f"{base}/blobs/{digest}", digest, blob.size) for digest, blob in image.blobs.items()]


def _documents(image: Image) -> list[Manifest]:
    return list(image.manifests.values())


def judge(client: Client, method: str, target: str, digest: str, size: int) -> Seen:
    """Ask for content that has this digest and so many bytes, and look at every byte of the answer."""
    try:
        client.send_request(method, target, ANY)
        response = client.getresponse()
        return _look(response, method, digest, size)
    except ConnectionRefusedError as error:
        return Seen(Verdict.REFUSED, note=repr(error))
    except TimeoutError as error:
        return Seen(Verdict.HUNG, note=repr(error))
    except (OSError, http.client.HTTPException) as error:
        return Seen(Verdict.CUT, note=repr(error))


def _look(response: http.client.HTTPResponse, method: str, digest: str, size: int) -> Seen:
    outcome = (response.headers["X-Cache"] or "").partition(" ")[0]
    if response.status >= 400:
        return _look_at_error(response, method, outcome)
    if response.status != 200:
        response.read()
        return Seen(Verdict.MALFORMED, outcome, f"status {response.status}")
    if method == "HEAD":
        response.read()
        told = response.headers["Docker-Content-Digest"]
        return Seen(Verdict.RIGHT if told == digest else Verdict.WRONG, outcome, f"the tag is said to be {told}")
    seen, got = hashlib.sha256(), 0
    while piece := response.read(_PIECE):
        seen.update(piece)
        got += len(piece)
    promised = response.headers["Content-Length"]
    if promised is not None and got < int(promised):
        return Seen(Verdict.CUT, outcome, f"{got} of {promised} bytes")
    if got < size:
        return Seen(Verdict.SHORT, outcome, f"{got} of {size} bytes")
    if f"sha256:{seen.hexdigest()}" != digest:
        return Seen(Verdict.WRONG, outcome, f"{got} bytes of sha256:{seen.hexdigest()}")
    return Seen(Verdict.RIGHT, outcome)


def _look_at_error(response: http.client.HTTPResponse, method: str, outcome: str) -> Seen:
    body = response.read()
    if method == "HEAD":
        return Seen(Verdict.ERROR, outcome, str(response.status))
    try:
        (first, *_) = json.loads(body)["errors"]
        words = f"{response.status} {first['code']}: {first['message']}"
    except (ValueError, KeyError, TypeError):
        return Seen(Verdict.MALFORMED, outcome, f"{response.status} {body[:80]!r}")
    return Seen(Verdict.ERROR, outcome, words)
