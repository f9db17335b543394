"""The mirror and the cache's own names, end to end: right bytes by every form, and lists of what is here."""

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mitm_cache.demo.access import Access
from mitm_cache.demo.image import INDEX, KIB, Image, generate
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream
from tests.proxy.raw import Answer, Raw, dial, request
from tests.serving import Threaded, in_thread

HUB, QUAY, GHCR = "registry-1.docker.io", "quay.io", "ghcr.io"
OWN = "cache.lan"
ACCEPT = "Accept: */*"


@dataclass(frozen=True, slots=True)
class Scene:
    cache: Threaded
    upstreams: dict[str, LyingUpstream]
    images: dict[str, Image]

    def ask(self, listener: str, target: str, host: str, *more: str, method: str = "GET") -> Answer:
        name = OWN if listener == "tls" else host
        with dial(self.cache, listener, name=name) as wire:
            wire.send(request(target, ACCEPT, *more, method=method, host=host))
            return wire.answer(method)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("mirror")
    names = {HUB: "docker", QUAY: "quay", GHCR: "ghcr"}
    folders = {host: directory / name for host, name in names.items()}
    for folder in folders.values():
        folder.mkdir()
    with (
        LyingUpstream(folders[HUB], name=HUB) as hub,
        LyingUpstream(folders[QUAY], name=QUAY, storage_name="cdn.quay.demo") as quay,
        LyingUpstream(folders[GHCR], name=GHCR, storage_name="cdn.ghcr.demo") as ghcr,
        in_thread(directory / "data", hub, quay, more=_prefixed(ghcr), environ={"MITM_CACHE_NAMES": OWN}) as cache,
    ):
        upstreams = {HUB: hub, QUAY: quay, GHCR: ghcr}
        images = {}
        for host, upstream in upstreams.items():
            images[host] = generate(sizes=[3 * KIB], seed=host)
            upstream.registry.put("library/app", images[host], "1")
        yield Scene(cache, upstreams, images)


def _prefixed(upstream: LyingUpstream) -> str:
    return (
        f'[registries."{upstream.registry.name}"]\nurl = "{upstream.registry.url()}"\nresolve = "127.0.0.1"\n'
        f'ca_file = "{upstream.ca_file}"\nprefix = "gh"\n'
    )


@pytest.fixture
def scene(started: Scene) -> Iterator[Scene]:
    """The scene with nothing noted so far, and without lies afterwards."""
    for upstream in started.upstreams.values():
        upstream.requests.clear()
    yield started
    for upstream in started.upstreams.values():
        upstream.truth()
        upstream.registry.access = Access()


FORMS = [
    ("mirror", "/v2/library/app/manifests/1", "localhost:5000", HUB),
    ("mirror", "/v2/app/manifests/1", "localhost:5000", HUB),
    ("mirror", "/v2/app/manifests/1?ns=docker.io", "localhost", HUB),
    ("mirror", "/v2/docker.io/app/manifests/1", "localhost", HUB),
    ("mirror", "/v2/library/app/manifests/1?ns=quay.io", "localhost", QUAY),
    ("mirror", "/v2/quay.io/library/app/manifests/1", "localhost", QUAY),
    ("mirror", "/v2/library/app/manifests/1", "quay.io", QUAY),
    ("mirror", "/v2/library/app/manifests/1", "quay.io:5001", QUAY),
    ("mirror", "/v2/library/app/manifests/1?ns=ghcr.io", "quay.io", GHCR),
    ("mirror", "/v2/gh/library/app/manifests/1", "localhost", GHCR),
    ("clear", "/v2/gh/library/app/manifests/1", OWN, GHCR),
    ("clear", "/v2/quay.io/library/app/manifests/1", "127.0.0.1", QUAY),
    ("clear", "/v2/library/app/manifests/1", "quay.io", QUAY),
    ("tls", "/v2/quay.io/library/app/manifests/1", OWN, QUAY),
    ("tls", "/v2/app/manifests/1", f"{OWN}:8443", HUB),
]


