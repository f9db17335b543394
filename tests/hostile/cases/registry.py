"""A registry, or whoever is in its place, that sends what it should not: nothing of it is finished or kept."""

import gzip
import hashlib
from collections.abc import Callable, Iterable, Sequence

from tests.hostile.case import SECONDS, Case
from tests.hostile.host import Asked, Say, endless, reply
from tests.hostile.scene import SCRIPTED, Scene
from tests.proxy.raw import dial, request

CUT = 0
"""Stands for the status of an answer that was cut, or never came."""
SIZE = 4096


def content(name: str) -> bytes:
    """Bytes that no other case has."""
    return hashlib.sha256(name.encode()).digest() * (SIZE // 32)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def fetch(scene: Scene, target: str, *, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Status, fields and body as a client gets them; CUT where the connection ends before that is whole."""
    with dial(scene.cache, "clear", name=SCRIPTED) as raw:
        raw.send(request(target, "Accept: */*", "Connection: close", method=method, host=SCRIPTED))
        try:
            status, fields = raw.head()
            body = raw.rest()
        except (EOFError, OSError):
            return CUT, {}, b""
    whole = len(body) == int(fields.get("content-length", len(body)))
    return (status, fields, body) if whole else (CUT, {}, b"")


def blob(
    name: str,
    make: Callable[[bytes], Iterable[bytes]],
    *,
    statuses: Sequence[int] = (502, CUT),
    seconds: float = SECONDS,
) -> Case:
    """What a registry sends for a blob: never 200 and whole, unless it is the blob."""

    def run(scene: Scene) -> None:
        data = content(name)
        scene.script.say = lambda _: make(data)
        status, _, body = fetch(scene, f"/v2/x/y/blobs/{digest(data)}")
        assert status in statuses, (status, body[:300])
        if status != 200:
            assert digest(data) not in scene.cache.blobs()
            # It has done no harm that lasts: the truth is taken when it comes.
            scene.script.say = lambda _: [reply(200, body=data)]
            assert fetch(scene, f"/v2/x/y/blobs/{digest(data)}")[::2] == (200, data)
        else:
            assert body == data

    return Case(f"a blob: {name}", _words(statuses), run, asks=True, seconds=seconds)


def _words(statuses: Sequence[int]) -> str:
    shown = [str(status) if status else "the connection is cut" for status in statuses]
    after = "" if 200 in statuses else "; nothing is kept, and the right answer is taken afterwards"
    return " or ".join(shown) + after


def tag(
    name: str, say: Say, statuses: Sequence[int], *, must: str = "", check: Callable[[Scene, bytes], None] | None = None
) -> Case:
    """What a registry sends for a tag."""

    def run(scene: Scene) -> None:
        scene.script.say = say
        status, _, body = fetch(scene, f"/v2/x/y/manifests/{hashlib.sha256(name.encode()).hexdigest()[:12]}")
        assert status in statuses, (status, body[:300])
        if check is not None:
            check(scene, body)

    return Case(f"a tag: {name}", must or _shown(statuses), run, asks=True)


def _shown(statuses: Sequence[int]) -> str:
    return " or ".join(str(status) if status else "the connection is cut" for status in statuses)


MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}'
TYPE = "Content-Type: application/vnd.oci.image.manifest.v1+json"


def manifest(*lines: str, body: bytes = MANIFEST) -> Say:
    """A manifest under a tag, honest but for `lines`."""

    def say(asked: Asked) -> Iterable[bytes]:
        own = (
            []
            if any(line.startswith("Docker-Content-Digest") for line in lines)
            else [f"Docker-Content-Digest: {digest(body)}"]
        )
        head = reply(200, TYPE, *own, *lines, length=len(body))
        return [head if asked.method == "HEAD" else head + body]

    return say


def redirect(location: str, status: int = 307, *lines: str) -> Callable[[bytes], list[bytes]]:
    return lambda _: [reply(status, f"Location: {location}", *lines)]


def led(name: str, location: str | Callable[[Scene], str], *, status: int = 307) -> Case:
    """A redirect that must not be followed, or not to its end."""

    def run(scene: Scene) -> None:
        data = content(name)
        where = location if isinstance(location, str) else location(scene)
        scene.script.say = lambda _: [reply(status, f"Location: {where}")]
        got, _, body = fetch(scene, f"/v2/x/y/blobs/{digest(data)}")
        assert got == 502, (got, body[:300])
        assert len(scene.script.asked) <= 12
        assert "s3cr3t" not in scene.cache.log.text

    return Case(f"a redirect {name}", "502; it is not followed, or not for ever", run, asks=True)


def bomb(size: int) -> bytes:
    return gzip.compress(bytes(size), 9)


def _saying(answer: bytes) -> Say:
    return lambda _: [answer]


