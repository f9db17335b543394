"""Mirrors in the files of containerd, k3s, podman and dockerd: what each client would ask, and what comes of it."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.doctor.finding import Finding, Status
from mitm_cache.doctor.node import Node, look
from mitm_cache.doctor.node_mirrors import check_mirror
from mitm_cache.doctor.node_names import check_door, check_ways
from mitm_cache.doctor.probes import Way
from mitm_cache.doctor.scene import Scene
from mitm_cache.registries import Known, Registry
from tests.doctor.nodes import CACHE, HUB, QUAY, put, scene, worst
from tests.doctor.servers import answering
from tests.fakes.registry import LyingUpstream
from tests.serving import Threaded, in_thread

HERE = "127.0.0.1"
DEFAULT = "/etc/containerd/certs.d/_default/hosts.toml"
CONFIG = "/etc/containerd/config.toml"
CONF = "/etc/containers/registries.conf"
DROP_IN = "/etc/containers/registries.conf.d/cache.conf"
K3S = "/etc/rancher/k3s/registries.yaml"
KNOWN = Known([HUB, QUAY, Registry("reg.example:5001", "reg.example:5001")])
IMAGE = "quay.io/team/app:1"


def machine(root: Path, *asked: str, caches: tuple[str, ...] = (CACHE,), known: Known = KNOWN) -> Scene:
    return scene(root, known=known, asked=asked or (IMAGE,), caches=caches)


def asked(root: Path, *images: str) -> list[str]:
    """The URLs that the clients of a node would ask for some images."""
    here = machine(root, *images)
    images_ = here.images()
    return [mirror.url for mirror in look(here).mirrors if mirror.wanted in images_]


def hosts_toml(base: str, *more: str) -> str:
    return "\n".join([f'[host."{base}"]', 'capabilities = ["pull", "resolve"]', *more, ""])


@pytest.mark.parametrize(
    ("server", "more", "url"),
    [
        ("http://10.0.0.5:5000", "", "http://10.0.0.5:5000/v2/team/app/manifests/1?ns=quay.io"),
        ("10.0.0.5:5000", "", "https://10.0.0.5:5000/v2/team/app/manifests/1?ns=quay.io"),
        ("http://10.0.0.5:5000/v2/", "", "http://10.0.0.5:5000/v2/team/app/manifests/1?ns=quay.io"),
        ("http://10.0.0.5/a", "", "http://10.0.0.5/a/v2/team/app/manifests/1?ns=quay.io"),
        ("http://10.0.0.5/a", "override_path = true", "http://10.0.0.5/a/team/app/manifests/1?ns=quay.io"),
        ("http://10.0.0.5:5000", 'capabilities = ["push"]', ""),
        ("https://quay.io", "", ""),
        ("http://10.0.0.5:port", "", ""),
    ],
)
def test_containerd_s_form(tmp_path: Path, server: str, more: str, url: str) -> None:
    """The registry by ?ns=, `/v2` where containerd adds it; the registry's own host is no mirror."""
    put(tmp_path, DEFAULT, f'[host."{server}"]\n{more}\n')
    assert asked(tmp_path) == ([url] if url else [])


def test_containerd_s_folders(tmp_path: Path) -> None:
    """A registry's own folder comes before `_default`, whatever is in it; `server` is asked at last."""
    put(tmp_path, DEFAULT, hosts_toml("http://10.0.0.5:5000"))
    put(tmp_path, "/etc/containerd/certs.d/quay.io/hosts.toml", 'server = "http://10.0.0.6:5000"\n')
    put(tmp_path, "/etc/containerd/certs.d/reg.example_5001_/ca.crt", "")
    assert asked(tmp_path, IMAGE, "docker.io/library/x:1", "reg.example:5001/a:1") == [
        "http://10.0.0.6:5000/v2/team/app/manifests/1?ns=quay.io",
        "http://10.0.0.5:5000/v2/library/x/manifests/1?ns=docker.io",
    ]