@pytest.mark.parametrize(("listener", "target", "host", "registry"), FORMS)
def test_the_same_tag_of_three_registries(scene: Scene, listener: str, target: str, host: str, registry: str) -> None:
    """One repository and tag, other content in each registry: whoever is meant answers, and nobody else is asked."""
    answers = [scene.ask(listener, target, host) for _ in range(2)]
    for answer in answers:
        assert answer.status == 200, answer.body
        assert answer.body == scene.images[registry].index.body
    asked = [name for name, upstream in scene.upstreams.items() if len(upstream.requests)]
    assert asked == [registry]
    if host != QUAY or listener == "mirror":
        name = "docker.io" if registry == HUB else registry
        assert answers[0].headers["oci-namespace"] == name
    digest = scene.images[registry].index.digest
    answer = scene.ask(listener, target.replace("/1", f"/{digest}"), host)
    assert (answer.body, answer.headers["x-cache"]) == (scene.images[registry].index.body, "HIT")


@pytest.mark.parametrize(("listener", "host"), [("mirror", "localhost"), ("clear", OWN), ("tls", OWN)])
def test_an_unknown_registry_is_nobody(scene: Scene, listener: str, host: str) -> None:
    """Closed world: refused, never dialled, never answered from another registry."""
    answer = scene.ask(listener, "/v2/library/app/manifests/1?ns=evil.example", host)
    assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (404, "NAME_UNKNOWN")
    assert not [name for name, upstream in scene.upstreams.items() if len(upstream.requests)]


def test_mirrors_want_no_login(scene: Scene) -> None:
    """A ping is answered by the cache, whatever the registry wants, and a push is not taken."""
    for target in ("/v2/", "/v2/?ns=quay.io", "/v2/quay.io/"):
        assert scene.ask("mirror", target, "localhost").status == 200
    assert scene.ask("clear", "/v2/", OWN).headers["x-cache"] == "LOCAL"
    assert scene.ask("clear", "/v2/quay.io/library/app/blobs/uploads/", OWN, method="POST").status == 405
    assert not [name for name, upstream in scene.upstreams.items() if len(upstream.requests)]


def test_tls_on_the_mirror_port(scene: Scene) -> None:
    """The same port speaks TLS, by the cache's own names."""
    context = ssl.create_default_context(cafile=scene.cache.ca_file)
    with Raw(scene.cache.address("mirror"), tls=context, name=OWN) as wire:
        wire.send(request("/v2/quay.io/library/app/manifests/1", ACCEPT, host=f"{OWN}:5000"))
        assert wire.answer().body == scene.images[QUAY].index.body
        wire.send(request("/v2/quay.io/library/app/manifests/1", ACCEPT, host="other.lan"))
        assert wire.answer().status == 421


@pytest.mark.parametrize("listener", ["tls", "mirror"])
def test_tls_by_address(tmp_path: Path, listener: str) -> None:
    """An address among the names has a certificate for clients that give no server name (RFC 6066, 3)."""
    with LyingUpstream(tmp_path, name=HUB) as hub:
        hub.registry.put("library/app", generate(sizes=[KIB]), "1")
        with in_thread(tmp_path / "data", hub, environ={"MITM_CACHE_NAMES": "127.0.0.1"}) as cache:
            context = ssl.create_default_context(cafile=cache.ca_file)
            with Raw(cache.address(listener), tls=context, name="127.0.0.1") as wire:
                wire.send(request("/v2/app/manifests/1", ACCEPT, host="127.0.0.1:5000"))
                assert wire.answer().status == 200
                wire.send(request("/v2/app/manifests/1", ACCEPT, host="quay.io"))
                assert wire.answer().status == 421


# --- lists -------------------------------------------------------------------------------------------------------


def tags(answer: Answer) -> list[str]:
    return list(json.loads(answer.body)["tags"])


def test_tags(scene: Scene) -> None:
    """Under the name that the client uses: upstream's list, and without upstream what is cached."""
    image = scene.images[QUAY]
    scene.upstreams[QUAY].registry.put("team/lists", image, "1", "2", "3")
    target = "/v2/quay.io/team/lists/tags/list"
    assert scene.ask("mirror", target.replace("tags/list", "manifests/2"), "localhost").status == 200
    answer = scene.ask("mirror", target, "localhost")
    assert json.loads(answer.body) == {"name": "quay.io/team/lists", "tags": ["1", "2", "3"]}
    page = scene.ask("mirror", f"{target}?n=2", "localhost")
    assert tags(page) == ["1", "2"]
    assert page.headers["link"] == '</v2/quay.io/team/lists/tags/list?n=2&last=2>; rel="next"'
    assert tags(scene.ask("mirror", f"{target}?n=2&last=2", "localhost")) == ["3"]
    spaced = scene.ask("mirror", "/v2/team/lists/tags/list?n=2&ns=quay.io", "localhost")
    assert spaced.headers["link"] == '</v2/team/lists/tags/list?n=2&last=2&ns=quay.io>; rel="next"'
    scene.upstreams[QUAY].lie("tags", faults.refuse(503))
    answer = scene.ask("mirror", target, "localhost")
    assert (tags(answer), answer.headers["x-cache"]) == (["2"], "LOCAL")


