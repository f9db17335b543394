"""Where a request begins and ends (RFC 9112): whoever sees another end than the next one on the way smuggles."""

from tests.hostile.case import Case, Refused, Served, Unserved, wire
from tests.hostile.scene import HUB, TAG
from tests.proxy.raw import request

BAD = Refused((400, 405, 413, 431, 501))
INNER = request("/v2/team/app/manifests/smuggled", host=HUB)


def post(*lines: str, body: bytes = b"") -> bytes:
    """A request that would be relayed with its body."""
    return request("/token", *lines, method="POST", host=HUB) + body


def chunked(body: bytes) -> bytes:
    return post("Transfer-Encoding: chunked", body=body)


def get(*lines: str, body: bytes = b"") -> bytes:
    """A pull that has a body."""
    return request(TAG, "Accept: */*", *lines, host=HUB) + body


def first_line(line: bytes) -> bytes:
    return line + f"\r\nHost: {HUB}\r\n\r\n".encode()


LENGTHS = {
    "with a plus sign": "+3", "negative": "-3", "in hexadecimal": "0x3", "as a list of equal ones": "3, 3",
    "as a list of different ones": "3, 4", "with an underscore": "1_0", "with an exponent": "1e3",
    "with a point": "3.0", "with a space inside": "3 4", "with a vertical tab": "3\x0b", "of 20 digits": "9" * 20,
    "of 5000 digits": "9" * 5000, "in full-width digits": "\xef\xbc\x93",
    "of superscript digits": "\xb2\xb3", "that is empty": "", "with a NUL": "3\0", "with a bare CR": "3\r4",
}  # fmt: skip
CODINGS = {
    "identity": "identity", "chunked twice": "chunked, chunked", "chunked before identity": "chunked, identity",
    "an unknown one": "xchunked", "gzip before chunked": "gzip, chunked", "gzip alone": "gzip",
    "quoted": '"chunked"', "with a parameter": "chunked;q=1", "with a vertical tab": "\x0bchunked",
    "with a NUL": "chunked\0", "cut in two by CR": "chunk\red", "empty": "",
}  # fmt: skip
CHUNKS = {
    "a negative size": b"-3\r\nabc\r\n0\r\n\r\n", "a size with a plus sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a size with 0x": b"0x3\r\nabc\r\n0\r\n\r\n", "a size of 17 hex digits": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "a size with an underscore": b"0_3\r\nabc\r\n0\r\n\r\n", "a size with a space before it": b" 3\r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n", "a size that is a word": b"three\r\nabc\r\n0\r\n\r\n",
    "data longer than its size": b"1\r\nabc\r\n0\r\n\r\n", "LF alone behind the data": b"3\r\nabc\n0\r\n\r\n",
    "CR alone behind the size": b"3\rabc\r\n0\r\n\r\n",
}  # fmt: skip
LINES = {
    "HTTP/0.9": b"GET /v2/",
    "HTTP/2.0": b"GET /v2/ HTTP/2.0",
    "a version of words": b"GET /v2/ HTTP/one",
    "a version in small letters": b"GET /v2/ http/1.1",
    "a version with more digits": b"GET /v2/ HTTP/1.11",
    "a fourth word": b"GET /v2/ /v2/ HTTP/1.1",
    "no method": b"/v2/ HTTP/1.1",
    "a NUL in the method": b"GE\0T /v2/ HTTP/1.1",
    "a colon in the method": b"GET: /v2/ HTTP/1.1",
    "TRACE": b"TRACE /v2/ HTTP/1.1",
    "the method of HTTP/2's preface": b"PRI * HTTP/2.0",
}

