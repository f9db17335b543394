"""The fake upstream: honest as a registry must be, and wrong exactly as it was told."""

import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.access import Access
from mitm_cache.demo.image import INDEX, KIB, MANIFEST, MIB, Image, generate
from mitm_cache.demo.puller import Puller
from mitm_cache.demo.wire import Wire
from mitm_cache.errors import IntegrityError, UpstreamError
from tests.fakes import faults
from tests.fakes.big import Pattern, big_image
from tests.fakes.faults import Fault
from tests.fakes.registry import LyingUpstream, Witness
from tests.needs import needs_tool

NAME = "team/app"
SIZES = (3 * KIB, 300 * KIB)


@pytest.fixture(scope="session")
def image() -> Image:
    return generate(sizes=SIZES)


@pytest.fixture
def wire(upstream: LyingUpstream) -> Iterator[Wire]:
    with Wire(upstream.trust.context(), {upstream.registry.name: upstream.registry.address}) as wire:
        yield wire


def puller(upstream: LyingUpstream, user: tuple[str, str] | None = None) -> Puller:
    return Puller(upstream.registry.name, connect=upstream.registry.address, ca_files=[upstream.ca_file], user=user)


def blob_url(upstream: LyingUpstream, image: Image) -> tuple[str, bytes]:
    """The address and the bytes of the largest blob."""
    digest, content = max(image.blobs.items(), key=lambda item: item[1].size)
    return upstream.registry.url(f"/v2/{NAME}/blobs/{digest}"), b"".join(content.chunks(0, content.size))


# As an honest registry.


@needs_tool("skopeo", package="skopeo")
@pytest.mark.parametrize("blobs", ["signed", "relative", "direct"])
@pytest.mark.parametrize("scheme", ["none", "basic", "bearer"])
def test_skopeo_copies_all_platforms(
    upstream: LyingUpstream, image: Image, tmp_path: Path, blobs: str, scheme: str
) -> None:
    """A client that is not ours finds every byte, whatever the kind of redirect and of credential."""
    upstream.registry.blobs = blobs  # type: ignore[assignment]
    upstream.registry.access = Access(scheme=scheme, users={"ann": "secret"}, private={NAME: {"ann"}})  # type: ignore[arg-type]
    here = f"127.0.0.1:{upstream.registry.port}/{NAME}:1"
    skopeo = ["skopeo", "--insecure-policy", "copy", "--all", "--src-tls-verify=false"]
    credential = [] if scheme == "none" else ["--src-creds=ann:secret"]
    subprocess.run([*skopeo, *credential, f"docker://{here}", f"dir:{tmp_path / 'copy'}"], check=True, timeout=60)
    copied = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "copy").iterdir()}
    assert {digest.removeprefix("sha256:") for digest in (*image.blobs, *image.manifests)} <= copied


def test_puller_takes_all_platforms_or_one(upstream: LyingUpstream, image: Image) -> None:
    """Our own client pulls the same, and counts what it got."""
    whole = puller(upstream).pull(NAME, "1")
    assert whole.digest == image.index.digest
    assert whole.size == image.size + sum(len(each.body) for each in image.manifests.values())
    assert upstream.requests.count(kind="object", status=200) == len(image.blobs)
    assert len(puller(upstream).pull(NAME, "1", platforms=["linux/arm64"]).requests) == 3 + 1 + len(SIZES)


def test_same_arguments_same_image() -> None:
    """Digests are reproducible, and no two platforms share a layer."""
    image = generate(sizes=[1024, 2048])
    assert image.index.digest == generate(sizes=[1024, 2048]).index.digest
    assert image.index.digest != generate(sizes=[1024, 2048], seed="another").index.digest
    assert len(image.blobs) == 2 * (2 + 1)


@pytest.mark.parametrize(
    ("accept", "status"),
    [(INDEX, 200), ("*/*", 200), (f"{MANIFEST}, {INDEX};q=0.5", 200), (MANIFEST, 404)],
)
def test_manifest_by_accept(upstream: LyingUpstream, wire: Wire, accept: str, status: int) -> None:
    """An index is given only to who accepts it; HEAD says the same without a body."""
    for method in ("GET", "HEAD"):
        response = wire.once(method, upstream.registry.url(f"/v2/{NAME}/manifests/1"), {"Accept": accept})
        body = response.read()
        assert response.status == status
        assert len(body) == (int(response.headers["Content-Length"]) if method == "GET" else 0)


