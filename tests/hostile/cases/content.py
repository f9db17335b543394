"""What manifests, digests and names can hold that somebody might believe."""

import hashlib
import json
from collections.abc import Callable

from tests.hostile.case import Case, Refused, wire
from tests.hostile.cases.registry import TYPE, content, digest, fetch, manifest
from tests.hostile.host import Say, reply
from tests.hostile.scene import HUB, Scene
from tests.proxy.raw import request

INDEX = "Content-Type: application/vnd.oci.image.index.v1+json"
INVALID = Refused((400,))


def passes(name: str, body: bytes, *lines: str) -> Case:
    """A manifest whose meaning is none of the cache's: its bytes are proven, kept and served, and nothing is done."""

    def run(scene: Scene) -> None:
        scene.script.say = manifest(*lines, body=body)
        for target in (digest(body), hashlib.sha256(name.encode()).hexdigest()[:12]):
            for _ in range(2):
                status, headers, got = fetch(scene, f"/v2/x/y/manifests/{target}")
                assert (status, got) == (200, body), status
                assert "\n" not in headers["content-type"]
        # What it names was not asked for.
        assert {asked.target.rpartition("/")[2] for asked in scene.script.asked} <= {
            digest(body),
            hashlib.sha256(name.encode()).hexdigest()[:12],
        }

    return Case(f"a manifest {name}", "served as the bytes that it is; nothing in it is followed", run, asks=True)


def case(name: str, must: str, run: Callable[[Scene], None]) -> Case:
    return Case(name, must, run, asks=True)


def _too_big(scene: Scene) -> None:
    body = b"[" + b"1," * (5 << 19) + b"1]"
    scene.script.say = lambda _: [reply(200, TYPE, body=body)]
    assert fetch(scene, f"/v2/x/y/manifests/{digest(body)}")[0] in (0, 502)
    assert digest(body) not in scene.cache.blobs()


def _schema_1(scene: Scene) -> None:
    old = b'{"schemaVersion": 1, "name": "x/y", "signatures": []}'
    kind = "Content-Type: application/vnd.docker.distribution.manifest.v1+prettyjws"
    scene.script.say = lambda asked: [reply(200, kind, f"Docker-Content-Digest: {digest(b'payload')}", length=len(old))
                                      + (b"" if asked.method == "HEAD" else old)]  # fmt: skip
    for target in ("schema1", digest(b"payload")):
        status, _, body = fetch(scene, f"/v2/x/y/manifests/{target}")
        assert (status, body) in ((200, old), (502, body)), status
    assert digest(b"payload") not in scene.cache.blobs()
    assert digest(old) not in scene.cache.blobs()


def _as_a_blob(scene: Scene) -> None:
    """A manifest's digest asked for as a blob, and the other way round: the type that is told is the question's."""
    body = json.dumps({"schemaVersion": 2, "x": "as a blob"}).encode()
    head = reply(200, "Content-Type: text/html", length=len(body))
    scene.script.say = lambda asked: [head if asked.method == "HEAD" else head + body]
    status, headers, got = fetch(scene, f"/v2/x/y/blobs/{digest(body)}")
    assert (status, got, headers["content-type"]) == (200, body, "application/octet-stream")


def _truth_wins(scene: Scene) -> None:
    """A lie about a digest by one registry does not stand for another registry's content."""
    wanted = content("cross")
    scene.script.say = lambda _: [reply(200, body=bytes(len(wanted)))]
    assert fetch(scene, f"/v2/x/y/blobs/{digest(wanted)}")[0] in (0, 502)
    scene.script.say = lambda _: [reply(200, body=wanted)]
    assert fetch(scene, f"/v2/x/z/blobs/{digest(wanted)}")[::2] == (200, wanted)


def _holds(scene: Scene) -> None:
    """A registry that says it holds what another one has: its own client gets those bytes, which it named itself, and
    no other repository's rights."""
    wanted = max(scene.secret.blobs, key=lambda each: scene.secret.blobs[each].size)
    size = scene.secret.blobs[wanted].size
    scene.script.say = lambda asked: [reply(404)] if asked.method == "HEAD" else [reply(200, body=bytes(size))]
    status, _, body = fetch(scene, f"/v2/x/y/blobs/{wanted}")
    assert status in (0, 404, 502)
    assert len(body) < 2048


def _saying(answer: bytes) -> Say:
    return lambda _: [answer]


def _tag_lists(scene: Scene) -> None:
    bodies = [b"[" * 100_000, b'{"tags": 5}', b'{"tags": ["<script>", "../x", "\\u0000"]}', b"\xff", b"null"]
    links = ["<" * 60_000, f"<{' ' * 60_000}", '<https://[bad/?n=1>; rel="next"', "<x>;" * 15_000]
    for body, link in [*((body, links[2]) for body in bodies), *((b'{"tags": ["1"]}', link) for link in links)]:
        scene.script.say = _saying(reply(200, f"Link: {link}", body=body))
        with scene.cache.client("mirror", name="127.0.0.1") as client:
            reply_ = client.get("/v2/x/y/tags/list?ns=script.demo")
        assert reply_.status in (200, 404, 502)
        if reply_.status == 200:
            assert reply_.headers["Content-Type"] == "application/json"
            assert "evil" not in str(reply_.headers["Link"])


