"""Paths and queries that mean another thing to whoever decodes them once more."""

from tests.hostile.case import Case, PassedOn, Refused, wire
from tests.hostile.scene import HUB
from tests.proxy.raw import request

ZERO = "0" * 64


def get(target: str | bytes) -> bytes:
    line = target.encode("latin-1") if isinstance(target, str) else target
    return b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (line, HUB.encode())


TARGETS: dict[str, str | bytes] = {
    "..": "/v2/../v2/team/app/manifests/1",
    "../ at the end of a name": "/v2/team/../manifests/1",
    ". as a part": "/v2/./team/app/manifests/1",
    ".. before the API": "/../v2/team/app/manifests/1",
    "an encoded ..": "/v2/%2e%2e/team/app/manifests/1",
    "a half-encoded ..": "/v2/.%2e/team/app/manifests/1",
    "an encoded slash in a name": "/v2/team%2fapp/manifests/1",
    "a twice encoded slash": "/v2/team%252fapp/manifests/1",
    "an encoded backslash": "/v2/team%5capp/manifests/1",
    "a backslash": "/v2/team\\app/manifests/1",
    "..\\": "/v2/..\\..\\etc\\passwd/manifests/1",
    "an overlong slash": "/v2/team%c0%afapp/manifests/1",
    "an overlong dot": "/v2/%c0%ae%c0%ae/manifests/1",
    "an encoded NUL in a tag": "/v2/team/app/manifests/1%00",
    "an encoded line break in a tag": "/v2/team/app/manifests/1%0d%0aX:%20y",
    "an encoded colon in a digest": f"/v2/team/app/blobs/sha256%3a{ZERO}",
    "an encoded digit in a digest": f"/v2/team/app/blobs/sha256:%30{'0' * 63}",
    "an encoded slash in a digest": f"/v2/team/app/blobs/sha256:..%2f{'0' * 60}",
    "an encoded question mark": "/v2/team/app/manifests/1%3fns=quay.io",
    "%u escapes": "/v2/team%u002fapp/manifests/1",
    "a percent sign alone": "/v2/team/app/manifests/1%",
    "a name that is empty": "/v2//manifests/1",
    "two slashes before the name": "/v2//team/app/manifests/1",
    "two slashes in a name": "/v2/team//app/manifests/1",
    "a semicolon": "/v2/team/app;x/manifests/1",
    "a fragment": "/v2/team/app/manifests/1#x",
    "a fragment before the query": "/v2/team/app/manifests/#?x",
    "a fragment with a path": "/v2/team/app/manifests/1#/x",
    "an empty fragment behind a list": "/v2/team/app/tags/list#",
    "a NUL": b"/v2/team/app/manifests/\0",
    "a tab": b"/v2/team/app\t/manifests/1",
    "raw UTF-8": "/v2/tëam/app/manifests/1".encode(),
    "bytes that are no UTF-8": b"/v2/\xff\xfe/manifests/1",
    "a DEL": b"/v2/team/\x7f/manifests/1",
    "an escape sequence": b"/v2/\x1b[31mteam/manifests/1",
    "a path of 5000 bytes": f"/v2/{'a/' * 2500}manifests/1",
    "a query of 100 kB": f"/v2/?{'a' * 100_000}",
    "10,000 slashes": f"/v2/{'/' * 10_000}",
    "the absolute form": f"http://{HUB}/v2/",
    "the absolute form of a file": "file:///etc/passwd",
    "the absolute form without a host": "http:///v2/",
    "the absolute form with user information": f"http://{HUB}@127.0.0.1/v2/",
    "the absolute form of a metadata service": "http://169.254.169.254/latest/meta-data/",
    "the authority form with GET": f"{HUB}:443",
    "a relative path": "v2/team/app/manifests/1",
    "a scheme in small letters and no slashes": "javascript:alert(1)",
    "upper case in a name": "/v2/Team/app/manifests/1",
    "a name of 256 characters": f"/v2/{'a' * 256}/manifests/1",
    "a name that ends with a dot": "/v2/team./manifests/1",
    "a name that begins with a dash": "/v2/-team/manifests/1",
    "a name with three underscores": "/v2/te___am/manifests/1",
    "a tag of 129 characters": f"/v2/team/app/manifests/{'a' * 129}",
    "a tag that begins with a dot": "/v2/team/app/manifests/.1",
    "a tag with a tilde": "/v2/team/app/manifests/1~",
}
CASES: tuple[Case, ...] = (
    *(wire(name, get(target), Refused((400, 404, 405, 414, 431))) for name, target in TARGETS.items()),
    wire("a slash behind the tag", get("/v2/team/app/manifests/1/"), PassedOn(404)),
    wire("a path with two slashes in front", get("//evil.example/v2/"), PassedOn(404)),
    wire("a path with a URL in it", get("/https://evil.example/v2/"), PassedOn(404)),
    wire("a path with an at sign in front", get("/@evil.example/v2/"), PassedOn(404)),
    wire("a method that is a path", request("/v2/", method="/v2/", host=HUB), Refused((400, 405))),
    wire(
        "PUT of a name with an encoded slash",
        request("/v2/a%2fb/manifests/1", "Content-Length: 0", method="PUT", host=HUB),
        Refused((400,)),
    ),
    wire(
        "POST of an upload with ..",
        request("/v2/a/../b/blobs/uploads/", "Content-Length: 0", method="POST", host=HUB),
        Refused((400,)),
    ),
    wire(
        "mounting a digest that is none",
        request("/v2/UP/blobs/uploads/?mount=sha256:x&from=../../a", "Content-Length: 0", method="POST", host=HUB),
        Refused((400,)),
    ),
)
