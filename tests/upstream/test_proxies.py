"""What leaves by another proxy: real ones, with and without users, and connections that fall back between families."""

import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from mitm_cache.app import App
from mitm_cache.cli.serve import banner
from mitm_cache.config import LISTENERS, load
from mitm_cache.demo.image import generate
from mitm_cache.errors import ConfigError, LoopError, UpstreamError
from mitm_cache.upstream import rules
from mitm_cache.upstream.curl import Answer, Outgoing, Transport
from mitm_cache.upstream.route import Route
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.proxies import Proxy
from mitm_cache.wire.redirect import Origin
from tests.fakes.proxies import (
    PASSWORD,
    USER,
    Running,
    microsocks,
    needs_microsocks,
    needs_stunnel,
    needs_tinyproxy,
    stunnel,
    tinyproxy,
)
from tests.fakes.registry import LyingUpstream, Witness
from tests.fakes.trust import Trust
from tests.serving import in_thread

pytestmark = [needs_tinyproxy, needs_microsocks, needs_stunnel]
NO_DNS = "127.0.0.1:1"

type Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path)


@pytest.fixture
def host(trust: Trust) -> Iterator[Witness]:
    """A host whose name a proxy finds in the hosts file, where this cache does not look."""
    with Witness("localhost", tls=trust.certify("localhost")) as host:
        yield host


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport(agent="test", stopped=lambda: False)
    yield transport
    transport.close()


