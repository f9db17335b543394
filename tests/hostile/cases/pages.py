"""The pages at the cache's own names, and the admin listener: what browsers can be made to do with them."""

from collections.abc import Callable

from tests.hostile.case import Case
from tests.hostile.scene import Scene
from tests.proxy.raw import Answer, Raw, request

SCRIPT = "<script>alert(1)</script>"


def page(name: str, sent: bytes, statuses: tuple[int, ...], *, method: str = "GET", listener: str = "mirror",
         check: Callable[[Answer], None] | None = None) -> Case:  # fmt: skip
    """A request for a page: its answer holds nothing that the client has sent, and every guard of browsers."""

    def run(scene: Scene) -> None:
        with Raw(scene.cache.address(listener)) as raw:
            raw.send(sent)
            answer = raw.answer(method)
        assert answer.status in statuses, (answer.status, answer.body)
        assert b"alert(1)" not in answer.body
        assert b"evil.example" not in answer.body or answer.headers["content-type"].startswith("application/json")
        assert "set-cookie" not in answer.headers
        assert "x-evil" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        if check is not None:
            check(answer)

    return Case(name, f"{' or '.join(map(str, statuses))}; nothing of it is echoed, and no header is had", run)


def guarded(answer: Answer) -> None:
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def own(target: str, *lines: str, method: str = "GET", host: str = "127.0.0.1") -> bytes:
    return request(target, *lines, method=method, host=host)


def admin(name: str, sent: bytes, statuses: tuple[int, ...], *, method: str = "GET") -> Case:
    return page(f"admin: {name}", sent, statuses, listener="admin", method=method)


CASES: tuple[Case, ...] = (
    page("a script in the path", own(f"/{SCRIPT}"), (404,), check=guarded),
    page("a script in the query", own(f"/?{SCRIPT}"), (200,), check=guarded),
    page("a script in the Host", own("/", host=SCRIPT.replace("/", "")), (200, 400, 404)),
    page("a script in the Accept", own("/", f"Accept: text/html, {SCRIPT}"), (200,), check=guarded),
    page("a script in the User-Agent", own("/", f"User-Agent: {SCRIPT}"), (200,), check=guarded),
    page("a script in the Referer", own("/", f"Referer: {SCRIPT}"), (200,), check=guarded),
    page("an Origin of somebody else", own("/", "Origin: https://evil.example"), (200,), check=guarded),
    page(
        "CORS's preflight",
        own("/", "Origin: https://evil.example", "Access-Control-Request-Method: PUT", method="OPTIONS"),
        (405,),
    ),
    page("a foreign Host (DNS rebinding)", own("/healthz", host="evil.example"), (200, 404, 421)),
    page("a header by %0d%0a in the path", own("/%0d%0aX-Evil:%20y"), (404,)),
    page("a header by %0d%0a in the query", own("/?%0d%0aX-Evil:%20y"), (200,)),
    page("X-Forwarded-Host", own("/", "X-Forwarded-Host: evil.example", "Accept: text/html"), (200,), check=guarded),
    page("X-Forwarded-Proto", own("/", "X-Forwarded-Proto: javascript"), (200,), check=guarded),
    page(".. in the path", own("/../../etc/passwd"), (404,)),
    page("an encoded .. in the path", own("/%2e%2e/ca.key"), (404,)),
    page("the CA's key", own("/ca.key"), (404,)),
    page("the CA's key beside its certificate", own("/ca.crt/../ca.key"), (404,)),
    page("the configuration", own("/config.toml"), (404,)),
    page("git's folder", own("/.git/config"), (404,)),
    page("the metrics", own("/metrics"), (404,)),
    page("the status", own("/status"), (404,)),
    page("a NUL behind a page", own("/ca.crt%00"), (404,)),
    page("a slash behind a page", own("/ca.crt/"), (404,)),
    page("a page in upper case", own("/CA.CRT"), (404,)),
    page("a path of 60 kB", own(f"/{'a' * 60_000}"), (404, 414)),
    page("POST of a page", own("/", "Content-Length: 0", method="POST"), (405,)),
    page("PUT of the certificate", own("/ca.crt", "Content-Length: 3", method="PUT") + b"abc", (405,)),
    page("DELETE of the certificate", own("/ca.crt", method="DELETE"), (405,)),
    page("TRACE of a page", own("/", "X-Evil: y", method="TRACE"), (405,)),
    page("a range of the certificate", own("/ca.crt", "Range: bytes=0-1"), (200,)),
    admin("a script in the path", own(f"/{SCRIPT}"), (404,)),
    admin("a script in the query", own(f"/status?{SCRIPT}"), (200,)),
    admin("a foreign Host (DNS rebinding)", own("/status", host="evil.example"), (421,)),
    admin("a foreign Host for the metrics", own("/metrics", host="evil.example:9500"), (421,)),
    admin("a foreign Origin", own("/status", "Origin: https://evil.example"), (200, 403)),
    admin("two Hosts", own("/status", "Host: evil.example"), (421,)),
    admin("a page of another listener", own("/ca.crt"), (404,)),
    admin("the registry API", own("/v2/"), (404,)),
    admin("..", own("/../status"), (404,)),
    admin("the absolute form", own("http://evil.example/status"), (400, 404)),
    admin("CONNECT", own("127.0.0.1:443", method="CONNECT"), (404, 405)),
    admin("POST", own("/status", "Content-Length: 3", method="POST") + b"abc", (405,)),
    admin("a body where none is wanted", own("/status", "Content-Length: 100000") + bytes(100_000), (200,)),
    admin("a head of 9 kB", own("/status", f"X: {'a' * 9000}"), (431,)),
    admin("200 header fields", own("/status", *["X: y"] * 200), (400,)),
    admin("HTTP/0.9", b"GET /status\r\n\r\n", (400,)),
    admin("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    admin("TLS", b"\x16\x03\x01\x02\x00\r\n\r\n", (400,)),
    admin("8-bit bytes in the path", b"GET /\xff\xfe HTTP/1.1\r\n\r\n", (404,)),
    admin("an Accept of 7 kB", own("/metrics", f"Accept: {'a/b,' * 1700}"), (200,)),
    admin(
        "an Accept of openmetrics with nonsense",
        own("/metrics", "Accept: application/openmetrics-text; version=9;q=x"),
        (200,),
    ),
)
