"""CONNECT: what may be reached through the cache, by whatever notation."""

import ssl
from collections.abc import Callable

from tests.hostile.case import Case, Refused, plain
from tests.hostile.scene import HUB, Scene
from tests.proxy.raw import Raw, request

DENIED = Refused((403,))
MALFORMED = Refused((400,))
NOWHERE = Refused((400, 403, 502))


def connect(target: str, *lines: str) -> bytes:
    return request(target, *lines, method="CONNECT", host=target)


TARGETS: dict[str, tuple[str, Refused]] = {
    "loopback": ("127.0.0.1:443", DENIED),
    "another address of loopback": ("127.8.9.1:443", DENIED),
    "IPv6 loopback": ("[::1]:443", DENIED),
    "loopback mapped into IPv6": ("[::ffff:127.0.0.1]:443", DENIED),
    "loopback mapped, in hexadecimal": ("[::ffff:7f00:1]:443", DENIED),
    "loopback by NAT64": ("[64:ff9b::7f00:1]:443", DENIED),
    "loopback by 6to4": ("[2002:7f00:1::]:443", DENIED),
    "no address at all": ("0.0.0.0:443", DENIED),
    "IPv6's no address": ("[::]:443", DENIED),
    "a metadata service": ("169.254.169.254:443", DENIED),
    "a metadata service mapped into IPv6": ("[::ffff:a9fe:a9fe]:443", DENIED),
    "EC2's metadata by IPv6": ("[fd00:ec2::254]:443", DENIED),
    "a private network": ("10.0.0.1:443", DENIED),
    "another private network": ("192.168.0.1:443", DENIED),
    "carrier-grade NAT": ("100.64.0.1:443", DENIED),
    "link-local by IPv6, with a zone": ("[fe80::1%25lo]:443", NOWHERE),
    "multicast": ("224.0.0.1:443", DENIED),
    "broadcast": ("255.255.255.255:443", DENIED),
    "loopback as one number": ("2130706433:443", MALFORMED),
    "loopback in hexadecimal": ("0x7f000001:443", MALFORMED),
    "loopback in mixed notation": ("0x7f.1:443", MALFORMED),
    "loopback in octal": ("0177.0.0.1:443", MALFORMED),
    "loopback in two parts": ("127.1:443", MALFORMED),
    "loopback in full-width digits": ("１２７.0.0.1:443".encode().decode("latin-1"), NOWHERE),  # noqa: RUF001 - tried
    "loopback with circled digits": ("①②⑦.0.0.1:443".encode().decode("latin-1"), NOWHERE),
    "loopback with a dot behind it": ("127.0.0.1.:443", DENIED),
    "a name that is loopback": ("here.example:443", DENIED),
    "a name that is private": ("inside.example:443", DENIED),
    "a name that is a metadata service": ("metadata.example:443", DENIED),
    "a name with three addresses inside": ("all-inside.example:443", DENIED),
    "localhost": ("localhost:443", NOWHERE),
    "a name with an encoded dot": ("evil%2eexample:443", NOWHERE),
    "port 0": ("example.com:0", MALFORMED),
    "port 25": ("example.com:25", DENIED),
    "port 22 of a registry": (f"{HUB}:22", DENIED),
    "port 65536": ("example.com:65536", MALFORMED),
    "port 443 with zeros before it, five digits": ("127.0.0.1:00443", DENIED),
    "port 443 with more zeros": ("127.0.0.1:000443", MALFORMED),
    "a negative port": ("example.com:-443", MALFORMED),
    "a port of words": ("example.com:https", MALFORMED),
    "no port": ("example.com", MALFORMED),
    "no host": (":443", MALFORMED),
    "user information": ("user@127.0.0.1:443", NOWHERE),
    "a registry as user information": (f"{HUB}@127.0.0.1:443", NOWHERE),
    "a path": ("127.0.0.1:443/v2/", MALFORMED),
    "a URL": ("https://127.0.0.1:443", NOWHERE),
    "a host of 60 kB": (f"{'a' * 30_000}:443", NOWHERE),
}