def _retry_after(scene: Scene) -> None:
    for value in ("-1", "9" * 400, "never", "\x01"):
        scene.script.say = _saying(reply(503, f"Retry-After: {value}"))
        status, headers, _ = fetch(scene, "/v2/x/y/manifests/later")
        assert status in (502, 503)
        assert "\n" not in headers.get("retry-after", "")


def _cookies(scene: Scene) -> None:
    data = content("cookies")
    lines = ("Set-Cookie: a=b; Domain=docker.io", "Strict-Transport-Security: max-age=1")
    more = ('Alt-Svc: h2="evil.example:443"', "Link: <//evil.example>")
    scene.script.say = lambda _: [reply(200, *lines, *more, body=data)]
    for _ in range(2):
        status, headers, _ = fetch(scene, f"/v2/x/y/blobs/{digest(data)}")
        assert status == 200
        assert not {"set-cookie", "strict-transport-security", "alt-svc", "link"} & set(headers)
    assert all("cookie" not in asked.headers for asked in scene.script.asked)


def _own_headers(scene: Scene) -> None:
    """What the cache says of itself is its own: a registry's word for it stands nowhere beside."""
    scene.script.say = lambda _: [reply(404, "X-Cache: HIT", "X-Cache-Reason: trust me", "X-Request-Id: 1",
                                        "Content-Type: text/html", body=b"<script>alert(1)</script>")]  # fmt: skip
    _, headers, _ = fetch(scene, "/v2/x/y/manifests/nothing")
    assert headers["x-cache"] != "HIT"
    assert headers["x-cache-reason"] != "trust me"


def _wrong_range(name: str, content_range: str, body: bytes, status: int = 206) -> Case:
    def say(_: bytes) -> list[bytes]:
        return [reply(status, f"Content-Range: {content_range}", body=body)]

    return blob(name, say)


def _swallowed(name: str, first: bytes, piece: bytes, limit: int, statuses: Sequence[int] = (502, CUT)) -> Case:
    """Endless: how many bytes are taken before it is cut."""

    def run(scene: Scene) -> None:
        data = content(name)
        scene.script.say = lambda _: endless(piece, first)
        status, _, _ = fetch(scene, f"/v2/x/y/blobs/{digest(data)}")
        assert status in statuses
        assert scene.script.sent <= limit + (4 << 20), scene.script.sent  # what lies in buffers was sent too
        assert digest(data) not in scene.cache.blobs()

    return Case(f"a blob: {name}", "cut after a bounded number of bytes; nothing is kept", run, asks=True)


def _nobody_is_in_the_log(scene: Scene) -> None:
    scene.script.say = lambda _: [reply("599\x1b[2J", body=b"\x1b[2J")]
    fetch(scene, "/v2/x/y/manifests/escape")
    assert "\x1b" not in scene.cache.log.text