@pytest.fixture(params=["http", "socks5"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    return partial(tinyproxy, tmp_path) if request.param == "http" else microsocks


class Way:
    """The configuration at work: from keys to an answer."""

    def __init__(self, folder: Path, trust: Trust, transport: Transport) -> None:
        self.folder, self.trust, self.transport = folder, trust, transport

    def route(
        self, url: str, text: str, *, environ: dict[str, str] | None = None, own: tuple[str, int] = ("192.0.2.1", 1)
    ) -> Route:
        file = self.folder / "config.toml"
        file.write_text(text)
        flags = {"upstream.ca_file": str(self.trust.ca_file), "upstream.resolvers": NO_DNS}
        config = load(file=file, environ=environ or {}, flags=flags)
        assert PASSWORD not in repr(config)
        router = rules.router(config, folder=self.folder, listeners=[own], environ={})
        return router.find(Origin.of(url))

    def get(self, url: str, text: str, *, environ: dict[str, str] | None = None) -> Answer:
        request = Outgoing("GET", url, Headers([("Authorization", "Bearer of-the-registry")]))
        return self.transport.perform(request, self.route(url, text, environ=environ))


@pytest.fixture
def way(tmp_path: Path, trust: Trust, transport: Transport) -> Way:
    return Way(tmp_path, trust, transport)


def common(proxy: str) -> str:
    return f'[upstream]\nproxy = "{proxy}"\n'


def test_by_proxy(way: Way, host: Witness, start: Start) -> None:
    """A user and a password open the way; the proxy finds the name, and its log tells of the tunnel."""
    with start(USER, PASSWORD) as proxy:
        assert way.get(host.url("/x"), common(proxy.url(USER, PASSWORD))).body == b"elsewhere"
        assert proxy.heard(f"localhost:{host.port}")
        assert proxy.scheme != "http" or proxy.heard(f"CONNECT localhost:{host.port}")


def test_odd_password(way: Way, host: Witness) -> None:
    """What has a meaning in a URL is percent-encoded in it, and is itself for the proxy."""
    password = "/:@%#? ü"
    with microsocks(USER, password) as proxy:
        assert way.get(host.url("/x"), common(proxy.url(USER, quote(password, safe="")))).body == b"elsewhere"


@pytest.mark.parametrize(("user", "password"), [(None, ""), (USER, "wr0ng"), ("b0b", PASSWORD)])
def test_unauthenticated(way: Way, host: Witness, start: Start, user: str | None, password: str) -> None:
    """Who is not let through reads which key to set, and no password."""
    with start(USER, PASSWORD) as proxy:
        with pytest.raises(UpstreamError, match=r"^upstream\.proxy: the proxy .*USER:PASSWORD@") as caught:
            way.get(host.url(), common(proxy.url(user, password)))
        wanted = "wants a user and a password" if user is None else "does not accept the user and password given"
        assert wanted in caught.value.message
        assert not password or password not in caught.value.message
        with pytest.raises(UpstreamError, match=wanted):
            way.transport.dial(Origin.of(host.url()), way.route(host.url(), common(proxy.url(user, password))))
    assert host.requests.select() == []


def test_clear_text_by_http_proxy(way: Way, tmp_path: Path) -> None:
    """What is not TLS is forwarded, not tunnelled; the proxy's own 407 is no answer of the registry."""
    with Witness("localhost", tls=None) as host, tinyproxy(tmp_path, USER, PASSWORD) as proxy:
        assert way.get(host.url("/x"), common(proxy.url(USER, PASSWORD))).body == b"elsewhere"
        assert proxy.heard("GET http://localhost")
        with pytest.raises(UpstreamError, match="wants a user and a password"):
            way.get(host.url("/x"), common(proxy.url()))


def test_by_https_proxy(way: Way, host: Witness, trust: Trust, tmp_path: Path) -> None:
    """A proxy behind TLS is verified like a registry; tunnels say that they cannot."""
    pem = trust.pem(tmp_path / "proxy-own", "proxy.example")
    with tinyproxy(tmp_path, USER, PASSWORD) as inner, stunnel(tmp_path, pem, inner) as proxy:
        text = common(proxy.url(USER, PASSWORD))
        assert way.get(host.url("/x"), text).body == b"elsewhere"
        assert inner.heard(f"CONNECT localhost:{host.port}")
        with pytest.raises(UpstreamError, match="TLS handshake"):
            way.get(host.url("/x"), text.replace("127.0.0.1", "localhost"))  # which is not in its certificate
        with pytest.raises(UpstreamError, match="no tunnel is made through an https:// proxy"):
            way.transport.dial(Origin.of(host.url()), way.route(host.url(), text))


def test_what_a_proxy_reads(way: Way) -> None:
    """A proxy that tunnels sees its own credentials and none of the registry's; its refusal is told with its status."""
    seen: list[bytes] = []

    def refuse(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            seen.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        refused = pool.submit(refuse, server)
        proxy = f"http://{USER}:{PASSWORD}@127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UpstreamError, match=r"answered 403 to CONNECT q\.example:443$"):
            way.get("https://q.example/v2/", common(proxy))
        refused.result()
    assert b"\r\nProxy-Authorization: Basic " in seen[0]
    assert b"of-the-registry" not in seen[0]


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_no_proxy_there(way: Way, host: Witness, scheme: str) -> None:
    """A proxy that is down is told apart from a registry that is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UpstreamError, match=f"upstream.proxy: the proxy {scheme}://{where} refused") as caught:
            way.get(host.url(), common(f"{scheme}://{USER}:{PASSWORD}@{where}"))
    assert PASSWORD not in caught.value.message


def test_no_host_there(way: Way, start: Start) -> None:
    """What a proxy cannot reach is told with the proxy that could not."""
    with socket.socket() as taken, start() as proxy:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UpstreamError, match=r"upstream\.proxy: the proxy "):
            way.get(f"https://localhost:{taken.getsockname()[1]}", common(proxy.url()))


def test_unknown_proxy(way: Way) -> None:
    """A proxy whose name nobody knows is told with the key."""
    with pytest.raises(UpstreamError, match=r"upstream\.proxy: the proxy's name nowhere\.invalid cannot be resolved"):
        way.route("https://localhost", common("http://nowhere.invalid:3128"))


def test_the_proxy_is_this_cache(way: Way) -> None:
    """A node's own HTTPS_PROXY may be this cache: the error says so and names the variable, or the key."""
    own = ("127.0.0.1", 3128)
    environ = {"HTTPS_PROXY": "http://127.0.0.1:3128"}
    with pytest.raises(LoopError, match=r"^HTTPS_PROXY: .* is this cache itself"):
        way.route("https://localhost", "", environ=environ, own=own)
    with pytest.raises(LoopError, match=r"^upstream\.proxy: .* is this cache itself"):
        way.route("https://localhost", common("http://localhost:3128"), own=own)


def test_no_proxy(way: Way, host: Witness, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """no_proxy goes direct; the NO_PROXY that libcurl would read by itself decides nothing."""
    url = host.url("/x", name="127.0.0.1")
    monkeypatch.setenv("no_proxy", "*")
    with start() as proxy:
        text = common(proxy.url())
        way.get(url, f'{text}no_proxy = ["127.0.0.0/8"]')
        assert not proxy.speaks_of(f":{host.port}")
        way.get(url, text)
        assert proxy.heard(str(host.port))


def test_environment(way: Way, host: Witness, start: Start) -> None:
    """HTTPS_PROXY and NO_PROXY are the defaults, for whoever sets them for every program."""
    url = host.url("/x", name="127.0.0.1")
    with start(USER, PASSWORD) as proxy:
        environ = {"https_proxy": proxy.url(USER, PASSWORD)}
        way.get(url, "", environ={**environ, "NO_PROXY": "127.0.0.1"})
        way.get(url, common(""), environ=environ)
        assert not proxy.speaks_of(f":{host.port}")
        way.get(url, "", environ=environ)
        assert proxy.heard(str(host.port))


def test_two_registries(way: Way, trust: Trust, tmp_path: Path) -> None:
    """Each registry has its own way, or none, whatever the others have."""
    with ExitStack() as stack:
        enter = stack.enter_context
        first, second, third = (enter(Witness("localhost", tls=trust.certify("localhost"))) for _ in range(3))
        one, two = enter(tinyproxy(tmp_path)), enter(microsocks())
        text = common("http://127.0.0.1:1")
        names = {"one.example": "localhost", "two.example": "127.0.0.1"}
        for (name, address), witness, proxy in zip(names.items(), (first, second), (one.url(), two.url()), strict=True):
            text += f'[registries."{name}"]\nurl = "{witness.url(name=address)}"\nproxy = "{proxy}"\n'
        way.get(first.url(), text)
        way.get(second.url(name="127.0.0.1"), text)
        assert one.heard(f"CONNECT localhost:{first.port}")
        assert two.heard(f"127.0.0.1:{second.port}")
        assert not one.speaks_of(f":{second.port}")
        text = f'{common("http://127.0.0.1:1")}[registries."three.example"]\nproxy = "direct"\n'
        way.get(third.url(name="127.0.0.1"), f'{text}url = "{third.url(name="127.0.0.1")}"')


def test_a_pull_by_proxy(tmp_path: Path, start: Start) -> None:
    """Manifest, redirect and blob of a registry all leave by its proxy, while the clients come here."""
    with LyingUpstream(tmp_path) as upstream, start(USER, PASSWORD) as proxy:
        image = generate(sizes=(1000,), platforms=("linux/amd64",))
        upstream.registry.put("team/app", image, "1")
        url = upstream.registry.url(name="127.0.0.1")
        more = f'[registries."other.demo"]\nurl = "{url}"\nproxy = "{proxy.url(USER, PASSWORD)}"\n'
        with in_thread(tmp_path / "data", upstream, more=more) as cache:
            cache.puller(name="other.demo").pull("team/app", "1")
        assert proxy.heard(f"127.0.0.1:{upstream.registry.port}")
        assert proxy.heard(f"127.0.0.1:{upstream.storage.port}")


def test_said_at_the_start(tmp_path: Path) -> None:
    """The banner names the proxy, without who may use it, and every registry that is not verified."""
    more = '[registries."q.example"]\ninsecure = true\n[registries."r.example"]\ninsecure = false\n'
    file = tmp_path / "config.toml"
    file.write_text(f'data_dir = "{tmp_path / "data"}"\n{more}')
    proxy = f"http://{USER}:{PASSWORD}@proxy.example:3128"
    listen = {f"listen.{name}": "127.0.0.1:0" for name in LISTENERS}
    app = App(load(file=file, environ={"HTTPS_PROXY": proxy}, flags=listen))
    try:
        text = "\n".join(banner(app, "192.0.2.1"))
    finally:
        app.close()
    assert "by proxy http://proxy.example:3128 (HTTPS_PROXY)" in text
    assert PASSWORD not in text
    assert "INSECURE     q.example: its TLS is NOT verified" in text
    assert "r.example" not in text


@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("by_proxy", [False, True])
def test_dial(way: Way, start: Start, by_proxy: bool, server_first: bool) -> None:
    """A tunnel's socket is connected, blocking, and has lost no byte, whoever speaks first."""
    with start(USER, PASSWORD) as proxy, socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        route = way.route(url, common(proxy.url(USER, PASSWORD)) if by_proxy else "")
        with way.transport.dial(Origin.of(url), route) as near:
            far, _ = server.accept()
            with far:
                first, second = (far, near) if server_first else (near, far)
                for one, other in ((first, second), (second, first)):
                    one.sendall(b"hello")
                    assert other.recv(5) == b"hello"
                assert near.getblocking()
                near.shutdown(socket.SHUT_WR)
                assert far.recv(1) == b""
        if proxy.scheme != "http":
            assert proxy.heard("127.0.0.1:") if by_proxy else not proxy.speaks_of("127.0.0.1:")


def test_dial_refused(way: Way) -> None:
    """Nobody there is an error of upstream."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UpstreamError, match="refused the connection or is not reachable"):
            way.transport.dial(Origin.of(url), way.route(url, ""))


def test_client_certificate(way: Way, trust: Trust, tmp_path: Path) -> None:
    """A registry that wants to know who asks is shown the certificate; other ports of its host are not."""
    demanding = trust.certify("localhost")
    demanding.verify_mode = ssl.CERT_REQUIRED
    demanding.load_verify_locations(trust.ca_file)
    client = trust.pem(tmp_path / "client", "cache.example")
    with Witness(tls=demanding) as host:
        url = host.url("/x", name="127.0.0.1")
        text = f'[registries."q.example"]\nurl = "{host.url(name="127.0.0.1")}"\n'
        with pytest.raises(UpstreamError):
            way.get(url, text)
        text += f'client_cert = "{client}"\n'
        assert way.get(url, text).body == b"elsewhere"
        assert way.route("https://127.0.0.1:5000", text).client_cert is None


@pytest.mark.parametrize("content", [b"nothing", None])
def test_bad_client_certificate(way: Way, tmp_path: Path, content: bytes | None) -> None:
    """A file that is none is told at the start, with its key."""
    file = tmp_path / "client"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^registries\.q\.example\.client_cert: "):
        way.route("https://127.0.0.1", f'[registries."q.example"]\nclient_cert = "{file}"')


def test_insecure(way: Way, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody's certificate will do where the operator says so, for that port alone; the log says it loudly."""
    (tmp_path / "unknown").mkdir()
    with Witness(tls=Trust(tmp_path / "unknown").certify("other.example")) as host:
        url = host.url("/x", name="127.0.0.1")
        text = f'[registries."q.example"]\nurl = "{host.url(name="127.0.0.1")}"\n'
        with pytest.raises(UpstreamError, match="TLS handshake"):
            way.get(url, text)
        assert "NOT verified" not in caplog.text
        assert way.get(url, f"{text}insecure = true").body == b"elsewhere"
        assert "registries.q.example.insecure: TLS is NOT verified" in caplog.text
        assert not way.route("https://127.0.0.1:5000", f"{text}insecure = true").insecure
        with pytest.raises(UpstreamError, match="TLS handshake"):
            way.get(url, text)  # no connection made without verification is used again


# Addresses that do not answer.


@pytest.fixture
def deaf() -> Iterator[Callable[[socket.socket], None]]:
    """Makes a bound socket swallow connections: its queue is full, and the kernel drops what comes."""
    with ExitStack() as stack:

        def make(server: socket.socket) -> None:
            server.listen(0)
            for _ in range(2):
                waiting = stack.enter_context(socket.socket(server.family))
                waiting.setblocking(False)
                waiting.connect_ex(server.getsockname())

        yield make


@contextmanager
def one_port(*addresses: str) -> Iterator[list[socket.socket]]:
    """A socket at each address, all with one port: where a connection that has just ended has it, another one."""
    while True:
        with ExitStack() as stack:
            families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
            sockets = [stack.enter_context(socket.socket(family)) for family in families]
            try:
                for bound, address in zip(sockets, addresses, strict=True):
                    bound.bind((address, sockets[0].getsockname()[1]))
            except OSError:
                continue
            yield sockets
            return


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(
    ("dead", "alive"),
    [("::1", "127.0.0.1"), ("127.0.0.1", "::1"), ("127.0.0.2", "127.0.0.1")],
)
def test_fall_back(
    transport: Transport, trust: Trust, deaf: Callable[[socket.socket], None], dead: str, alive: str, silent: bool
) -> None:
    """A first address that refuses, or never answers, costs nothing but a moment, whatever its family."""
    with one_port(dead, alive) as (nobody, server):
        server.listen()
        port = server.getsockname()[1]
        if silent:
            deaf(nobody)
        route = Route((dead, alive), trust.ca_file)
        with transport.dial(Origin("https", "both.example", port), route) as connected:
            assert connected.getpeername()[0] == alive


# Text.


def test_password_is_never_shown() -> None:
    """Neither text nor repr of a proxy holds what opens it."""
    proxy = Proxy.of(f"http://{USER}:{PASSWORD}@proxy.example:3128", key="k")
    assert (proxy.user, proxy.password) == (USER, PASSWORD)
    for shown in (str(proxy), repr(proxy)):
        assert USER not in shown
        assert PASSWORD not in shown