def test_tags_are_paged(upstream: LyingUpstream, wire: Wire, image: Image) -> None:
    """tags/list knows `n` and `last`, and links to the next page."""
    upstream.registry.put(NAME, image, "2", "3")
    response = wire.once("GET", upstream.registry.url(f"/v2/{NAME}/tags/list?n=2"), {})
    assert json.loads(response.read())["tags"] == ["1", "2"]
    assert response.headers["Link"] == f'</v2/{NAME}/tags/list?n=2&last=2>; rel="next"'


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=300000-", 206, 300000, None),
        ("bytes=-7", 206, -7, None),
        ("bytes=0-99999999", 206, 0, None),
        ("bytes=0-1,5-6", 200, 0, None),
        ("bytes=99999999-", 416, 0, 0),
    ],
)
def test_ranges(
    upstream: LyingUpstream, wire: Wire, image: Image, asked: str, status: int, start: int, stop: int | None
) -> None:
    """The storage host gives the range that was asked for, and the ledger knows of it."""
    url, data = blob_url(upstream, image)
    response = wire.ask("GET", url, {"Range": asked})
    assert (response.status, response.read()) == (status, data[start:stop])
    assert [each.range for each in upstream.requests.select(kind="object")] == [asked]


def test_signatures_are_enforced(upstream: LyingUpstream, wire: Wire, image: Image) -> None:
    """A signed URL is good for its method, its path and its time, without Authorization, and for nothing else."""
    url, data = blob_url(upstream, image)
    location = wire.once("GET", url, {})
    signed = location.headers["Location"]
    location.read()
    cases: list[tuple[int, str, str, dict[str, str]]] = [
        (200, "GET", signed, {}),
        (403, "HEAD", signed, {}),
        (400, "GET", signed, {"Authorization": "Bearer token"}),
        (403, "GET", signed.partition("?")[0], {}),
        (403, "GET", signed[:-1] + ("0" if signed[-1] != "0" else "1"), {}),
        (403, "GET", signed.replace("X-Amz-Expires=600", "X-Amz-Expires=9999"), {}),
    ]
    for status, method, address, headers in cases:
        response = wire.once(method, address, headers)
        assert (response.status, method, address) == (status, method, address)
        assert (response.read() == data) is (status == 200)
    now = upstream.storage.clock()
    upstream.storage.clock = lambda: now + 601
    assert wire.once("GET", signed, {}).status == 403


def test_rights(upstream: LyingUpstream) -> None:
    """A private repository is for its users; tokens expire, and can be revoked."""
    upstream.registry.access = access = Access(
        scheme="bearer", users={"ann": "secret", "bob": "hidden"}, private={NAME: {"ann"}}
    )
    puller(upstream, ("ann", "secret")).pull(NAME, "1")
    for stranger in (None, ("bob", "hidden"), ("ann", "wrong")):
        with pytest.raises(UpstreamError, match="401"):
            puller(upstream, stranger).pull(NAME, "1")
    access.private.clear()
    puller(upstream).pull(NAME, "1")
    access.lifetime = -1
    with pytest.raises(UpstreamError, match="401"):
        puller(upstream).pull(NAME, "1")
    assert {each.authorization for each in upstream.requests.select(kind="object")} == {""}


def test_down_and_up_again(upstream: LyingUpstream) -> None:
    """A stopped upstream refuses connections; started again it is at the same address."""
    upstream.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(upstream.registry.address)
    upstream.start()
    assert puller(upstream).pull(NAME, "1").requests


def test_knows_the_names_it_was_called(upstream: LyingUpstream) -> None:
    """The ledger has the name of the TLS handshake and the Host header."""
    puller(upstream).pull(NAME, "1", platforms=[])
    record = upstream.requests.select(kind="tag")[0]
    assert (record.sni, record.headers["host"], record.accept[: len(MANIFEST)]) == (
        "registry.demo",
        "registry.demo",
        MANIFEST,
    )


# As a liar.


def changed(data: bytes) -> bytes:
    return bytes([data[0] ^ 0xFF]) + data[1:]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.wrong_bytes(), changed),
        (faults.ignore_range(), lambda data: data),
        (faults.without("Content-Length"), lambda data: data),
        (faults.body(b"other"), lambda _: b"other"),
        (faults.header("Content-Length", "7"), lambda data: data[:7]),
    ],
    ids=["wrong bytes", "no range", "no length", "other body", "wrong length"],
)
def test_bodies(
    upstream: LyingUpstream, wire: Wire, image: Image, fault: Fault, expected: Callable[[bytes], bytes]
) -> None:
    """Each body is wrong in its own way, until the truth is wanted again."""
    url, data = blob_url(upstream, image)
    upstream.lie("object", fault)
    assert wire.ask("GET", url, {}).read() == expected(data)
    upstream.truth()
    with Wire(wire.context, wire.hosts) as again:
        assert again.ask("GET", url, {}).read() == data