@pytest.mark.parametrize("link", ['<http://[x?n=2&last=2#y>; rel="next"', "</v2/?n=2&last=2>; rel=next"])
def test_any_address_of_the_next_page(scene: Scene, link: str) -> None:
    """Whatever address upstream gives its next page, its query is what counts."""
    scene.upstreams[QUAY].registry.put("team/pages", scene.images[QUAY], "1", "2")
    scene.upstreams[QUAY].lie("tags", faults.header("Link", link))
    answer = scene.ask("mirror", "/v2/quay.io/team/pages/tags/list?n=2", "localhost")
    assert answer.headers["link"] == '</v2/quay.io/team/pages/tags/list?n=2&last=2>; rel="next"'


def test_the_namespace_is_the_cache_s_word(scene: Scene) -> None:
    """A registry cannot say that its answer is another one's."""
    scene.upstreams[QUAY].lie("/v2/*", faults.header("OCI-Namespace", GHCR))
    target = "/v2/quay.io/team/nowhere/manifests/1"
    with dial(scene.cache, "mirror") as wire:
        wire.send(request(target, ACCEPT, host="localhost"))
        assert wire.socket.recv(1 << 16).lower().count(b"oci-namespace: quay.io\r\n") == 1
        wire.send(request(target, ACCEPT, host="localhost"))
        assert GHCR.encode() not in wire.socket.recv(1 << 16)


def test_tags_of_what_is_not_here(scene: Scene) -> None:
    """Upstream's own word where nothing is cached."""
    assert scene.ask("mirror", "/v2/quay.io/team/none/tags/list", "localhost").status == 404
    scene.upstreams[QUAY].lie("tags", faults.refuse(503))
    assert scene.ask("mirror", "/v2/quay.io/team/none/tags/list", "localhost").status == 503
    assert scene.ask("mirror", "/v2/quay.io/team/none/tags/list?n=x", "localhost").status == 400
    scene.upstreams[QUAY].truth()
    scene.upstreams[QUAY].lie("tags", faults.body(b"<html>", "text/html"))
    assert scene.ask("mirror", "/v2/quay.io/team/none/tags/list", "localhost").status == 502


def test_tags_of_a_private_repository(scene: Scene) -> None:
    """What one client has pulled is listed for that one: another sees what upstream tells it."""
    upstream = scene.upstreams[GHCR]
    upstream.registry.put("secret/app", scene.images[GHCR], "1")
    upstream.registry.access = Access(scheme="basic", users={"ann": "secret"}, private={"secret/app": {"ann"}})
    ann = "Authorization: Basic YW5uOnNlY3JldA=="
    assert scene.ask("mirror", "/v2/gh/secret/app/manifests/1", "localhost", ann).status == 200
    upstream.lie("tags", faults.refuse(503))
    assert tags(scene.ask("mirror", "/v2/gh/secret/app/tags/list", "localhost", ann)) == ["1"]
    assert scene.ask("mirror", "/v2/gh/secret/app/tags/list", "localhost").status == 503
    listed = json.loads(scene.ask("mirror", "/v2/_catalog", "localhost", ann).body)["repositories"]
    assert "ghcr.io/secret/app" in listed
    upstream.requests.clear()
    listed = json.loads(scene.ask("mirror", "/v2/_catalog", "localhost").body)["repositories"]
    assert "ghcr.io/secret/app" not in listed
    assert len(upstream.requests) == 0  # a list asks nobody for rights


