"""Pushes to the cache's own registry: by who may push there and means harm, and by who may not."""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack

from mitm_cache.oci.manifest import MAX_SIZE
from tests.hostile.case import Case, Expectation, Refused, Unserved, wire
from tests.hostile.cases.credentials import filled
from tests.hostile.cases.framing import CHUNKS, CODINGS, LENGTHS
from tests.hostile.cases.pushing import (
    CONTENT,
    DIGEST,
    NOTHING,
    STRANGER,
    UPLOADS,
    WHOLE,
    case,
    holds,
    image,
    kept,
    open_upload,
    push,
    tell,
)
from tests.hostile.scene import FRIEND, HUB, MINE, PRIVATE, TAG, Scene
from tests.proxy.raw import Raw, dial, request

BAD = Refused((400, 405, 413, 431, 501))


def framed(name: str, sent: Callable[[str], bytes], expected: Expectation) -> Case:
    """A push whose end is a matter of opinion: what it has is not kept, and the request behind it is not served.

    `sent` makes it, to a repository of its own.
    """
    repository = f"framing/{hashlib.sha256(name.encode()).hexdigest()[:12]}"

    def run(scene: Scene) -> None:
        wire("", sent(repository), expected).run(scene)
        assert not holds(scene, repository)

    return Case(name, f"{expected.words}; nothing is kept", run)


def framing_of(*lines: str, body: bytes) -> Callable[[str], bytes]:
    return lambda repository: push(f"/v2/{repository}/blobs/uploads/?digest={DIGEST}", *lines, body=body)


def _old(repository: str) -> bytes:
    sent = framing_of("Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n")(repository)
    return sent.replace(b"HTTP/1.1", b"HTTP/1.0")


def _nothing_was_kept(scene: Scene) -> None:
    catalog = tell(scene, push("/v2/_catalog", method="GET"), method="GET")
    assert [name for name in json.loads(catalog.body)["repositories"] if name.startswith("framing/")] == []


def _a_request_in_a_body(scene: Scene) -> None:
    inner = request("/v2/app/manifests/smuggled", host=MINE)
    digest = f"sha256:{hashlib.sha256(inner).hexdigest()}"
    chunked = b"%x;x=y\r\n%b\r\n0\r\nContent-Length: 900\r\nHost: evil.example\r\n\r\n" % (len(inner), inner)
    target = f"{UPLOADS}?digest={digest}"
    for sent in (push(target, body=inner), push(target, "Transfer-Encoding: chunked", body=chunked)):
        for listener in ("clear", "mirror"):
            with dial(scene.cache, listener) as raw:
                raw.send(sent, request("/v2/", host=MINE))
                assert raw.answer().status == 201
                assert raw.answer().status == 200
    assert not scene.cache.log.count(reference="smuggled")


def _a_huge_chunk(scene: Scene) -> None:
    place = open_upload(scene)
    with Raw(scene.cache.address("clear")) as raw:
        raw.send(push(place, "Transfer-Encoding: chunked", body=b"fffffffffffffff\r\nabc", method="PATCH"))
        raw.close()
    assert scene.cache.log.wait(1, method="PATCH", outcome="ERROR")
    assert tell(scene, push(place, method="DELETE")).status == 204


def _a_huge_length(scene: Scene) -> None:
    answer = tell(scene, push(WHOLE, "Content-Length: 999999999999999999", body=CONTENT))
    assert answer.status in (403, 503), answer


def _expect_more(scene: Scene) -> None:
    """What is refused by its head is not asked for."""
    with Raw(scene.cache.address("clear")) as raw:
        raw.send(push("/v2/closed/app/blobs/uploads/", "Expect: 100-continue", "Content-Length: 3"))
        assert raw.answer().status == 403
        assert raw.rest() == b""


def _denied(scene: Scene) -> None:
    """By every method, for a repository that a row denies to everybody else."""
    digest = kept(scene, "closed/app", b"a secret of ours", source=FRIEND)
    place = open_upload(scene, "closed/app", source=FRIEND)
    for method, target in (
        ("GET", f"/v2/closed/app/blobs/{digest}"), ("HEAD", f"/v2/closed/app/blobs/{digest}"),
        ("DELETE", f"/v2/closed/app/blobs/{digest}"), ("GET", "/v2/closed/app/tags/list"),
        ("GET", f"/v2/closed/app/referrers/{digest}"), ("PUT", "/v2/closed/app/manifests/1"),
        ("DELETE", "/v2/closed/app/manifests/1"), ("GET", place), ("PATCH", place), ("DELETE", place),
        ("PUT", f"{place}?digest={digest}"), ("POST", "/v2/closed/app/blobs/uploads/"),
        ("POST", f"/v2/closed/app/blobs/uploads/?mount={digest}&from=closed/app"),
    ):  # fmt: skip
        assert tell(scene, push(target, method=method), method=method).status == 403, (method, target)
    assert holds(scene, "closed/app", digest, source=FRIEND)
    assert tell(scene, push(place, method="GET"), method="GET", source=FRIEND).status == 204