def test_digest_check_of_the_puller(upstream: LyingUpstream) -> None:
    """The puller does not take wrong bytes."""
    upstream.lie("object", faults.wrong_bytes(), times=1)
    with pytest.raises(IntegrityError, match="promised"):
        puller(upstream).pull(NAME, "1")


@pytest.mark.parametrize(
    ("how", "raised"),
    [
        ("goodbye", http.client.IncompleteRead),
        ("close", http.client.IncompleteRead),
        ("reset", ConnectionResetError),
    ],
)
def test_cuts(upstream: LyingUpstream, wire: Wire, image: Image, how: str, raised: type[Exception]) -> None:
    """The connection ends in the middle of a body, in three ways."""
    url, data = blob_url(upstream, image)
    upstream.lie("object", faults.cut_after(1000, how))  # type: ignore[arg-type]
    response = wire.ask("GET", url, {})
    assert response.headers["Content-Length"] == str(len(data))
    with pytest.raises(raised):
        response.read()
    assert upstream.requests.wait(1, kind="object", done=True)[0].sent <= 1000


def test_longer_than_promised(upstream: LyingUpstream, image: Image) -> None:
    """More bytes come than Content-Length says, and then the end."""
    url, data = blob_url(upstream, image)
    upstream.registry.blobs = "direct"
    upstream.lie("blob", faults.longer(b"EXTRA"))
    with (
        socket.create_connection(upstream.registry.address) as plain,
        upstream.trust.context().wrap_socket(plain, server_hostname="registry.demo") as tls,
    ):
        tls.sendall(f"GET {url[url.index('/v2/') :]} HTTP/1.1\r\nHost: registry.demo\r\n\r\n".encode())
        received = b"".join(iter(lambda: tls.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(data)}".encode() in head
    assert body == data + b"EXTRA"


def test_partial_answers(upstream: LyingUpstream, wire: Wire, image: Image) -> None:
    """The headers of a 206 can be wrong while those of a 200 stay right."""
    url, data = blob_url(upstream, image)
    upstream.lie("object", faults.header("Content-Range", "bytes 7-8/9", status=206))
    partial = wire.ask("GET", url, {"Range": "bytes=0-9"})
    assert (partial.read(), partial.headers["Content-Range"]) == (data[:10], "bytes 7-8/9")
    whole = wire.ask("GET", url, {})
    assert (whole.read(), whole.headers["Content-Range"]) == (data, None)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_refusals(upstream: LyingUpstream, wire: Wire, status: int) -> None:
    """A status for a while, with its headers, on the requests that the pattern covers."""
    url = upstream.registry.url(f"/v2/{NAME}/manifests/1")
    lie = upstream.lie("/v2/*/manifests/*", faults.refuse(status, "TOOMANYREQUESTS", {"Retry-After": "7"}), times=2)
    for _ in range(2):
        answer = wire.once("GET", url, {})
        assert (answer.status, answer.headers["Retry-After"]) == (status, "7")
        assert json.loads(answer.read())["errors"][0]["code"] == "TOOMANYREQUESTS"
    assert wire.once("GET", url, {}).status == 200
    assert (lie.told, lie.left) == (2, 0)


def test_manifest_faults(upstream: LyingUpstream, wire: Wire) -> None:
    """Without a digest, of schema 1, or with a challenge from a stranger."""
    url = upstream.registry.url(f"/v2/{NAME}/manifests/1")
    for fault, status, name, value in [
        (faults.without("Docker-Content-Digest"), 200, "Docker-Content-Digest", None),
        (faults.schema_1(), 200, "Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        (
            faults.challenge("https://evil.example/token"),
            401,
            "WWW-Authenticate",
            'Bearer realm="https://evil.example/token",service="demo"',
        ),
    ]:
        upstream.lie("tag", fault, times=1)
        response = wire.once("GET", url, {})
        response.read()
        assert (response.status, response.headers[name]) == (status, value)


def test_redirects(upstream: LyingUpstream, wire: Wire, image: Image) -> None:
    """In a circle, in a long chain by relative locations, and on to the truth at the end."""
    url, data = blob_url(upstream, image)
    upstream.lie("blob", faults.redirect_loop(), times=5)
    with pytest.raises(http.client.HTTPException, match="redirects"):
        wire.ask("GET", url, {})
    upstream.lie("blob", faults.redirect_chain(3))
    assert wire.ask("GET", url, {}).read() == data
    response = wire.once("GET", url, {})
    assert response.headers["Location"] == url[url.index("/v2/") :] + "?hop=1"


@pytest.mark.parametrize("secure", [True, False], ids=["https", "http"])
def test_a_witness_knows_what_leaked(upstream: LyingUpstream, image: Image, secure: bool) -> None:
    """Another host, secure or not, records whether a credential came along with a redirect."""
    with Witness(tls=upstream.trust.certify("127.0.0.1") if secure else None) as witness:
        address = witness.url("/stolen", name="127.0.0.1")
        assert address.startswith("https://" if secure else "http://")
        upstream.lie("blob", faults.redirect_to(address))
        with Wire(upstream.trust.context(), {"registry.demo": upstream.registry.address}) as wire:
            first = wire.once("GET", blob_url(upstream, image)[0], {"Authorization": "Bearer secret"})
        assert first.headers["Location"] == address
        command = ["curl", "-sk", "-H", "Authorization: Bearer secret", address]
        if shutil.which("curl"):
            assert subprocess.run(command, check=True, capture_output=True).stdout == b"elsewhere"
            assert [each.authorization for each in witness.requests] == ["Bearer"]


# Time, without sleeping.


def test_gate_holds_a_body(upstream: LyingUpstream, wire: Wire, image: Image) -> None:
    """Bytes come as far as the gate allows, then further, then all."""
    url, data = blob_url(upstream, image)
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(1000))
    response = wire.ask("GET", url, {})
    assert response.read(1000) == data[:1000]
    gate.wait_held()
    gate.allow(500)
    assert response.read(500) == data[1000:1500]
    gate.wait_held()
    assert upstream.requests.select(kind="object")[0].sent == 1500
    gate.release()
    assert response.read() == data[1500:]


