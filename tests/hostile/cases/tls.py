"""TLS from clients, and which certificates they can have made."""

import socket
import ssl
import struct
import warnings
from collections.abc import Callable

from tests.hostile.case import Case, Cut, Refused, plain
from tests.hostile.scene import HUB, TAG, Scene
from tests.proxy.raw import Raw, dial, request


def hello(name: str | None, *alpn: str) -> bytes:
    """A ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = anybody()
    if alpn:
        context.set_alpn_protocols(list(alpn))
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def anybody() -> ssl.SSLContext:
    """A client that takes any certificate: what it must not get is one at all."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def renamed(name: bytes) -> bytes:
    """A ClientHello for a server name that no library would send."""
    stand_in = "x" * len(name)
    return hello(stand_in).replace(stand_in.encode(), name)


def records(message: bytes, size: int) -> bytes:
    """One handshake message in records of `size` bytes each."""
    body = message[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(piece)) + piece for piece in pieces)


def no_certificate(name: str, sni: str | None) -> Case:
    """A handshake that must not succeed."""

    def run(scene: Scene) -> None:
        with socket.create_connection(scene.cache.address("tls"), 10) as bare:
            try:
                anybody().wrap_socket(bare, server_hostname=sni).close()
            except OSError:
                return
        raise AssertionError("there was a certificate")

    return Case(name, "no certificate and no answer", run)


def no_handshake(name: str, change: Callable[[ssl.SSLContext], None]) -> Case:
    """A client that offers nothing that is taken."""

    def run(scene: Scene) -> None:
        context = anybody()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what is tried is old
            change(context)
        with socket.create_connection(scene.cache.address("tls"), 10) as bare:
            try:
                context.wrap_socket(bare, server_hostname=HUB).close()
            except OSError:
                return
        raise AssertionError("there was a handshake")

    return Case(name, "no handshake", run)


def _only(version: ssl.TLSVersion) -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version

    return change


def _ciphers(names: str) -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(names)

    return change


def _h2_only(scene: Scene) -> None:
    context = ssl.create_default_context(cafile=scene.cache.ca_file)
    context.set_alpn_protocols(["h2"])
    with Raw(scene.cache.address("tls"), tls=context, name=HUB) as raw:
        assert isinstance(raw.socket, ssl.SSLSocket)
        assert raw.socket.selected_alpn_protocol() is None
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert raw.answer().status in (400, 405, 505)


def _split(size: int) -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        with Raw(scene.cache.address("tls")) as raw:
            raw.send(records(hello(HUB), size))
            assert raw.read(1) in (b"\x16", b"\x15")  # a ServerHello, or an alert of TLS

    return run