CASES: tuple[Case, ...] = (
    *(
        wire(f"Content-Length {name}", post(f"Content-Length: {value}", body=b"abc"), BAD)
        for name, value in LENGTHS.items()
        if name != "that is empty"
    ),
    *(
        wire(f"Content-Length {name}, of a pull", get(f"Content-Length: {value}", body=b"abc"), BAD)
        for name, value in list(LENGTHS.items())[:6]
    ),
    *(
        wire(f"Transfer-Encoding: {name}", post(f"Transfer-Encoding: {value}", body=b"0\r\n\r\n"), BAD)
        for name, value in CODINGS.items()
        if name != "empty"
    ),
    *(
        wire(f"a chunk with {name}", get("Transfer-Encoding: chunked", body=body), Unserved())
        for name, body in CHUNKS.items()
    ),
    *(
        wire(f"a request line with {name}", first_line(line), Refused((400, 405, 421, 501, 505)))
        for name, line in LINES.items()
    ),
    wire("an empty Content-Length", post("Content-Length: ", body=b"abc"), BAD),
    wire("an empty Transfer-Encoding", post("Transfer-Encoding: ", body=b"0\r\n\r\n"), BAD),
    wire(
        "Content-Length, then Transfer-Encoding",
        post("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        BAD,
    ),
    wire(
        "Transfer-Encoding, then Content-Length",
        post("Transfer-Encoding: chunked", "Content-Length: 5", body=b"0\r\n\r\n"),
        BAD,
    ),
    wire(
        "two different Transfer-Encodings",
        post("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=b"0\r\n\r\n"),
        BAD,
    ),
    wire("two equal Content-Lengths", post("Content-Length: 3", "Content-Length: 3", body=b"abc"), BAD),
    wire("two different Content-Lengths", post("Content-Length: 3", "Content-Length: 0", body=b"abc"), BAD),
    wire("a space before the colon of Transfer-Encoding", post("Transfer-Encoding : chunked", body=b"0\r\n\r\n"), BAD),
    wire("a tab before the colon of Content-Length", post("Content-Length\t: 3", body=b"abc"), BAD),
    wire("a folded Transfer-Encoding", post("Transfer-Encoding:", " chunked", body=b"0\r\n\r\n"), BAD),
    wire(
        "chunks in HTTP/1.0",
        f"POST /token HTTP/1.0\r\nHost: {HUB}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(),
        BAD,
    ),
    wire("a first header that is folded", f"GET /v2/ HTTP/1.1\r\n  x\r\nHost: {HUB}\r\n\r\n".encode(), BAD),
    wire("a header without a colon", get("Accept */*"), BAD),
    wire("a header without a name", get(": */*"), BAD),
    wire("a bare CR between two headers", f"GET /v2/ HTTP/1.1\r\nHost: {HUB}\rX: y\r\n\r\n".encode(), BAD),
    wire("a request in the body of a pull", get(f"Content-Length: {len(INNER)}", body=INNER), Served()),
    wire(
        "a request in a chunk of a pull",
        get("Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)),
        Served(),
    ),
    wire(
        "a request in the trailers of a pull",
        get("Transfer-Encoding: chunked", body=b"0\r\nHost: evil.example\r\nContent-Length: 900\r\n\r\n"),
        Served(),
    ),
    wire(
        "a chunk's extension of 1 KiB",
        get("Transfer-Encoding: chunked", body=b"1;" + b"x" * 1024 + b"\r\na\r\n0\r\n\r\n"),
        Served(),
    ),
    wire(
        "a chunk's extension with a quoted line break",
        get("Transfer-Encoding: chunked", body=b'1;a="\r\nb"\r\na\r\n0\r\n\r\n'),
        Unserved(),
    ),
    wire(
        "HEAD with a body",
        request("/v2/", "Content-Length: 3", method="HEAD", host=HUB) + b"abc",
        Served(),
        method="HEAD",
    ),
    wire("line breaks before the request", b"\r\n\r\n" + get(), Served()),
    wire("a method in small letters", get().replace(b"GET", b"get"), Served()),
    wire("a line break of LF alone throughout", f"GET {TAG} HTTP/1.1\nHost: {HUB}\nAccept: */*\n\n".encode(), Served()),
    wire(
        "Upgrade: h2c",
        get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        Served(),
    ),
    wire("Upgrade: TLS/1.0", get("Connection: Upgrade", "Upgrade: TLS/1.0"), Served()),
    wire("Early-Data: 1", get("Early-Data: 1"), Served()),
    wire("Expect: something else", get("Expect: 200-maybe"), Served()),
    wire("Connection: close, and a request behind it", get("Connection: close"), Served(behind=False)),
    wire(
        "a refused request, and 2000 behind it", request("/v2/UP/manifests/1", host=HUB) + get() * 2000, Refused((400,))
    ),
    wire("an HTTP/2 frame behind the head", get() + bytes(9), Served(behind=False), follow=False),
    wire("100 kB of line breaks before the request", b"\r\n" * 50_000 + get(), Served()),
    wire("nothing but NULs, 100 kB of them", bytes(100_000), Refused((400, 431))),
    wire("a body of a pull past its limit", get("Content-Length: 65537", body=bytes(65537)), Refused((413,))),
    wire("OPTIONS *, relayed to nobody", first_line(b"OPTIONS * HTTP/1.1"), Refused((404, 405))),
)