def inside(name: str, sni: str, sent: bytes, statuses: tuple[int, ...]) -> Case:
    """What is sent inside a registry's CONNECT, by TLS for `sni`."""

    def run(scene: Scene) -> None:
        with Raw(scene.cache.address("connect")) as raw:
            raw.send(connect(f"{HUB}:443"))
            assert raw.head()[0] == 200
            context = ssl.create_default_context(cafile=scene.cache.ca_file)
            with context.wrap_socket(raw.socket, server_hostname=sni) as raw.socket:
                raw.send(sent)
                answer = raw.answer()
                assert answer.status in statuses, (answer.status, answer.body)
                assert raw.rest() == b""

    return Case(name, f"{' or '.join(map(str, statuses))}, and the end of the connection", run)


def case(name: str, must: str, run: Callable[[Scene], None]) -> Case:
    return Case(name, must, run)


def _own_address(scene: Scene) -> None:
    host, port = scene.cache.address("connect")
    with Raw((host, port)) as raw:
        raw.send(connect(f"{host}:{port}"))
        answer = raw.answer()
        assert answer.status == 403
        assert raw.rest() == b""


def _rebinding(scene: Scene) -> None:
    with Raw(scene.cache.address("connect")) as raw:
        raw.send(connect("rebinding.example:443"))
        assert raw.answer().status == 403
    assert scene.names.asked.count("rebinding.example") == 1


def _early(scene: Scene) -> None:
    with Raw(scene.cache.address("connect")) as raw:
        raw.send(connect("127.0.0.1:443"), b"\x16\x03\x01" + bytes(2000))
        assert raw.answer().status == 403
        assert raw.rest() == b""


def _clear_inside(scene: Scene) -> None:
    with Raw(scene.cache.address("connect")) as raw:
        raw.send(connect(f"{HUB}:443"), request("/v2/", host=HUB))
        assert raw.head()[0] == 200
        assert raw.answer().status == 400
        assert raw.rest() == b""


def _elsewhere(scene: Scene) -> None:
    with Raw(scene.cache.address("connect")) as raw:
        raw.send(connect(scene.target))
        assert raw.answer().status == 403
        assert raw.rest() == b""


CASES: tuple[Case, ...] = (
    *(
        plain(f"CONNECT to {name}", connect(target), expected, listener="connect")
        for name, (target, expected) in TARGETS.items()
    ),
    case("CONNECT to the connect listener itself", "403, and the end of the connection", _own_address),
    case("CONNECT to an allowed port of loopback", "403, and the end of the connection", _elsewhere),
    case("CONNECT to a name whose second answer is another", "403: a name is resolved once", _rebinding),
    case("TLS behind a refused CONNECT, not waiting for the answer", "403, and nothing of it is passed on", _early),
    case("clear text inside the CONNECT of a registry", "400, and the end of the connection", _clear_inside),
    inside("CONNECT inside the CONNECT of a registry", HUB, connect("127.0.0.1:443"), (405,)),
    inside("the absolute form inside the CONNECT of a registry", HUB, request("http://127.0.0.1/", host=HUB), (400,)),
    inside("another Host inside the CONNECT of a registry", HUB, request("/v2/", host="quay.io"), (421,)),
    inside("another server name inside the CONNECT of a registry", "quay.io", request("/v2/", host="quay.io"), (421,)),
    plain(
        "CONNECT with a bare CR", f"CONNECT {HUB}:443 HTTP/1.1\rHost: x\r\n\r\n".encode(), MALFORMED, listener="connect"
    ),
    plain("CONNECT in HTTP/0.9", f"CONNECT {HUB}:443\r\n\r\n".encode(), MALFORMED, listener="connect"),
    plain(
        "CONNECT with a head of 100 kB",
        connect("example.com:443", f"X: {'a' * 100_000}"),
        Refused((431,)),
        listener="connect",
    ),
    plain(
        "CONNECT with a header that has no colon", connect("example.com:443", "nonsense"), MALFORMED, listener="connect"
    ),
    plain(
        "GET for another host by the absolute form",
        b"GET http://127.0.0.2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        Refused((405,)),
        listener="connect",
    ),
    plain(
        "GET for a metadata service by the absolute form",
        b"GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        Refused((405,)),
        listener="connect",
    ),
    plain(
        "GET of a file by the absolute form",
        b"GET file:///etc/passwd HTTP/1.1\r\nHost: docker.proxy\r\n\r\n",
        Refused((400, 405)),
        listener="connect",
    ),
)
