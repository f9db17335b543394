"""Token servers that lie, and registries that name a realm which is none of theirs."""

import json
from collections.abc import Callable, Iterable, Sequence

from tests.hostile.case import Case
from tests.hostile.cases.registry import content, digest, fetch
from tests.hostile.host import Asked, endless, reply
from tests.hostile.scene import SCRIPTED, Scene


def challenge(header: str) -> Callable[[Asked], Iterable[bytes]]:
    """A registry that wants a token and says where from; only `Bearer right` is taken."""
    return lambda _: [reply(401, f"WWW-Authenticate: {header}")]


def realm(name: str, value: str | Callable[[Scene], str], statuses: Sequence[int] = (401, 502)) -> Case:
    """A realm that must not be asked."""

    def run(scene: Scene) -> None:
        where = value if isinstance(value, str) else value(scene)
        scene.script.say = challenge(f'Bearer realm="{where}",service="x",scope="repository:x/y:pull"')
        data = content(f"realm {name}")
        status, _, body = fetch(scene, f"/v2/x/y/blobs/{digest(data)}")
        assert status in statuses, (status, body[:300])
        assert [asked.target for asked in scene.script.asked if "/token" in asked.target] == []

    return Case(f"a realm {name}", "it is not asked; the client gets the registry's 401", run, asks=True)


def header(name: str, value: str, statuses: Sequence[int] = (401, 502)) -> Case:
    """A challenge that is none."""

    def run(scene: Scene) -> None:
        scene.script.say = challenge(value)
        status, _, _ = fetch(scene, f"/v2/x/y/blobs/{digest(content(f'challenge {name}'))}")
        assert status in statuses, status

    return Case(f"a challenge {name}", "401 as the registry says, in time", run, asks=True)


def token(name: str, answer: Callable[[], Iterable[bytes]], statuses: Sequence[int] = (401, 502)) -> Case:
    """What a token server answers: no token comes of it, or one that is harmless."""

    def run(scene: Scene) -> None:
        def say(asked: Asked) -> Iterable[bytes]:
            if asked.target.startswith("/token"):
                return answer()
            where = f"https://{SCRIPTED}:{scene.script.port}/token"
            return [reply(401, f'WWW-Authenticate: Bearer realm="{where}",service="x"')]

        scene.script.say = say
        status, _, body = fetch(scene, f"/v2/x/y/blobs/{digest(content(f'token {name}'))}")
        assert status in statuses, (status, body[:300])
        assert any(asked.target.startswith("/token") for asked in scene.script.asked)
        assert all("\n" not in value for asked in scene.script.asked for value in asked.headers.values())
        assert all("x-smuggled" not in asked.headers for asked in scene.script.asked)
        assert scene.script.sent < 8 << 20

    return Case(f"a token: {name}", "no token comes of it: 401 as the registry says, or 502", run, asks=True)


def body(value: object) -> Callable[[], Iterable[bytes]]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda: [reply(200, "Content-Type: application/json", body=data)]


CASES: tuple[Case, ...] = (
    realm("on a foreign host", "https://evil.example/token"),
    realm("at a metadata service", "http://169.254.169.254/token"),
    realm("at loopback", lambda scene: f"https://{scene.target}/token"),
    realm("at the cache itself", lambda scene: f"http://127.0.0.1:{scene.cache.address('clear')[1]}/token"),
    realm("that is a file", "file:///etc/passwd"),
    realm("that is gopher", "gopher://127.0.0.1:6379/_x"),
    realm("on the own host by http", lambda scene: f"http://{SCRIPTED}:{scene.script.port}/token"),
    realm("on the own host, another port", f"https://{SCRIPTED}:1/token"),
    realm(
        "with the own host as user information",
        lambda scene: f"https://{SCRIPTED}:{scene.script.port}@{scene.target}/token",
    ),
    realm("with the own host as a prefix", lambda scene: f"https://{SCRIPTED}.evil.example:{scene.script.port}/token"),
    realm("with a backslash", lambda scene: f"https://{scene.target}\\\\@{SCRIPTED}/token"),
    realm("without a scheme", f"//{SCRIPTED}/token"),
    realm("that is empty", ""),
    realm("with a host of other letters", "https://ѕcript.demo/token".encode().decode("latin-1")),  # noqa: RUF001
    header("of 60 kB of commas", "Bearer " + "," * 60_000),
    header("of 30,000 parameters", "Bearer " + ",".join(f'a="{n}"' for n in range(5_000))),
    header("with a quote that does not close", 'Bearer realm="https://x/' + "\\" * 50_000),
    header("of spaces", "Bearer" + " " * 60_000),
    header("of letters", "a" * 60_000),
    header("of Digest", 'Digest realm="x", nonce="y"'),
    header("of Negotiate", "Negotiate"),
    header("that is empty", ""),
    token("not JSON", body(b"hello")),
    token("nested 100,000 deep", body(b"[" * 100_000)),
    token("nested in objects", body(b'{"a":' * 50_000)),
    token("a number of 50,000 digits", body(b'{"token":' + b"9" * 50_000 + b"}")),
    token("a list", body([])),
    token("null", body(None)),
    token("a token that is a number", body({"token": 5})),
    token("a token that is an object", body({"token": {"token": "x"}})),
    token("an empty token", body({"token": ""})),
    token("a token with CR LF", body({"token": "x\r\nX-Smuggled: y"})),
    token("a token with LF", body({"token": "x\nX-Smuggled: y"})),
    token("a token with a NUL", body({"token": "x\0y"})),
    token("a token of other letters", body({"token": "тoken"})),
    token("a token of 900 kB", body({"token": "x" * 900_000})),
    token("a life that is NaN", body(b'{"token":"x","expires_in":NaN}')),
    token("a life without end", body(b'{"token":"x","expires_in":1e999}')),
    token("a life that is negative", body({"token": "x", "expires_in": -5})),
    token("a life of words", body({"token": "x", "expires_in": "long"})),
    token("5 MB", body(b'{"token":"' + b"x" * (5 << 20) + b'"}')),
    token("without end", lambda: endless(b"x" * 4096, b"HTTP/1.1 200 OK\r\n\r\n")),
    token("a redirect to a metadata service", lambda: [reply(307, "Location: https://169.254.169.254/")]),
    token("a redirect to a file", lambda: [reply(307, "Location: file:///etc/passwd")]),
    token("a redirect to itself", lambda: [reply(307, "Location: /token")]),
    token("401 again", lambda: [reply(401, 'WWW-Authenticate: Basic realm="x"')]),
    token("500", lambda: [reply(500)]),
    token("UTF-16", body('{"token":"x\\r\\ny"}'.encode("utf-16"))),
    token("bytes that are no text", body(b'{"token":"\xff\xfe"}')),
)