def _denied_by_every_way(scene: Scene) -> None:
    """By every name that the registry has, at every listener that takes requests for it."""
    kept(scene, "closed/app", b"a secret of ours", source=FRIEND)
    for listener, front, query, host in (
        ("clear", "", "", MINE),
        ("mirror", "", "", MINE),
        ("mirror", "", "", f"{MINE}:5000"),
        ("mirror", "local/", "", "127.0.0.1"),
        ("mirror", f"{MINE}/", "", "127.0.0.1"),
        ("mirror", "", "ns=local", "127.0.0.1"),
        ("mirror", "", f"ns={MINE}", HUB),
        ("mirror", "local/", "ns=local", "127.0.0.1"),
    ):
        for method, path in (("GET", "tags/list"), ("POST", "blobs/uploads/"), ("DELETE", "manifests/1")):
            with Raw(scene.cache.address(listener)) as raw:
                raw.send(request(f"/v2/{front}closed/app/{path}?{query}", method=method, host=host))
                assert raw.answer(method).status == 403, (listener, front, query, host, method)


def _from_a_page(scene: Scene) -> None:
    """By the registry's own name, and by one of the page's that has been led here (DNS rebinding)."""
    digest = kept(scene, "page", b"a page's target")
    for line in ("Origin: http://evil.example:5000", "Origin: null", "Sec-Fetch-Site: same-origin"):
        for method, path in (
            ("POST", "blobs/uploads/"),
            ("POST", f"blobs/uploads/?digest={DIGEST}"),
            ("PUT", "manifests/1"),
            ("DELETE", f"blobs/{digest}"),
        ):
            for front, host in (("", MINE), ("local/", "evil.example:5000")):
                with Raw(scene.cache.address("mirror")) as raw:
                    raw.send(request(f"/v2/{front}page/{path}", line, "Content-Length: 0", method=method, host=host))
                    assert raw.answer(method).status == 403, (line, method, path, host)
    assert holds(scene, "page", digest)


def _not_listed(scene: Scene) -> None:
    kept(scene, "closed/hidden", b"hidden", source=FRIEND)
    for source, listed in ((STRANGER, False), (FRIEND, True)):
        catalog = tell(scene, push("/v2/_catalog", method="GET"), method="GET", source=source)
        assert ("closed/hidden" in json.loads(catalog.body)["repositories"]) is listed


def _read_only(scene: Scene) -> None:
    """Who may pull and not push learns by HEAD of nothing that is elsewhere, and links nothing."""
    digest = kept(scene, "open", b"in an open repository")
    kept(scene, "theirs/app", CONTENT, source=FRIEND)
    assert tell(scene, push(f"/v2/theirs/app/blobs/{digest}", method="HEAD"), method="HEAD").status == 404
    for method, target in (
        ("POST", f"/v2/theirs/app/blobs/uploads/?mount={digest}&from=open"), ("PUT", "/v2/theirs/app/manifests/1"),
        ("DELETE", f"/v2/theirs/app/blobs/{DIGEST}"),
    ):  # fmt: skip
        assert tell(scene, push(target, method=method)).status == 403
    assert holds(scene, "theirs/app")
    assert not holds(scene, "theirs/app", digest)


def _mounting(scene: Scene, digest: str, *sources: str) -> None:
    """Neither by HEAD nor by a mount from anywhere does a repository come to hold a content, nor is it told of."""
    targets = [f"{UPLOADS}?mount={digest}", *(f"{UPLOADS}?mount={digest}&from={each}" for each in sources)]
    unknown = f"sha256:{NOTHING}"
    for known, never in zip(targets, (each.replace(digest, unknown) for each in targets), strict=True):
        assert tell(scene, push(known)).status == tell(scene, push(never)).status == 202
    for each in (digest, unknown):
        assert tell(scene, push(f"/v2/app/blobs/{each}", method="HEAD"), method="HEAD").status == 404
    assert not holds(scene, "app", digest)
    body = image(layers=[{"mediaType": "x", "digest": digest, "size": 3}])
    kept(scene, "app", CONTENT)
    assert tell(scene, push("/v2/app/manifests/stolen", body=body, method="PUT")).status == 404


def _mount_denied(scene: Scene) -> None:
    digest = kept(scene, "closed/app", b"another secret of ours", source=FRIEND)
    _mounting(scene, digest, "closed/app", "app", "", "..", f"{MINE}/closed/app")


def _mount_private(scene: Scene) -> None:
    """A cached image of a registry that gives it to one of its users."""
    digest = filled(scene).rpartition("/")[2]
    _mounting(scene, digest, "team/secret", f"{PRIVATE}/team/secret", f"../{PRIVATE}/team/secret")


def _begun_and_left(scene: Scene) -> None:
    with ExitStack() as stack:
        for _ in range(70):
            raw = stack.enter_context(Raw(scene.cache.address("clear")))
            raw.send(push(WHOLE, "Content-Length: 1000000", body=CONTENT))
        with Raw(scene.cache.address("clear"), source=FRIEND) as raw:
            raw.send(push(WHOLE, body=CONTENT))
            assert raw.answer().status == 201
        with dial(scene.cache, "clear") as raw:
            raw.send(request(TAG, "Accept: */*", host=HUB))
            assert raw.answer().status == 200


