"""A Docker or Podman daemon: which images it has, and having it push one.

Everything here blocks for as long as its time-outs say, and belongs into threads. The API is Docker's (Engine API,
"ImageInspect" and "ImagePush"), which Podman's service answers too.
"""

import json
import logging
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import docker
import docker.errors
import urllib3
from docker.types import CancellableStream

from mitm_cache.errors import StoppingError, UnreachableError, UpstreamError

MARK = "X-Meta-Mitm-Cache-Push"
"""Docker passes headers of a push that begin with X-Meta- on to the registry: by this one its requests are known."""

ANSWER_SECONDS = 5
"""For each answer about an image: Podman's service may have to be started for it."""
SILENCE_SECONDS = 120
"""That a daemon may say nothing while it pushes; it tells of its progress many times a second."""
UNIX = "unix://"
MAX_LINE = 1 << 20
"""Bytes of one message about a push; beyond it what speaks is no such daemon."""
_FIRST_VERSION = "1.24"
"""Of the API; it stands only until the daemon has told its own."""
_NONSENSE = (ValueError, KeyError, TypeError, AttributeError)
_FAULTS = (docker.errors.DockerException, urllib3.exceptions.HTTPError, OSError, *_NONSENSE)
"""What the library and what it is built on raise, whose own HTTP errors are OSErrors, and what odd answers lead to."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """An image that the daemon has by a `name` with a tag or digest.

    `id` is that of its configuration, or of its manifest or index where containerd keeps the images; `digests` are what
    registries have called it, `tags` all its names; `given`: seconds of the epoch when it got this name, or was made.
    """

    name: str
    id: str
    digests: frozenset[str]
    tags: tuple[str, ...]
    given: float

    @classmethod
    def of(cls, name: str, fields: dict[str, Any]) -> "Held":
        """From the answer of ImageInspect. Raises KeyError, TypeError or ValueError where it is none."""
        digits = str(fields["Id"])
        tagged = _seconds(str((fields.get("Metadata") or {}).get("LastTagTime") or ""))
        return cls(
            name,
            digits if ":" in digits else f"sha256:{digits}",
            frozenset(str(one).rpartition("@")[2] for one in fields.get("RepoDigests") or ()),
            tuple(str(one) for one in fields.get("RepoTags") or ()),
            # Podman keeps no time of its tags and says the year 1.
            tagged if tagged > 0 else max(0.0, _seconds(str(fields.get("Created") or ""))),
        )


def _seconds(text: str) -> float:
    """Of the epoch, from RFC 3339; 0 where there is no time."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