@pytest.mark.parametrize(
    ("target", "following"),
    [("/v2/quay.io/{}", "/v2/quay.io/{}?last=x&n=1"), ("/v2/{}?ns=quay.io", "/v2/{}?last=x&n=1&ns=quay.io")],
)
@pytest.mark.parametrize("address", ["", "https://quay.io"])
def test_the_next_page_of_referrers(scene: Scene, target: str, following: str, address: str) -> None:
    """It is asked of the same registry, which a registry's own address does not name at a mirror."""
    place = f"library/app/referrers/{scene.images[QUAY].index.digest}"
    link = {"Link": f'<{address}/v2/{place}?last=x&n=1>; rel="next"'}
    scene.upstreams[QUAY].lie(f"/v2/{place}", faults.body(b'{"manifests":[]}', INDEX, link))
    answer = scene.ask("mirror", target.format(place), "localhost")
    assert answer.headers["link"] == f'<{following.format(place)}>; rel="next"'


def test_catalog(scene: Scene) -> None:
    """What is cached and may be seen: Docker Hub's by their bare names, others with their registry, page by page."""
    for target in ("/v2/app/manifests/1", "/v2/quay.io/library/app/manifests/1", "/v2/gh/library/app/manifests/1"):
        scene.ask("mirror", target, "localhost")
    everything = json.loads(scene.ask("mirror", "/v2/_catalog", "localhost").body)["repositories"]
    assert everything == sorted(everything)
    assert {"library/app", "quay.io/library/app", "ghcr.io/library/app"} <= set(everything)
    pages, target = [], "/v2/_catalog?n=1"
    while target:
        answer = scene.ask("mirror", target, "localhost")
        pages += json.loads(answer.body)["repositories"]
        target = answer.headers.get("link", "").partition(">")[0].lstrip("<")
    assert pages == everything
    of_one = json.loads(scene.ask("mirror", "/v2/_catalog?ns=quay.io", "localhost").body)["repositories"]
    assert "library/app" in of_one
    assert not [name for name in of_one if name.startswith(("quay.io/", "ghcr.io/"))]


# --- the cache's own pages -----------------------------------------------------------------------------------------


PAGES = [
    ("clear", "/", OWN),
    ("clear", "/ca.crt?x=1", "127.0.0.1"),
    ("mirror", "/setup.sh", "anything.lan:5000"),
    ("tls", "/", OWN),
    ("connect", "/ca.der", "127.0.0.1:3128"),
    ("connect", f"http://{OWN}/ca.crt", OWN),
]


@pytest.mark.parametrize(("listener", "line", "host"), PAGES)
def test_own_pages(scene: Scene, listener: str, line: str, host: str) -> None:
    """By the cache's own names and address each listener shows what a node needs, and closes."""
    with dial(scene.cache, listener, name=OWN if listener == "tls" else host) as wire:
        wire.send(request(line, host=host))
        answer = wire.answer()
        assert (answer.status, answer.headers["x-cache"]) == (200, "LOCAL")
        assert wire.rest() == b""
    if "ca.crt" in line:
        assert answer.body == scene.cache.ca_file.read_bytes()
    [*_, event] = scene.cache.log.wait(request_id=answer.headers["x-request-id"])
    assert (event["outcome"], event["registry"], event["bytes_out"]) == ("LOCAL", "", len(answer.body))


def test_pages_behind_connect(scene: Scene) -> None:
    """With HTTPS_PROXY alone a node reaches them by the cache's own name, verified."""
    with Raw(scene.cache.address("connect")) as wire:
        wire.send(f"CONNECT {OWN}:443 HTTP/1.1\r\nHost: {OWN}:443\r\n\r\n".encode())
        assert wire.head()[0] == 200
        wire.socket = ssl.create_default_context(cafile=scene.cache.ca_file).wrap_socket(
            wire.socket, server_hostname=OWN
        )
        wire.send(request("/healthz", host=OWN))
        assert wire.answer().status == 200


@pytest.mark.parametrize(
    ("listener", "line", "host"),
    [("connect", "/v2/", "quay.io"), ("connect", "http://quay.io/v2/", "quay.io"), ("connect", "/", "other.lan")],
)
def test_the_connect_listener_serves_no_registry(scene: Scene, listener: str, line: str, host: str) -> None:
    """Its own name apart, it takes CONNECT only."""
    with Raw(scene.cache.address(listener)) as wire:
        wire.send(request(line, host=host))
        assert wire.answer().status == 405