@pytest.mark.parametrize("plugin", ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"])
def test_config_path(tmp_path: Path, plugin: str) -> None:
    """The folder is the one that containerd's configuration names, in an imported file too; without one CRI is deaf."""
    put(tmp_path, DEFAULT, hosts_toml("http://10.0.0.5:5000"))
    put(tmp_path, CONFIG, 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    found = worst(look(machine(tmp_path)).told)
    assert (found.status, found.subject) == (Status.WARN, str(tmp_path / CONFIG[1:]))
    assert 'config_path = "/etc/containerd/certs.d"' in found.cure
    put(tmp_path, "/srv/certs/_default/hosts.toml", hosts_toml("http://10.0.0.7:5000"))
    put(tmp_path, "/etc/containerd/conf.d/a.toml", f'[plugins."{plugin}".registry]\nconfig_path = "/none:/srv/certs"\n')
    facts = look(machine(tmp_path))
    assert facts.told == ()
    assert {mirror.host for mirror in facts.mirrors} == {"10.0.0.7"}
    put(tmp_path, CONFIG, 'disabled_plugins = ["cri"]\n')  # as Docker's package has it: for ctr and nerdctl alone
    assert look(machine(tmp_path)).told == ()


TABLE = '[[registry]]\nlocation = "{0}"\n[[registry.mirror]]\nlocation = "{1}"\ninsecure = {2}\n'


def test_containers_form(tmp_path: Path) -> None:
    """The mirror's location stands for the longest prefix; the last file's table counts; insecure is clear text."""
    put(tmp_path, CONF, TABLE.format("quay.io", "10.0.0.9:5000/old", "true"))
    put(tmp_path, DROP_IN, TABLE.format("quay.io", f"{CACHE}:5000/quay.io", "true"))
    assert asked(tmp_path) == ["http://10.0.0.5:5000/v2/quay.io/team/app/manifests/1"]
    put(tmp_path, CONF, TABLE.format("quay.io/team", f"{CACHE}:5000/team", "false"))
    assert asked(tmp_path) == ["https://10.0.0.5:5000/v2/team/app/manifests/1"]
    assert asked(tmp_path, "quay.io/teams/app:1") == ["http://10.0.0.5:5000/v2/quay.io/teams/app/manifests/1"]
    assert asked(tmp_path, "docker.io/library/x:1") == []


@pytest.mark.parametrize("prefix", ["quay.io", "*.io"])
def test_another_location(tmp_path: Path, prefix: str) -> None:
    """A prefix whose location is the cache leads there too."""
    put(tmp_path, CONF, f'[[registry]]\nprefix = "{prefix}"\nlocation = "{CACHE}:5000/quay.io"\ninsecure = true\n')
    assert asked(tmp_path) == ["http://10.0.0.5:5000/v2/quay.io/team/app/manifests/1"]


def test_rancher_s_form(tmp_path: Path) -> None:
    """k3s and RKE2: a registry's own endpoints, else those for all; what rewrites names is told of."""
    mirrors = f'mirrors:\n  "*":\n    endpoint: ["http://{CACHE}:5000"]\n'
    put(tmp_path, K3S, mirrors)
    assert asked(tmp_path) == ["http://10.0.0.5:5000/v2/team/app/manifests/1?ns=quay.io"]
    put(tmp_path, K3S, mirrors + "  quay.io:\n    endpoint:\n      - https://10.0.0.6/v2/q\n")
    assert asked(tmp_path) == ["https://10.0.0.6/v2/q/team/app/manifests/1?ns=quay.io"]
    put(tmp_path, K3S, mirrors + '  quay.io:\n    endpoint: [http://10.0.0.6]\n    rewrite: {"^a": "b"}\n')
    assert asked(tmp_path) == []
    assert worst(look(machine(tmp_path)).told).status is Status.SKIP


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (DEFAULT, "[host", "is not TOML"),
        (CONF, "=", "is not TOML"),
        (K3S, "a: [", "is not YAML"),
        (K3S, "[]", "mapping"),
    ],
)
def test_broken_files(tmp_path: Path, file: str, text: str, words: str) -> None:
    """A file that its client cannot read fails once, by its name."""
    path = put(tmp_path, file, text)
    (found,) = [each for each in check_ways(look(machine(tmp_path))) if each.subject == str(path)]
    assert found.status is Status.FAIL
    assert words in found.words
    path.write_bytes(b"\xff")
    assert "UTF-8" in worst(look(machine(tmp_path)).told).words


