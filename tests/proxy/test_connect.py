"""The connect listener: registries are intercepted, everything else is tunnelled, and nothing leads inside."""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, generate
from tests.fakes.proxies import PASSWORD, USER, microsocks, needs_microsocks, needs_tinyproxy, tinyproxy
from tests.fakes.registry import LyingUpstream, Witness
from tests.serving import Threaded, in_thread

NAME = "registry.demo"


@contextmanager
def proxied(cache: Threaded, request: str) -> Iterator[tuple[socket.socket, str]]:
    """A connection to the connect listener behind a request, and the head of its answer."""
    with socket.create_connection(cache.address("connect"), 10) as plain:
        plain.sendall(request.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            more = plain.recv(1)
            if not more:
                break
            head += more
        yield plain, head.decode()


def connect(target: str) -> str:
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"


def get(plain: socket.socket, name: str, path: str, context: ssl.SSLContext, *, host: str = "") -> tuple[str, bytes]:
    """Status line and headers, and body, of one request by TLS inside a connection."""
    with context.wrap_socket(plain, server_hostname=name) as tls:
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {host or name}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while more := tls.recv(1 << 16):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put("team/app", generate(sizes=[3 * KIB], platforms=["linux/amd64"]), "1")
        yield upstream


def test_registries_are_intercepted(cache: Threaded, upstream: LyingUpstream) -> None:
    """A registry's name gets a leaf of the cache's CA, and the same cache as every other way in."""
    context = ssl.create_default_context(cafile=cache.ca_file)
    index = upstream.registry.repositories["team/app"].tags["1"]
    path = f"/v2/team/app/manifests/{index}"
    for outcome in ("MISS", "HIT"):
        with proxied(cache, connect(f"{NAME}:443")) as (plain, head):
            assert head.startswith("HTTP/1.1 200 ")
            answer, body = get(plain, NAME, path, context)
        assert answer.startswith("HTTP/1.1 200 ")
        assert f"X-Cache: {outcome}" in answer
        assert json.loads(body)["schemaVersion"] == 2
    assert [line["outcome"] for line in cache.log.wait(2, listener="connect")] == ["MISS", "HIT"]
    with cache.client() as client:
        assert client.get(path).outcome == "HIT"


@pytest.mark.parametrize(("name", "host"), [("quay.io", ""), (NAME, "quay.io")], ids=["SNI", "Host"])
def test_another_host_inside(cache: Threaded, upstream: LyingUpstream, name: str, host: str) -> None:
    """CONNECT, SNI and Host name one registry, or the answer is 421 and nobody is asked."""
    context = ssl.create_default_context(cafile=cache.ca_file)
    with proxied(cache, connect(f"{NAME}:443")) as (plain, _):
        answer, _ = get(plain, name, "/v2/", context, host=host)
    assert answer.startswith("HTTP/1.1 421 ")
    assert upstream.requests.select() == []


def test_others_are_tunnelled(tmp_path: Path, upstream: LyingUpstream) -> None:
    """Any other host keeps its own certificate: the bytes are passed on undecrypted, and counted."""
    with Witness(tls=upstream.trust.certify("127.0.0.1")) as witness:
        port = witness.address[1]
        allowed = {"MITM_CACHE_CLIENTS_CONNECT_PORTS": str(port), "MITM_CACHE_UPSTREAM_ALLOW_PRIVATE": "true"}
        configured = in_thread(tmp_path / "data", upstream, environ=allowed)
        with configured as cache, proxied(cache, connect(f"127.0.0.1:{port}")) as (plain, head):
            assert head.startswith("HTTP/1.1 200 ")
            answer, body = get(plain, "127.0.0.1", "/x", upstream.trust.context())
            assert (answer[:13], body) == ("HTTP/1.1 200 ", b"elsewhere")
            [line] = cache.log.wait(1, outcome="TUNNEL")
    assert line["reason"] == f"127.0.0.1:{port}, undecrypted"
    assert line["bytes_out"] > len(body)
    assert witness.requests.count() == 1


@pytest.mark.parametrize(
    "scheme",
    [pytest.param("http", marks=needs_tinyproxy), pytest.param("socks5", marks=needs_microsocks)],
)
def test_tunnels_take_the_upstream_proxy(tmp_path: Path, upstream: LyingUpstream, scheme: str) -> None:
    """A tunnel leaves as a fetch does: by the proxy, which finds the name and wants a password."""
    start = partial(tinyproxy, tmp_path) if scheme == "http" else microsocks
    with Witness(tls=upstream.trust.certify("localhost")) as witness, start(USER, PASSWORD) as proxy:
        port = witness.address[1]
        environ = {
            "MITM_CACHE_CLIENTS_CONNECT_PORTS": str(port),
            "MITM_CACHE_UPSTREAM_PROXY": proxy.url(USER, PASSWORD),
        }
        with in_thread(tmp_path / "data", upstream, environ=environ) as cache:
            with proxied(cache, connect(f"localhost:{port}")) as (plain, head):
                assert head.startswith("HTTP/1.1 200 ")
                _, body = get(plain, "localhost", "/x", upstream.trust.context())
            with proxied(cache, connect(f"127.0.0.1:{port}")) as (_, head):
                assert head.startswith("HTTP/1.1 403 ")
            cache.log.wait(1, outcome="TUNNEL")
            assert PASSWORD not in cache.log.text
        assert body == b"elsewhere"
        assert proxy.heard(f"localhost:{port}")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1", "[::ffff:127.0.0.1]", "100.64.0.1", "0.0.0.0"]
)
def test_no_tunnel_leads_inside(cache: Threaded, address: str) -> None:
    """Loopback, metadata and private addresses are refused; the refusal names the key and the node's NO_PROXY."""
    with proxied(cache, connect(f"{address}:443")) as (plain, head):
        body = plain.recv(4096)
    assert head.startswith("HTTP/1.1 403 ")
    [error] = json.loads(body)["errors"]
    assert error["code"] == "DENIED"
    assert "NO_PROXY" in error["message"]
    assert "upstream.allow_private" in error["message"]
    [line] = cache.log.wait(1, outcome="REFUSED")
    assert (line["listener"], line["method"], line["status"]) == ("connect", "CONNECT", 403)


