"""Who is meant: the Host header, the server name of TLS, and what lies between them."""

from tests.hostile.case import Case, Refused, Served, wire
from tests.hostile.scene import HUB, TAG

UNKNOWN = Refused((400, 404, 421))


def get(*hosts: str | bytes) -> bytes:
    lines = b"".join(b"Host: %b\r\n" % (host.encode() if isinstance(host, str) else host) for host in hosts)
    return b"GET %b HTTP/1.1\r\n%bAccept: */*\r\n\r\n" % (TAG.encode(), lines)


HOSTS: dict[str, str | bytes] = {
    "an unknown host": "evil.example",
    "a host below a registry's": f"x.{HUB}",
    "a host above a registry's": "io",
    "a registry's as a prefix": f"{HUB}.evil.example",
    "an empty one": "",
    "user information": f"x@{HUB}",
    "a registry as user information": f"{HUB}@evil.example",
    "a path": f"{HUB}/v2",
    "a query": f"{HUB}?x",
    "a fragment": f"evil.example#{HUB}",
    "a list": f"{HUB}, evil.example",
    "a space": f"{HUB} evil.example",
    "an encoded dot": "docker%2eio",
    "a homograph (Cyrillic)": "dосker.io".encode(),  # noqa: RUF001 - that is what is tried
    "full-width letters": "ｄocker.io".encode(),  # noqa: RUF001 - that is what is tried
    "a punycode homograph": "xn--dcker-jye.io",
    "a NUL": b"docker.io\0.evil.example",
    "8-bit bytes": b"\xff\xfe",
    "another port": f"{HUB}:22",
    "port 0": f"{HUB}:0",
    "port 65536": f"{HUB}:65536",
    "a negative port": f"{HUB}:-1",
    "a port with a plus sign": f"{HUB}:+80",
    "two ports": f"{HUB}:80:80",
    "a port and no host": ":80",
    "a dot": ".",
    "two dots at the end": f"{HUB}..evil",
    "a metadata address": "169.254.169.254",
    "another loopback address": "127.0.0.2",
    "loopback as one number": "2130706433",
    "loopback in hexadecimal": "0x7f.1",
    "loopback in octal": "0177.0.0.1",
    "loopback mapped into IPv6": "[::ffff:127.0.0.2]",
    "IPv6 loopback": "[::1]",
    "IPv6 with a zone": "[fe80::1%25eth0]",
    "a bracket that does not close": "[::1",
    "10,000 characters": "a" * 10_000,
    "localhost": "localhost",
}

CASES: tuple[Case, ...] = (
    *(wire(f"Host: {name}", get(host), UNKNOWN) for name, host in HOSTS.items()),
    wire("no Host", get(), UNKNOWN),
    wire("two Hosts, the first one right", get(HUB, "evil.example"), UNKNOWN),
    wire("two Hosts, the second one right", get("evil.example", HUB), UNKNOWN),
    wire("two equal Hosts", get(HUB, HUB), UNKNOWN),
    wire("a folded Host", get(f"evil.example\r\n {HUB}"), UNKNOWN),
    wire("X-Forwarded-Host of a registry", get("evil.example\r\nX-Forwarded-Host: docker.io"), UNKNOWN),
    wire("X-Forwarded-Host beside a right Host", get(f"{HUB}\r\nX-Forwarded-Host: evil.example"), Served()),
    wire("Host in upper case", get("DOCKER.IO"), Served()),
    wire("Host with a dot at the end", get(f"{HUB}."), Served()),
    wire("Host of another registry than the server name", get("quay.io"), Refused((421,)), listener="tls"),
    wire("Host of an alias of the server name's registry", get("index.docker.io"), Refused((421,)), listener="tls"),
    wire(
        "Host of the cache itself behind a registry's server name", get("docker.proxy"), Refused((421,)), listener="tls"
    ),
    wire(
        "Host of another registry behind the cache's own server name",
        get(HUB),
        Refused((421,)),
        listener="tls",
        sni="docker.proxy",
    ),
    wire("Host with another port behind TLS", get(f"{HUB}:8443"), UNKNOWN, listener="tls"),
    wire("Host of an address behind a registry's server name", get("127.0.0.1"), Refused((421,)), listener="tls"),
)