def test_the_cache_is_found(tmp_path: Path) -> None:
    """Without --cache it is where mirrors lead for most registries; its ways are those that lead there."""
    put(tmp_path, DEFAULT, hosts_toml(f"http://{CACHE}:5000"))
    put(tmp_path, "/etc/containerd/certs.d/docker.io/hosts.toml", hosts_toml("http://10.0.0.9:5000"))
    facts = look(machine(tmp_path, caches=()))
    assert facts.caches == (CACHE,)
    assert facts.ways == (Way("mirror", CACHE, 5000),)
    assert (facts.mirrored("quay.io"), facts.mirrored("docker.io")) == (True, False)
    assert (facts.mirrored("quay.io", "containerd"), facts.mirrored("quay.io", "dockerd")) == (True, False)


# What comes of it.

DEMO = Known([Registry("registry.demo", "registry.demo")])
DEMO_IMAGE = "registry.demo/team/app:1"


@pytest.fixture
def image() -> Image:
    return generate(sizes=[KIB], platforms=["linux/amd64"])


@pytest.fixture
def cache(tmp_path: Path, image: Image) -> Iterator[Threaded]:
    with LyingUpstream(tmp_path) as upstream:
        upstream.registry.put("team/app", image, "1")
        with in_thread(tmp_path / "data", upstream, environ={"MITM_CACHE_NAMES": HERE}) as cache:
            yield cache


def write(root: Path, client: str, port: int, scheme: str = "http", more: str = "") -> Path:
    """The one line that leads a client to a mirror at a port of this machine."""
    if client == "podman":
        table = TABLE.format("registry.demo", f"{HERE}:{port}/registry.demo", str(scheme == "http").lower())
        return put(root, DROP_IN, table)
    if client == "k3s":
        return put(root, K3S, f'mirrors: {{"*": {{endpoint: ["{scheme}://{HERE}:{port}"]}}}}\n')
    return put(root, DEFAULT, hosts_toml(f"{scheme}://{HERE}:{port}", more))


def check(here: Scene) -> tuple[Node, Finding]:
    facts = look(here)
    (mirror,) = facts.mirrors
    found = list(check_mirror(here, facts, mirror))
    return facts, worst(found)


@pytest.mark.parametrize("client", ["containerd", "podman", "k3s"])
def test_through(tmp_path: Path, cache: Threaded, image: Image, client: str) -> None:
    """In each client's own form the digest comes, and X-Cache with it; nobody has told where the cache is."""
    path = write(tmp_path, client, cache.address("mirror")[1])
    facts, found = check(machine(tmp_path, DEMO_IMAGE, caches=(), known=DEMO))
    assert found.status is Status.OK, found
    assert image.index.digest[:19] in found.words
    assert "X-Cache " in found.words
    assert client in found.subject
    assert facts.mirrors[0].source == path


@pytest.mark.parametrize("client", ["containerd", "podman", "k3s"])
def test_another_server(tmp_path: Path, client: str) -> None:
    """What answers there and is not the cache: the line to write, and in which file."""
    with answering(200) as port:
        path = write(tmp_path, client, port)
        _, found = check(machine(tmp_path, DEMO_IMAGE, known=DEMO))
        _, guessed = check(machine(tmp_path, DEMO_IMAGE, caches=(), known=DEMO))
    assert found.status is guessed.status is Status.FAIL
    assert "without X-Cache" in found.words
    assert str(path) in found.cure
    assert f"{CACHE}:5000" in found.cure
    assert "CACHE:5000" in guessed.cure  # its own address is not the cure