def test_other_ports(cache: Threaded) -> None:
    """Tunnels lead to the ports of clients.connect_ports only."""
    with proxied(cache, connect("example.com:25")) as (plain, head):
        assert head.startswith("HTTP/1.1 403 ")
        assert b"clients.connect_ports allows 443" in plain.recv(4096)


ODD = ["one number", "hexadecimal", "short", "octal", "path", "user"]
"""Hosts that libcurl would take for others than they look."""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET /v2/ HTTP/1.1\r\nHost: registry.demo\r\n\r\n", 405),
        ("GET http://registry.demo/v2/ HTTP/1.1\r\nHost: registry.demo\r\n\r\n", 405),
        ("CONNECT registry.demo HTTP/1.1\r\nHost: registry.demo\r\n\r\n", 400),
        ("CONNECT :443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("CONNECT a:99999 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("CONNECT a:443\r\n\r\n", 400),
        *(
            (connect(f"{host}:443"), 400)
            for host in ("2130706433", "0x7f.1", "127.1", "0177.0.0.1", "a/b", "a@127.0.0.1")
        ),
        ("CONNECT a:443 HTTP/1.1\r\nX: " + "x" * (64 << 10) + "\r\n", 431),
        ("\x16\x03\x01\x00\x05hello", 400),
    ],
    ids=["origin form", "absolute form", "no port", "no host", "port", "no version", *ODD, "endless", "TLS"],
)
def test_only_connect(cache: Threaded, upstream: LyingUpstream, request_: str, status: int) -> None:
    """Anything but a CONNECT that makes sense is answered and closed; nobody is asked for it."""
    with proxied(cache, request_) as (plain, head):
        assert head.startswith(f"HTTP/1.1 {status} ")
        while plain.recv(1 << 16):
            pass
    assert upstream.requests.select() == []