CASES: tuple[Case, ...] = (
    blob("other bytes", lambda data: [reply(200, body=bytes(len(data)))]),
    blob("one bit is another", lambda data: [reply(200, body=data[:-1] + bytes([data[-1] ^ 1]))]),
    blob("no bytes", lambda _: [reply(200)]),
    blob("fewer bytes than announced", lambda data: [reply(200, body=data[:-1], length=len(data))]),
    blob(
        "one byte more than announced",
        lambda data: [reply(200, body=data + b"x", length=len(data))],
        statuses=(200, 502, CUT),
    ),
    blob("the blob, announced as longer", lambda data: [reply(200, body=data, length=len(data) + 1)]),
    blob("the blob, announced as shorter", lambda data: [reply(200, body=data, length=len(data) - 1)]),
    blob("a length of 10^17", lambda data: [reply(200, body=data, length=10**17)]),
    blob("a length of 10^30", lambda data: [reply(200, body=data, length=10**30)]),
    blob("a length that is negative", lambda data: [reply(200, "Content-Length: -5", body=data, length=-1)]),
    blob("a length of words", lambda data: [reply(200, "Content-Length: many", body=data, length=-1)]),
    blob("two different lengths", lambda data: [reply(200, "Content-Length: 5", body=data)]),
    blob("no length, and the end of the connection", lambda data: [reply(200, body=data, length=-1)]),
    blob(
        "chunks that end too early", lambda _: [reply(200, "Transfer-Encoding: chunked", length=-1), b"5\r\nhello\r\n"]
    ),
    blob(
        "chunks of a wrong size",
        lambda _: [reply(200, "Transfer-Encoding: chunked", length=-1), b"zz\r\nhello\r\n0\r\n\r\n"],
    ),
    blob(
        "a chunk of 2^64 bytes",
        lambda _: [reply(200, "Transfer-Encoding: chunked", length=-1), b"10000000000000000\r\nhello"],
    ),
    blob("a length beside chunks", lambda _: [reply(200, "Transfer-Encoding: chunked"), b"0\r\n\r\n"]),
    blob("packed, a bomb", lambda _: [reply(200, "Content-Encoding: gzip", body=bomb(50 << 20))]),
    blob("packed, the blob inside", lambda data: [reply(200, "Content-Encoding: gzip", body=gzip.compress(data))]),
    blob("packed in a way that there is not", lambda data: [reply(200, "Content-Encoding: rot13", body=data[::-1])]),
    blob(
        "packed 20 times over",
        lambda data: [reply(200, "Content-Encoding: " + ", ".join(["gzip"] * 20), body=data[::-1])],
    ),
    blob(
        "a transfer coding of gzip", lambda _: [reply(200, "Transfer-Encoding: gzip, chunked", length=-1), b"0\r\n\r\n"]
    ),
    blob("status 100 alone", lambda _: [b"HTTP/1.1 100 Continue\r\n\r\n"]),
    blob("status 101", lambda _: [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc"]),
    blob(
        "status 103 before it",
        lambda data: [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", reply(200, body=data)],
        statuses=(200,),
    ),
    blob("status 204", lambda _: [reply(204)], statuses=(502,)),
    blob("status 203 with the blob", lambda data: [reply(203, body=data)], statuses=(502,)),
    blob("status 304", lambda _: [reply(304)], statuses=(502,)),
    blob("status 401 without a challenge", lambda _: [reply(401)], statuses=(401,)),
    blob("status 407", lambda _: [reply(407, 'Proxy-Authenticate: Basic realm="x"')], statuses=(502,)),
    blob("status 999", lambda data: [reply(999, body=data)], statuses=(502,)),
    blob("status 000", lambda data: [reply("000", body=data)], statuses=(502,)),
    blob("a status of words", lambda data: [reply("OK", body=data)], statuses=(502,)),
    blob("HTTP/0.9", lambda data: [data], statuses=(502,)),
    blob("HTTP/3.0", lambda data: [reply(200, body=data).replace(b"HTTP/1.1", b"HTTP/3.0")], statuses=(200, 502)),
    blob("an SMTP greeting", lambda _: [b"220 mail ESMTP\r\n"], statuses=(502,)),
    blob("a header line without a colon", lambda data: [reply(200, "nonsense", body=data)], statuses=(200, 502, CUT)),
    blob("a header with a NUL", lambda data: [reply(200, "X: a\0b", body=data)], statuses=(200, 502, CUT)),
    blob("a folded header", lambda data: [reply(200, "X: a", " b", body=data)], statuses=(200, 502, CUT)),
    blob("the end in the middle of the head", lambda _: [b"HTTP/1.1 200 OK\r\nContent-Le"]),
    blob("the end at once", lambda _: []),
    blob(
        "a manifest of schema 1 where a blob should be",
        lambda data: [reply(200, "Content-Type: application/vnd.docker.distribution.manifest.v1+json", body=data)],
        statuses=(200, 502),
    ),
    _swallowed("header fields without end", b"HTTP/1.1 200 OK\r\n", b"X-Long: " + b"a" * 1000 + b"\r\n", 1 << 20),
    _swallowed("one header field without end", b"HTTP/1.1 200 OK\r\nX: ", b"a" * 4096, 1 << 20),
    _swallowed("answers of status 100 without end", b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 1 << 20),
    _swallowed("a body without length and without end", b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 16), 1 << 20),
    _swallowed(
        "a body past its length, without end",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n",
        bytes(1 << 16),
        1 << 20,
    ),
    _swallowed("the body of an error without end", b"HTTP/1.1 500 X\r\n\r\n", bytes(1 << 16), 1 << 20),
    _swallowed(
        "the body of a redirect without end", b"HTTP/1.1 307 X\r\nLocation: /x\r\n\r\n", bytes(1 << 16), 1 << 20
    ),
    _swallowed(
        "trailers without end",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: y\r\n" * 1000,
        1 << 20,
    ),
    _wrong_range("206 nobody asked for", "bytes 0-9/10", b"0123456789"),
    _wrong_range("206 of everything, nobody asked for", f"bytes 0-{SIZE - 1}/{SIZE}", bytes(SIZE)),
    _wrong_range("206 that lies about where it begins", "bytes 5-9/10", b"56789"),
    _wrong_range("206 of a huge content", f"bytes 0-9/{'9' * 30}", b"0123456789"),
    _wrong_range("206 with no range", "bytes */10", b"0123456789"),
    _wrong_range("416", "bytes */0", b"", 416),
    blob(
        "a digest that is claimed in a header",
        lambda data: [reply(200, f"Docker-Content-Digest: {digest(data)}", body=bytes(SIZE))],
    ),
    tag("another digest than that of the bytes", manifest(f"Docker-Content-Digest: {digest(b'other')}"), (502, CUT)),
    tag(
        "a digest of an unknown algorithm",
        manifest("Docker-Content-Digest: md5:0cc175b9c0f1b6a831c399e269772661"),
        (200,),
        must="200: it is hashed here",
    ),
    tag(
        "a digest that is a path",
        manifest("Docker-Content-Digest: sha256:../../../../etc/passwd"),
        (200,),
        must="200: it is hashed here",
    ),
    tag(
        "a digest in upper case",
        manifest(f"Docker-Content-Digest: {digest(MANIFEST).upper()}"),
        (200,),
        must="200: it is hashed here",
    ),
    tag("an empty digest", manifest("Docker-Content-Digest: "), (200,), must="200: it is hashed here"),
    tag(
        "two digests, the first one wrong",
        manifest(f"Docker-Content-Digest: {digest(b'other')}", f"Docker-Content-Digest: {digest(MANIFEST)}"),
        (502, CUT),
    ),
    tag("a Content-Type with a line break of CR", manifest("Content-Type: a/b\rX: y"), (200, 502, CUT)),
    tag("a Content-Type of 60 kB", manifest(f"Content-Type: a/{'b' * 60_000}"), (200, 502, CUT)),
    tag(
        "5 MB under a tag",
        lambda asked: [reply(200, TYPE, length=5 << 20) + (b"" if asked.method == "HEAD" else bytes(5 << 20))],
        (502, CUT),
    ),
    tag(
        "5 MB under a tag whose HEAD said 10 bytes",
        lambda asked: (
            [reply(200, TYPE, length=10)]
            if asked.method == "HEAD"
            else [reply(200, TYPE, length=5 << 20), bytes(5 << 20)]
        ),
        (502, CUT),
    ),
    tag(
        "HEAD with a body",
        lambda _: [reply(200, TYPE, f"Docker-Content-Digest: {digest(MANIFEST)}", body=MANIFEST)],
        (200, 502, CUT),
    ),
    tag(
        "GET is refused where HEAD was not",
        lambda asked: (
            [reply(200, TYPE, f"Docker-Content-Digest: {digest(b'refused')}", length=9)]
            if asked.method == "HEAD"
            else [reply(403)]
        ),
        (403,),
    ),
    led("to itself", "/v2/x/y/blobs/again"),
    led("to a file", "file:///etc/passwd"),
    led("by gopher", "gopher://127.0.0.1:6379/_FLUSHALL"),
    led("by ftp", "ftp://127.0.0.1/x"),
    led("by dict", "dict://127.0.0.1:11211/stat"),
    led("to a script", "javascript:alert(1)"),
    led("to data", "data:text/plain,hello"),
    led("to a metadata service", "https://169.254.169.254/latest/?sig=s3cr3t"),
    led("to a metadata service by http", "http://169.254.169.254/latest/?sig=s3cr3t"),
    led("to a metadata service by IPv6", "https://[fd00:ec2::254]/?sig=s3cr3t"),
    led("to a metadata service mapped into IPv6", "https://[::ffff:169.254.169.254]/"),
    led("to a metadata service as one number", "https://2852039166/"),
    led("to a metadata service by name", "https://metadata.example/"),
    led("to http", lambda scene: f"http://127.0.0.1:{scene.upstream.storage.port}/"),
    led("to nowhere", ""),
    led("to a port that there is not", "https://127.0.0.1:99999/"),
    led("to port 0", "https://127.0.0.1:0/"),
    led("with a space", "https://127.0.0.1/ x"),
    led("with user information of another host", "https://cdn.example@169.254.169.254/"),
    led("with a percent-encoded host", "https://%31%36%39.254.169.254/"),
    led("with a backslash", "https://169.254.169.254\\@cdn.example/"),
    led("with a host of full-width digits", "https://１６９.254.169.254/".encode().decode("latin-1")),  # noqa: RUF001
    led("with an IPv6 address that is none", "https://[::1/"),
    led("of 100 kB", f"https://cdn.example/{'a' * 100_000}"),
    led("with a bare CR", "https://127.0.0.1/\rX: y"),
    Case("Retry-After nonsense", "502 or 503, and no line break comes out of it", _retry_after, asks=True),
    Case(
        "Set-Cookie, HSTS, Alt-Svc and Link beside a blob",
        "are not passed on, not kept and not sent back",
        _cookies,
        asks=True,
    ),
    Case("what only the cache says of itself", "is not a registry's to say", _own_headers, asks=True),
    Case("escape sequences in a status line", "do not come into the log", _nobody_is_in_the_log, asks=True),
)