def _mount(scene: Scene) -> None:
    """Only upstream mounts: the cache hands the question on, credential and all, and answers as upstream does."""
    with scene.cache.client("clear", name=HUB) as client:
        got = client.ask("POST", f"/v2/team/app/blobs/uploads/?mount={digest(b'x')}&from=team/secret", {}, b"")
    assert got.status in (404, 405)
    assert [record.method for record in scene.upstream.requests] == ["POST"]


DIGESTS = {
    "of MD5": f"md5:{'0' * 32}", "of SHA-1": f"sha1:{'0' * 40}", "of SHA-384": f"sha384:{'0' * 96}",
    "in upper case": f"sha256:{'A' * 64}", "with its algorithm in upper case": f"SHA256:{'0' * 64}",
    "one digit short": f"sha256:{'0' * 63}", "one digit long": f"sha256:{'0' * 65}",
    "of no digits": "sha256:", "of SHA-512 with 64 digits": f"sha512:{'0' * 64}",
    "of SHA-256 with 128 digits": f"sha256:{'0' * 128}", "with a letter that is no digit": f"sha256:{'g' * 64}",
    "with two colons": f"sha256:sha256:{'0' * 64}", "without an algorithm": f":{'0' * 64}",
    "without a colon": "0" * 64, "of 10,000 digits": f"sha256:{'0' * 1500}",
    "with a plus in its algorithm": f"sha256+b64:{'0' * 64}", "that is a path": "sha256:../../ca/ca.key",
}  # fmt: skip
NAMES = {
    "of 256 characters": "a/" * 127 + "aa", "with two dots": "a..b", "that ends with a dash": "a-",
    "with an empty part": "a//b", "that is a host with a port": "evil.example:5000/a", "with a tilde": "a~b",
    "with a plus": "a+b", "in upper case": "A", "with an at sign": "a@b", "of an underscore": "_",
    "with blanks": "a%20b",
}  # fmt: skip
TAGS = {
    "of 129 characters": "a" * 129, "that begins with a dash": "-a", "with a colon": "a:b", "with a plus": "a+b",
    "with an at sign": "a@b", "with a dollar": "$HOME", "with a star": "*", "of a dot": ".", "of three dots": "...",
}  # fmt: skip


def get(target: str) -> bytes:
    return request(target, host=HUB)


CASES: tuple[Case, ...] = (
    *(wire(f"a blob's digest {name}", get(f"/v2/team/app/blobs/{value}"), INVALID) for name, value in DIGESTS.items()),
    *(
        wire(f"a manifest's digest {name}", get(f"/v2/team/app/manifests/{value}"), INVALID)
        for name, value in list(DIGESTS.items())[:5]
    ),
    *(
        wire(f"a referrers' digest {name}", get(f"/v2/team/app/referrers/{value}"), INVALID)
        for name, value in list(DIGESTS.items())[:3]
    ),
    *(wire(f"a name {name}", get(f"/v2/{value}/manifests/1"), Refused((400, 404))) for name, value in NAMES.items()),
    *(wire(f"a tag {name}", get(f"/v2/team/app/manifests/{value}"), Refused((400,))) for name, value in TAGS.items()),
    passes("nested 100,000 deep", b"[" * 100_000),
    passes("that is no JSON", b"\x00\xff\x1b[2J"),
    passes("that is HTML, and says so", b"<script>alert(1)</script>", "Content-Type: text/html"),
    passes("with a type of its own", b"{}x", "Content-Type: application/x-evil; a=b"),
    passes(
        "that points at itself",
        json.dumps({"manifests": [{"digest": f"sha256:{'1' * 64}"}] * 50, "n": 1}).encode(),
        INDEX,
    ),
    passes(
        "with foreign layers at a metadata service",
        json.dumps({"layers": [{"digest": f"sha256:{'2' * 64}", "urls": ["http://169.254.169.254/latest/"]}]}).encode(),
    ),
    passes(
        "with foreign layers in files",
        json.dumps({"layers": [{"digest": f"sha256:{'3' * 64}", "urls": ["file:///etc/passwd"]}]}).encode(),
    ),
    passes("with negative sizes", json.dumps({"layers": [{"digest": f"sha256:{'4' * 64}", "size": -1}]}).encode()),
    passes("with sizes of 400 digits", b'{"layers":[{"size":' + b"9" * 400 + b"}]}"),
    passes("whose layers are paths", json.dumps({"layers": [{"digest": "../../../etc/passwd"}]}).encode()),
    passes("with a key twice", b'{"layers":[],"layers":[{"digest":"sha256:x"}]}'),
    passes("of 4 MB", b"[" + b"1," * ((4 << 20) // 2 - 2) + b"11]"),
    case("a manifest of 5 MB", "502 or cut, and nothing is kept", _too_big),
    case("a manifest of schema 1", "passed on or refused, never kept", _schema_1),
    case("a manifest's digest asked for as a blob", "the bytes, as application/octet-stream", _as_a_blob),
    case("a lie about a digest in one repository", "does not hold in another", _truth_wins),
    case("a registry that claims a digest of another's private image", "its bytes are not given", _holds),
    case(
        "lists of tags that are none, and Links that take long to read",
        "200 with what is a list, or 404 or 502",
        _tag_lists,
    ),
    case("mounting another repository's layer", "is upstream's to decide: passed on as it is", _mount),
)