def _manifests_by_halves(scene: Scene) -> None:
    with ExitStack() as stack:
        for _ in range(60):
            raw = stack.enter_context(Raw(scene.cache.address("clear")))
            raw.send(push("/v2/app/manifests/1", f"Content-Length: {MAX_SIZE}", body=bytes(200_000), method="PUT"))
        with Raw(scene.cache.address("clear"), source=FRIEND) as raw:
            raw.send(push(WHOLE, body=CONTENT))
            assert raw.answer().status == 201


def _bytes_one_by_one(scene: Scene) -> None:
    with Raw(scene.cache.address("clear")) as raw:
        for byte in push(WHOLE, "Transfer-Encoding: chunked", body=b"1\r\na\r\n2;x\r\nbc\r\n0\r\nA: b\r\n\r\n"):
            raw.send(bytes([byte]))
        assert raw.answer().status == 201


def _secrets(scene: Scene) -> None:
    """What is told in a query, a Location or a password is in no line of the log."""
    place = open_upload(scene)
    identity = place.rpartition("/")[2]
    lines = ("Authorization: Basic c2VjcmV0OnBhc3N3b3Jk", "Content-Length: 3")
    assert tell(scene, push(f"{place}?token=very-secret", *lines, body=CONTENT, method="PATCH")).status == 202
    assert tell(scene, push(f"{place}?token=very-secret", method="PUT")).status == 400
    assert tell(scene, push(place, method="DELETE")).status == 204
    for secret in ("very-secret", "c2VjcmV0", identity):
        assert secret not in scene.cache.log.text


CASES: tuple[Case, ...] = (
    *(
        framed(f"Content-Length {name}", framing_of(f"Content-Length: {value}", body=CONTENT), BAD)
        for name, value in LENGTHS.items()
        if name != "that is empty"
    ),
    *(
        framed(
            f"Transfer-Encoding: {name}",
            framing_of(f"Transfer-Encoding: {value}", body=b"3\r\nabc\r\n0\r\n\r\n"),
            BAD,
        )
        for name, value in CODINGS.items()
        if name != "empty"
    ),
    *(
        framed(f"a chunk with {name}", framing_of("Transfer-Encoding: chunked", body=body), Unserved())
        for name, body in CHUNKS.items()
    ),
    framed(
        "Content-Length, then Transfer-Encoding",
        framing_of("Content-Length: 3", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
        BAD,
    ),
    framed(
        "Transfer-Encoding, then Content-Length",
        framing_of("Transfer-Encoding: chunked", "Content-Length: 3", body=b"3\r\nabc\r\n0\r\n\r\n"),
        BAD,
    ),
    framed("two different Content-Lengths", framing_of("Content-Length: 3", "Content-Length: 4", body=b"abcd"), BAD),
    framed(
        "LF alone behind a chunk's size",
        framing_of("Transfer-Encoding: chunked", body=b"3\nabc\r\n0\r\n\r\n"),
        Unserved(),
    ),
    framed(
        "a chunk's extension of 100 kB",
        framing_of("Transfer-Encoding: chunked", body=b"3;" + b"x" * 100_000 + b"\r\nabc\r\n0\r\n\r\n"),
        Unserved(),
    ),
    framed(
        "trailers of 1 MB",
        framing_of("Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\nA: " + b"x" * 1_000_000 + b"\r\n\r\n"),
        Unserved(),
    ),
    framed("a body that ends early", framing_of("Content-Length: 1000000", body=CONTENT), Unserved()),
    framed(
        "chunks in HTTP/1.0",
        _old,
        BAD,
    ),
    case(
        "a request in the body of a push, or in its trailers", "kept or left out, and not served", _a_request_in_a_body
    ),
    case("a chunk of 2^60 bytes", "takes no room that it does not fill", _a_huge_chunk),
    case("a Content-Length of 10^18", "403 or 503", _a_huge_length),
    case("Expect: 100-continue, where it is refused", "403 instead", _expect_more),
    case("what a web page has a browser send, by DNS rebinding too", "403", _from_a_page),
    case("a repository that is denied, by every method", "403, and it stays as it was", _denied),
    case("a repository that is denied, by every name", "403", _denied_by_every_way),
    case("a repository that is denied, in the catalog", "is not listed", _not_listed),
    case("pushes of who may only pull", "403, and nothing is linked", _read_only),
    case("a mount of what is denied", "an upload, as for what is not here", _mount_denied),
    case(
        "a mount of what is cached of a private image", "an upload, as for what is not here", _mount_private, asks=True
    ),
    case("secrets in queries and Locations", "are in no log", _secrets),
    case("a push byte by byte", "kept", _bytes_one_by_one),
    case(
        "70 pushes of one address whose bodies do not come", "others are served meanwhile", _begun_and_left, asks=True
    ),
    case("60 halves of manifests of 4 MiB", "others are served meanwhile", _manifests_by_halves),
)
