"""A client that pushes as real ones do: it asks what is there, sends the rest in pieces or at once, and tries again.

It remembers what it was promised, and says where a promise was not kept.
"""

import http.client
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote

from mitm_cache.demo.content import Content
from mitm_cache.demo.image import KIB, Image
from tests.serving import Client, Reply

NAME = "registry.local"
SECTION = f'[local]\nnames = ["{NAME}"]\n'
OCTETS = {"Content-Type": "application/octet-stream"}
TRIES = 400
"""Of one step, before a push counts as hanging: a restart takes many of them."""
PAUSE_SECONDS = 0.1


class Broken(Exception):
    """The connection ended, or the registry cannot answer just now: clients try again."""


@dataclass(slots=True)
class Account:
    """What many pushes came to; any thread may add to it."""

    images: dict[tuple[str, str], Image] = field(default_factory=dict)
    """By repository and tag: what the PUT of the tag was answered 201 for."""
    blobs: set[tuple[str, str, int]] = field(default_factory=set)
    """Repository, digest and size of what was answered 201."""
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that no push should get."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def promised(self) -> tuple[dict[tuple[str, str], Image], set[tuple[str, str, int]]]:
        """Images and blobs up to now."""
        with self._lock:
            return dict(self.images), set(self.blobs)

    def keep_image(self, repository: str, tag: str, image: Image) -> None:
        with self._lock:
            self.images[repository, tag] = image

    def keep_blob(self, repository: str, digest: str, size: int) -> None:
        with self._lock:
            self.blobs.add((repository, digest, size))

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def complain(self, words: str) -> None:
        with self._lock:
            self.wrong.append(words)


class Pusher:
    """One client with one connection at a time."""

    def __init__(self, connect: Callable[[], Client], account: Account, seed: float) -> None:
        """`connect`: makes a connection that calls the cache by `NAME`."""
        self._connect, self._account, self._dice = connect, account, random.Random(seed)
        self._client: Client | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._hang_up()

    def push(self, repository: str, tag: str, image: Image) -> None:
        """Push a whole image: blobs, then the manifests of its platforms, then the index under its tag."""
        for digest, content in image.blobs.items():
            self.push_blob(repository, digest, content)
        for manifest in image.platforms.values():
            self._put_manifest(repository, manifest.digest, manifest.body, manifest.media_type)
        self._put_manifest(repository, tag, image.index.body, image.index.media_type)
        self._account.keep_image(repository, tag, image)

    def begin(self, repository: str, image: Image) -> None:
        """Push a part of an image and come back no more: blobs that no manifest needs, and an upload half done."""
        (first, content), (_, second), *_ = image.blobs.items()
        self.push_blob(repository, first, content)
        self._again(lambda: self._leave(repository, second))

    def _leave(self, repository: str, content: Content) -> None:
        place = self._open(repository)
        body = _bytes(content, 0, content.size // 2)
        self._ask("PATCH", place, {**OCTETS, "Content-Range": f"0-{len(body) - 1}"}, body, good=(202,))

    def push_blob(self, repository: str, digest: str, content: Content) -> None:
        """Have a repository hold a blob."""
        target = f"/v2/{repository}/blobs/{digest}"
        self._again(lambda: self._send(repository, target, digest, content))
        self._account.keep_blob(repository, digest, content.size)

    def _send(self, repository: str, target: str, digest: str, content: Content) -> None:
        if self._ask("HEAD", target, {}, good=(200, 404)).status == 200:
            return
        how = self._dice.random()
        if how < 0.2:
            query = f"digest={quote(digest)}"
            self._ask("POST", f"/v2/{repository}/blobs/uploads/?{query}", OCTETS, _bytes(content), good=(201,))
        elif how < 0.5:
            self._finish(self._open(repository), digest, _bytes(content))
        else:
            self._send_pieces(self._open(repository), digest, content)

    def _open(self, repository: str) -> str:
        answer = self._ask("POST", f"/v2/{repository}/blobs/uploads/", {}, b"", good=(202,))
        return str(answer.headers["Location"])

    def _send_pieces(self, place: str, digest: str, content: Content) -> None:
        offset = 0
        while offset < content.size:
            piece = _bytes(content, offset, min(content.size, offset + self._dice.randrange(8 * KIB, 128 * KIB)))
            headers = {**OCTETS, "Content-Range": f"{offset}-{offset + len(piece) - 1}"}
            try:
                self._ask("PATCH", place, headers, piece, good=(202,))
                offset += len(piece)
            except Broken:
                known, offset = offset, self._again(lambda: self._offset(place))
                self._account.count("uploads gone on with")
                if not known <= offset <= known + len(piece):
                    self._account.complain(f"{place}: {known} bytes were there, then there are {offset}")
        self._finish(place, digest, b"")

    def _offset(self, place: str) -> int:
        said = str(self._ask("GET", place, {}, good=(204,)).headers["Range"])
        last = int(said.partition("-")[2])
        return last + 1 if last else 0

    def _finish(self, place: str, digest: str, body: bytes) -> None:
        mark = "&" if "?" in place else "?"
        self._ask("PUT", f"{place}{mark}digest={quote(digest)}", OCTETS, body, good=(201,))

    def _put_manifest(self, repository: str, reference: str, body: bytes, media_type: str) -> None:
        target = f"/v2/{repository}/manifests/{reference}"
        self._again(lambda: self._ask("PUT", target, {"Content-Type": media_type}, body, good=(201,)))

    def _again[T](self, step: Callable[[], T]) -> T:
        for _ in range(TRIES):
            try:
                return step()
            except Broken as error:
                self._account.count(str(error))
                self._ended.wait(PAUSE_SECONDS)
        raise AssertionError(f"{TRIES} times in vain: {self._account.counts}, {self._account.wrong[-3:]}")

    def _ask(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None = None, *, good: tuple[int, ...]
    ) -> Reply:
        try:
            if self._client is None:
                self._client = self._connect()
            answer = self._client.ask(method, target, headers, body)
        except ConnectionRefusedError:
            self._hang_up()
            raise Broken("refused") from None
        except TimeoutError:
            self._hang_up()
            self._account.complain(f"{method} {target}: no answer")
            raise Broken("no answer") from None
        except (OSError, http.client.HTTPException):
            self._hang_up()
            raise Broken("cut") from None
        if answer.status in good:
            return answer
        if answer.status not in (409, 500, 502, 503, 504):
            self._account.complain(f"{method} {target}: {answer.status} {answer.body[:300]!r}")
        raise Broken(f"{method} {answer.status}")

    def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _bytes(content: Content, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join(content.chunks(start, content.size if stop is None else stop))