@pytest.mark.parametrize("client", ["containerd", "podman", "k3s"])
def test_closed(tmp_path: Path, client: str) -> None:
    """A closed port: of the cache its listener is named with the file; of another address, the line to write."""
    with answering() as port:
        pass
    path = write(tmp_path, client, port)
    here = machine(tmp_path, DEMO_IMAGE, caches=(HERE,), known=DEMO)
    facts, found = check(here)
    assert found.status is Status.FAIL
    assert "see the listener (doors)" in found.cure
    (door,) = check_door(here, facts, "mirror")
    assert (door.status, door.subject) == (Status.FAIL, f"mirror {HERE}:{port}")
    assert str(path) in door.words
    assert "listen.mirror" in door.cure
    _, found = check(machine(tmp_path, DEMO_IMAGE, known=DEMO))
    assert "the address is not the cache's" in found.words
    assert str(path) in found.cure
    assert f"{CACHE}:5000" in found.cure


def test_two_mirrors(tmp_path: Path) -> None:
    """Each address is knocked at by the port that leads there, and not by another's."""
    put(tmp_path, DEFAULT, hosts_toml("http://127.0.0.1:1") + hosts_toml("http://127.0.0.2:2"))
    here = machine(tmp_path, caches=("127.0.0.1", "127.0.0.2"))
    subjects = [each.subject for each in check_door(here, look(here), "mirror")]
    assert subjects == ["mirror 127.0.0.1:1", "mirror 127.0.0.2:2"]


def test_tls(tmp_path: Path, cache: Threaded) -> None:
    """By https the client must believe the mirror: by its own CAs, or unverified."""
    port = cache.address("mirror")[1]
    here = machine(tmp_path, DEMO_IMAGE, caches=(HERE,), known=DEMO)
    path = write(tmp_path, "containerd", port, "https")
    _, found = check(here)
    assert (found.status, found.check) == (Status.FAIL, "trust")
    assert found.cure == f'[host."http://{HERE}:5000"] in {path}'
    ca = next((tmp_path / "data").rglob("ca.crt"))
    put(tmp_path, "/etc/cache.pem", ca.read_text())
    for more in ('ca = "/etc/cache.pem"', "skip_verify = true"):
        write(tmp_path, "containerd", port, "https", more)
        assert check(here)[1].status is Status.OK, more
    (tmp_path / "etc/cache.pem").unlink()
    write(tmp_path, "containerd", port, "https", 'ca = "/etc/cache.pem"')
    assert "cannot be read" in check(here)[1].words


def test_no_certificate(tmp_path: Path) -> None:
    """A cache whose own names do not have the address that is asked for: either side can be put right."""
    with LyingUpstream(tmp_path) as upstream, in_thread(tmp_path / "data", upstream) as cache:
        write(tmp_path, "containerd", cache.address("mirror")[1], "https")
        _, found = check(machine(tmp_path, DEMO_IMAGE, caches=(HERE,), known=DEMO))
    assert found.status is Status.FAIL
    assert f'names = ["{HERE}"] on the cache' in found.cure


def test_insecure_by_tls_alone(tmp_path: Path) -> None:
    """podman's insecure is TLS unverified where no clear text is spoken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    fields = {"X-Cache": "HIT", "Docker-Content-Digest": "sha256:0123456789abcdef"}
    with answering(200, fields, tls=context) as port:
        write(tmp_path, "podman", port)
        here = machine(tmp_path, DEMO_IMAGE, caches=(HERE,), known=DEMO)
        assert check(here)[1].status is Status.OK


def self_signed(root: Path) -> tuple[Path, Path]:
    import trustme

    ca = trustme.CA()
    leaf = ca.issue_cert(HERE)
    chain, key = root / "chain.pem", root / "key.pem"
    leaf.private_key_pem.write_to_path(key)
    chain.write_bytes(leaf.cert_chain_pems[0].bytes())
    return chain, key