def test_gate_holds_headers(upstream: LyingUpstream, image: Image) -> None:
    """Nothing at all comes before the gate opens; the request is known to have arrived."""
    gate = upstream.gate()
    upstream.lie("tag", gate.hang())
    pulled: list[str] = []
    thread = threading.Thread(target=lambda: pulled.append(puller(upstream).pull(NAME, "1").digest))
    thread.start()
    gate.wait_held()
    assert [each.status for each in upstream.requests.wait(1, kind="tag")] == [0]
    gate.release()
    thread.join(30)
    assert pulled == [image.index.digest]


def test_gate_ends_with_its_upstream(tmp_path: Path, image: Image) -> None:
    """Who still waits when a test ends is cut off."""
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put(NAME, image, "1")
        gate = upstream.gate()
        upstream.lie("object", gate.hold_after(10))
        url, _ = blob_url(upstream, image)
        wire = Wire(upstream.trust.context(), {upstream.registry.name: upstream.registry.address})
        response = wire.ask("GET", url, {})
        gate.wait_held()
    with wire, pytest.raises((http.client.IncompleteRead, OSError)):
        response.read()


def test_rate(upstream: LyingUpstream, wire: Wire, image: Image) -> None:
    """A body comes no faster than it may."""
    url, data = blob_url(upstream, image)
    upstream.storage.rate = 2 * MIB
    begun = upstream.storage.clock()
    assert wire.ask("GET", url, {}).read() == data
    assert upstream.storage.clock() - begun >= (len(data) - 2 * MIB / 20) / (2 * MIB) * 0.9


# Size, without memory.


def test_pattern_is_the_same_by_any_range() -> None:
    """A part of a generated blob is what the whole has there, over block borders too."""
    pattern = Pattern(3 * MIB + 17)
    whole = b"".join(pattern.chunks(0, pattern.size))
    assert f"sha256:{hashlib.sha256(whole).hexdigest()}" == pattern.digest
    assert len({whole[offset : offset + 64] for offset in range(0, 3 * MIB, MIB)}) == 3
    for start, stop in [(0, 1), (3, 9), (7, 8), (MIB - 1, MIB + 9), (5, pattern.size), (pattern.size, pattern.size)]:
        assert b"".join(pattern.chunks(start, stop)) == whole[start:stop]


def test_big_blob(upstream: LyingUpstream) -> None:
    """An image of generated layers is pulled and verified like any other."""
    upstream.registry.put("big/one", big_image(20 * MIB, 5), "1")
    assert puller(upstream).pull("big/one", "1").size > 20 * MIB
