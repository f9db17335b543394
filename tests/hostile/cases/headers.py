"""Header fields: too many, too long, with what does not belong there, or meant for somebody else."""

from tests.hostile.case import Case, PassedOn, Refused, Served, wire
from tests.hostile.scene import HUB, PRIVATE, TAG, Scene
from tests.proxy.raw import dial, request


def get(*lines: str) -> bytes:
    return request(TAG, "Accept: */*", *lines, host=HUB)


def relayed(name: str, must: str, lines: tuple[str, ...], *, absent: tuple[str, ...] = (), method: str = "GET") -> Case:
    """A request that is passed on; which fields must not reach upstream."""

    def run(scene: Scene) -> None:
        with dial(scene.cache, "clear") as raw:
            raw.send(request("/extension", *lines, method=method, host=HUB))
            assert raw.answer(method).status in (404, 405)
        [record] = scene.upstream.requests
        for field in absent:
            assert field not in record.headers, field

    return Case(name, must, run, asks=True)


RANGES = {
    "10,000 ranges": "bytes=" + ",".join(["0-0"] * 10_000),
    "overlapping ranges": "bytes=0-,0-,0-,0-",
    "a reversed range": "bytes=9-1",
    "a negative range": "bytes=--5",
    "a range of 4000 digits": f"bytes={'9' * 4000}-",
    "a range of 19 digits": f"bytes={'9' * 19}-",
    "another unit": "lines=1-2",
    "60 kB of blanks (the time of a pattern with two runs of them side by side)": f"bytes={' ' * 60_000}x",
    "no range": "bytes=-",
    "a range with words": "bytes=a-b",
    "a range with a plus sign": "bytes=+1-+2",
    "a suffix of nothing": "bytes=-0",
    "a range past the end": "bytes=999999-",
}


def ranged(name: str, value: str) -> Case:
    """A range of a blob of 5 KiB at most: all of it, or 416; never what is beside it."""

    def run(scene: Scene) -> None:
        digest, content = next(iter(scene.image.blobs.items()))
        whole = b"".join(content.chunks(0, content.size))
        with dial(scene.cache, "clear") as raw:
            for _ in range(2):
                raw.send(request(f"/v2/team/app/blobs/{digest}", f"Range: {value}", host=HUB))
                answer = raw.answer()
                assert answer.status in (200, 416, 431), answer.status
                if answer.status == 200:
                    assert answer.body == whole
                if answer.status == 431:
                    return

    return Case(f"Range: {name}", "all of it, 416 or 431; as MISS and as HIT", run, asks=True)


def _if_range(scene: Scene) -> None:
    digest, content = next(iter(scene.image.blobs.items()))
    with dial(scene.cache, "clear") as raw:
        raw.send(request(f"/v2/team/app/blobs/{digest}", "Range: bytes=0-1", 'If-Range: "another"', host=HUB))
        answer = raw.answer()
    assert answer.status == 200
    assert len(answer.body) == content.size


def _via(scene: Scene) -> None:
    """What the cache itself sends upstream as its mark."""
    with dial(scene.cache, "clear") as raw:
        raw.send(request(TAG, "Accept: */*", host=HUB))
        assert raw.answer().status == 200
        mark = next(iter(scene.upstream.requests)).via
        scene.upstream.requests.clear()
        raw.send(request(TAG, f"Via: 1.0 somebody, {mark}", host=HUB))
        assert raw.answer().status == 508
    assert len(scene.upstream.requests) == 0


def _many_vias(scene: Scene) -> None:
    with dial(scene.cache, "clear") as raw:
        raw.send(request(TAG, "Accept: */*", *["Via: 1.1 other"] * 50, host=HUB))
        assert raw.answer().status == 200


def _decides_nothing(scene: Scene) -> None:
    with dial(scene.cache, "clear", name=PRIVATE) as raw:
        raw.send(request("/v2/team/secret/manifests/1", "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1",
                         "X-Original-URL: /v2/team/app/manifests/1", "X-Rewrite-URL: /v2/", "X-User: a",
                         host=PRIVATE))  # fmt: skip
        assert raw.answer().status == 401