class Daemon:
    """One daemon, at a URL such as unix:///var/run/docker.sock. Any thread may use it."""

    def __init__(self, url: str, *, silence: int = SILENCE_SECONDS) -> None:
        self.url = url
        self._silence = silence
        self._lock = threading.Lock()
        self._asking: docker.APIClient | None = None
        self._streams: dict[object, Any] = {}
        self._closed = False

    def look(self, names: Iterable[str]) -> list[Held]:
        """What it has by these names. Raises UpstreamError where it does not say."""
        found = []
        try:
            client = self._client()
            for name in names:
                try:
                    fields = client.inspect_image(name)  # type: ignore[no-untyped-call]  # by its decorator
                    found.append(Held.of(name, fields))
                except docker.errors.NotFound:
                    continue
        except _FAULTS as error:
            self._forget()
            raise UnreachableError(f"the daemon at {self.url} does not say what it has: {_words(error)}") from error
        return found

    def push(self, name: str, mark: str) -> str:
        """Have it push an image by its name with a tag; what it says the digest is, "" where it does not.

        Raises UpstreamError with its own words.
        """
        key = object()
        try:
            client = self._open(self._silence)
        except _FAULTS as error:
            raise UnreachableError(f"the daemon at {self.url} cannot be asked to push: {_words(error)}") from error
        client.headers[MARK] = mark
        client.hooks["response"].append(lambda response, *_, **__: self._follow(key, response))
        repository, _, tag = name.rpartition(":")
        digest = ""
        try:
            # An empty login, since otherwise the library looks for one in this user's home.
            for message in _messages(client.push(repository, tag=tag, stream=True, auth_config={})):
                if (words := _refusal(message)) is not None:
                    raise UpstreamError(f"the daemon could not push {name}: {words}")
                told = message.get("aux")
                digest = str(told.get("Digest") or digest) if isinstance(told, dict) else digest
        except _FAULTS as error:
            if self._closed:
                raise StoppingError("the cache is shutting down") from error
            raise UpstreamError(f"the daemon at {self.url} could not push {name}: {_words(error)}") from error
        finally:
            if (response := self._streams.pop(key, None)) is not None:
                response.close()
            client.close()
        if self._closed:
            raise StoppingError("the cache is shutting down")
        return digest

    def close(self) -> None:
        """End the pushes that are under way; their threads are told so."""
        with self._lock:
            self._closed = True
            streams = list(self._streams.values())
        for response in streams:
            try:
                CancellableStream(iter(()), response).close()
            except (OSError, AttributeError):
                pass  # it has ended by itself
        self._forget()

    def _follow(self, key: object, response: Any) -> None:
        with self._lock:
            self._streams[key] = response
            closed = self._closed
        if closed:
            raise ConnectionAbortedError("closed")

    def _client(self) -> docker.APIClient:
        with self._lock:
            if self._asking is not None:
                return self._asking
        client = self._open(ANSWER_SECONDS)
        with self._lock:
            closed, known = self._closed, self._asking
            if not closed and known is None:
                self._asking = known = client
        if known is not client:
            client.close()  # another thread was quicker, or this is the end
        if closed or known is None:
            raise ConnectionAbortedError("closed")
        return known

    def _forget(self) -> None:
        with self._lock:
            client, self._asking = self._asking, None
        if client is not None:
            client.close()

    def _open(self, seconds: int) -> docker.APIClient:
        """A client that speaks the daemon's version of the API. Proxies of the environment are not for daemons."""
        if self.url.startswith(UNIX):
            # The library leaves its socket open where nobody is there, and its words are long.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(ANSWER_SECONDS)
                probe.connect(self.url.removeprefix(UNIX))
        first = docker.APIClient(self.url, version=_FIRST_VERSION, timeout=ANSWER_SECONDS)
        first.trust_env = False
        try:
            version = str(first.version(api_version=False)["ApiVersion"])
        finally:
            first.close()
        client = docker.APIClient(self.url, version=version, timeout=seconds)
        client.trust_env = False
        return client


def _messages(stream: Iterable[bytes | str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream, one a line. Raises ValueError where there are others."""
    rest = b""
    for piece in stream:
        rest += piece.encode() if isinstance(piece, str) else piece
        *lines, rest = rest.split(b"\n")
        yield from map(_message, filter(bytes.strip, lines))
        if len(rest) > MAX_LINE:
            raise ValueError(f"it sends more than {MAX_LINE} bytes in one line")
    if rest.strip():
        yield _message(rest)


def _message(line: bytes) -> dict[str, Any]:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("it sends something else than messages about a push")
    return message


def _refusal(message: dict[str, Any]) -> str | None:
    """Why a push has failed, where a message says that."""
    detail = message.get("errorDetail")
    words = message.get("error") or (detail.get("message") if isinstance(detail, dict) else None)
    return _printable(str(words)) if words else None


def _words(error: BaseException) -> str:
    if isinstance(error, KeyError | TypeError | AttributeError):
        return f"its answer is not what it should be ({_printable(str(error))})"
    explanation = getattr(error, "explanation", None) or _of_the_system(error)
    return _printable(str(explanation or error) or type(error).__name__)


def _of_the_system(error: BaseException | None) -> str | None:
    """What the kernel has said: docker, requests and urllib3 each wrap it in an error of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        within = next((each for each in error.args if isinstance(each, BaseException)), None)
        error = within or error.__cause__ or error.__context__
    return None


def _printable(text: str) -> str:
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= 300 else f"{text[:300]}…"