def _renegotiation(scene: Scene) -> None:
    context = ssl.create_default_context(cafile=scene.cache.ca_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Raw(scene.cache.address("tls"), tls=context, name=HUB) as raw:
        # A ClientHello as it stands inside of TLS: not as a renegotiation, which Python cannot begin.
        raw.send(hello(HUB))
        assert raw.answer().status == 400
        assert raw.rest() == b""


def _leaf(scene: Scene) -> None:
    context = ssl.create_default_context(cafile=scene.cache.ca_file)
    with Raw(scene.cache.address("tls"), tls=context, name="DOCKER.IO") as raw:
        assert isinstance(raw.socket, ssl.SSLSocket)
        certificate = raw.socket.getpeercert()
    assert certificate is not None
    assert certificate["subjectAltName"] == (("DNS", HUB),)


def _second_request(scene: Scene) -> None:
    with dial(scene.cache, "tls") as raw:
        raw.send(request(TAG, "Accept: */*", host=HUB))
        assert raw.answer().status == 200
        raw.send(request(TAG, "Accept: */*", host="quay.io"))
        assert raw.answer().status == 421
        assert raw.rest() == b""


CASES: tuple[Case, ...] = (
    no_certificate("no server name", None),
    no_certificate("a foreign server name", "evil.example"),
    no_certificate("a name below a registry's", f"a.{HUB}"),
    no_certificate("a name above a registry's", "io"),
    no_certificate("a wildcard", f"*.{HUB}"),
    no_certificate("a registry as a part of the name", f"{HUB}.evil.example"),
    no_certificate("an address", "127.0.0.2"),
    no_certificate("an address as one number", "2130706433"),
    no_certificate("localhost", "localhost"),
    no_certificate("a host that issues tokens, where it is no registry", "evil-auth.docker.com"),
    no_certificate("a name of 253 characters", ".".join(["a" * 49] * 5)),
    no_certificate("a punycode homograph", "xn--dcker-jye.io"),
    *(
        plain(f"a server name with {name}", renamed(sni), Cut(), listener="tls")
        for name, sni in {
            "a NUL inside": b"docker.io\0.evil.example",
            "a line break": b"docker.io\r\nX: y",
            "a space": b"docker.io evil",
            "8-bit bytes": b"docker\xff\xfe.io",
            "a slash": b"docker.io/../ca",
            "a port": b"docker.io:443",
            "user information": b"user@docker.io",
            "an escape sequence": b"\x1b[2Jdocker.io",
        }.items()
    ),
    no_handshake("TLS 1.0", _only(ssl.TLSVersion.TLSv1)),
    no_handshake("TLS 1.1", _only(ssl.TLSVersion.TLSv1_1)),
    no_handshake("ciphers without forward secrecy", _ciphers("AES128-GCM-SHA256:AES256-GCM-SHA384:@SECLEVEL=0")),
    no_handshake(
        "ciphers without authenticated encryption", _ciphers("ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:@SECLEVEL=0")
    ),
    no_handshake("ciphers without authentication", _ciphers("aNULL:@SECLEVEL=0")),
    Case("a ClientHello in records of 1 byte", "a ServerHello, or an alert of TLS", _split(1)),
    Case("a ClientHello in records of 100 bytes", "a ServerHello, or an alert of TLS", _split(100)),
    Case("ALPN with h2 alone, and HTTP/2's preface", "no protocol is chosen; 400, 405 or 505 in HTTP/1.1", _h2_only),
    Case("a ClientHello inside of TLS 1.2", "400, and the end of the connection", _renegotiation),
    Case("the server name in upper case", "the leaf is for the name as it is configured, and for no other", _leaf),
    Case("another Host in the second request of a connection", "200, then 421 and the end", _second_request, asks=True),
    plain(
        "a ClientHello that says it has 16 MB",
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03" + bytes(100_000),
        Cut(),
        listener="tls",
    ),
    plain(
        "a ClientHello with extensions of 60 kB that never end",
        b"\x16\x03\x01\x40\x00\x01\x00\xf0\x00\x03\x03" + bytes(32) + b"\0\0\x02\x13\x01\x01\0\xff\xff" + bytes(70_000),
        Cut(),
        listener="tls",
    ),
    plain(
        "a hello of SSL 2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37), Refused((400,)), listener="tls"
    ),
    plain("records of 0 bytes", b"\x16\x03\x01\x00\x00" * 20_000, Cut(), listener="tls"),
    plain("an alert first", b"\x15\x03\x01\x00\x02\x02\x28", Refused((400,)), listener="tls"),
    plain("application data first", b"\x17\x03\x03\x00\x05hello", Refused((400,)), listener="tls"),
    plain("Heartbleed's heartbeat first", b"\x18\x03\x02\x00\x03\x01\x40\x00", Refused((400,)), listener="tls"),
    plain("a ServerHello instead of a ClientHello", b"\x16\x03\x03\x00\x06\x02\0\0\x02\x03\x03", Cut(), listener="tls"),
    plain("100 kB of noise behind the first byte of TLS", b"\x16" + bytes(range(1, 256)) * 400, Cut(), listener="tls"),
    plain("clear text on the TLS listener", request("/v2/", host=HUB), Refused((400,)), listener="tls"),
    plain("a ClientHello on the clear listener", hello(HUB), Refused((400,)), listener="clear"),
    plain("a ClientHello on the connect listener", hello(HUB), Refused((400,)), listener="connect"),
    plain("a ClientHello for a foreign name on the mirror listener", hello("evil.example"), Cut(), listener="mirror"),
)