CASES: tuple[Case, ...] = (
    wire("5000 fields", get(*["X: y"] * 5000), Served()),
    wire("20,000 fields", get(*["X: y"] * 20_000), Refused((431,))),
    wire("a field of 64 kB", get(f"X: {'a' * 65_536}"), Refused((431,))),
    wire("a name of 30 kB", get(f"{'X' * 30_000}: y"), Served()),
    wire("a name with a space", get("X Y: z"), Refused((400,))),
    wire("a name with a tab", get("X\t: z"), Refused((400,))),
    wire("a name with brackets", get("X(Y): z"), Refused((400,))),
    wire("a name with 8-bit bytes", get("X\xff: z"), Refused((400,))),
    wire("a name with a NUL", get("X\0Y: z"), Refused((400,))),
    wire("a name with a line break of CR", get("X\rY: z"), Refused((400,))),
    wire("a value with 8-bit bytes", get("User-Agent: \xff\xfe\x80"), Served()),
    wire("a value with an escape sequence", get("User-Agent: \x1b[2J\x1b[31m"), Refused((400,))),
    wire("a value with a NUL", get("User-Agent: a\0b"), Refused((400,))),
    wire("a value with a bare CR", get("User-Agent: a\rb"), Refused((400,))),
    wire("an Accept of 10,000 types", get("Accept: " + ",".join(f"a/{n}" for n in range(6000))), Served()),
    wire("an Accept of commas", get("Accept: " + "," * 30_000), Served()),
    wire("an Accept with q of 30,000 zeros", get(f"Accept: a/b;q={'0' * 30_000}"), Served()),
    wire("an Accept-Encoding that asks for what was never stored", get("Accept-Encoding: br, zstd, gzip"), Served()),
    wire("Content-Encoding of a request without a body", get("Content-Encoding: gzip"), Served()),
    wire("If-None-Match: *", get("If-None-Match: *"), Served()),
    wire("If-Modified-Since nonsense", get("If-Modified-Since: yesterday, perhaps"), Served()),
    wire("Docker-Content-Digest of a client", get(f"Docker-Content-Digest: sha256:{'0' * 64}"), Served()),
    wire("X-Cache and X-Request-Id of a client", get("X-Cache: HIT", "X-Request-Id: \xff"), Served()),
    wire("Connection: host", get("Connection: host"), Served()),
    wire("Max-Forwards: 0 with OPTIONS", request("/v2/", "Max-Forwards: 0", method="OPTIONS", host=HUB), PassedOn(405)),
    *(ranged(name, value) for name, value in RANGES.items()),
    Case("If-Range with a tag that is none of ours", "200 and all of it", _if_range, asks=True),
    Case("Via with the cache's own mark", "508, and nobody is asked", _via, asks=True),
    Case("50 Vias of others", "served", _many_vias, asks=True),
    Case("headers by which other programs let somebody in", "401 as anybody else", _decides_nothing, asks=True),
    relayed(
        "Connection: authorization",
        "the field does not go on",
        ("Connection: authorization", "Authorization: Basic YTpi"),
        absent=("authorization", "connection"),
    ),
    relayed(
        "Connection: cookie, x-probe",
        "the fields do not go on",
        ("Connection: cookie, x-probe", "Cookie: a=b", "X-Probe: 1"),
        absent=("cookie", "x-probe"),
    ),
    relayed(
        "two Connections",
        "the fields of both do not go on",
        ("Connection: x-one", "Connection: x-two", "X-One: 1", "X-Two: 2"),
        absent=("x-one", "x-two"),
    ),
    relayed(
        "Proxy-Authorization",
        "it does not go on",
        ("Proxy-Authorization: Basic YTpi",),
        absent=("proxy-authorization",),
    ),
    relayed(
        "Proxy-Connection and Keep-Alive",
        "they do not go on",
        ("Proxy-Connection: keep-alive", "Keep-Alive: timeout=9"),
        absent=("proxy-connection", "keep-alive"),
    ),
    relayed("TE and Trailer", "they do not go on", ("TE: trailers", "Trailer: X-Sum"), absent=("te", "trailer")),
    relayed(
        "Upgrade to something else", "it does not go on", ("Upgrade: foo/1", "Connection: upgrade"), absent=("upgrade",)
    ),
)
