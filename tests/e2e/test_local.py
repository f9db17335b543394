"""Real clients push to the cache's own registry and pull from it: by TLS, in clear text on its own host, by a prefix.

What is pushed is what is pulled, nothing of it goes anywhere else, and who may not push is told so.
"""

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import pytest

from mitm_cache.demo.image import MANIFEST
from tests.e2e.conftest import Serve
from tests.e2e.test_airgap import run as command
from tests.e2e.test_logins import REFUSED as REFUSED_ELSEWHERE
from tests.e2e.test_pull import AMD64, CLIENTS, CREDS, NEEDS
from tests.lab import images, network
from tests.lab.asker import Question, Reply, ask
from tests.lab.clients import Client
from tests.lab.docker import Docker
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.process import LabError, wait_until
from tests.lab.product import MIRROR, OWN, TLS, Event, Product, Section
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, needs_root(), NEEDS["skopeo"]]

NAME, LOCALHOST, PREFIX = "registry.local", f"localhost:{MIRROR}", f"{OWN}:{MIRROR}/mine"
LOOPBACK = "127.0.0.1"
INSECURE = (LOCALHOST, f"{OWN}:{MIRROR}")
CONTAINERD = "containerd/certs.d"
REFUSED = f"{REFUSED_ELSEWHERE}|authorization failed"
"""containerd's words for a token that is not enough too."""
ANN, WRONG = "ann:right-horse", "ann:wrong-horse"
MIB = images.MIB
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
SIGNATURE = "application/vnd.example.signature"


@dataclass(frozen=True)
class Way:
    """How clients come to the local registry: from which host, by which name, and how a plain request does so."""

    host: Callable[[Lab], Host]
    name: str
    address: str
    port: int
    prefix: str = ""

    def ask(self, lab: Lab, path: str, *, method: str = "GET") -> Reply:
        """Ask for something below the registry's own path."""
        host, tls = self.name.partition("/")[0], self.port == TLS
        question = Question(host, self.address, self.port, f"/v2/{self.prefix}{path}", tls=tls, method=method)
        [reply] = ask(self.host(lab), [question])
        return reply


WAYS = {
    "tls": Way(lambda lab: lab.node, NAME, network.CACHE, TLS),
    "localhost": Way(lambda lab: lab.cache, LOCALHOST, LOOPBACK, MIRROR),
    "prefix": Way(lambda lab: lab.node, PREFIX, network.CACHE, MIRROR, "mine/"),
}
TLS_WAY = WAYS["tls"]


def sections(**more: Section) -> Mapping[str, Section]:
    """The product's settings: a mirror listener on the cache's loopback too."""
    listen = {"mirror": [f"{network.CACHE}:{MIRROR}", f"{LOOPBACK}:{MIRROR}"]}
    return {"local": {"names": [NAME, "localhost", "mine/"]}, "listen": listen} | more


def _hosts_toml(server: str, *, push: bool = True) -> str:
    able = json.dumps(["pull", "resolve", *(["push"] if push else [])])
    return f'server = "{server}"\n[host."{server}"]\n  capabilities = {able}\n'


@pytest.fixture(name="place")
def prepared(lab: Lab) -> Iterator[Lab]:
    """A lab whose node knows the local names, and whose clients take the ones in clear text for insecure."""
    hosts = lab.node.etc / "hosts"
    before = hosts.read_text()
    hosts.write_text(f"{before}{network.CACHE} {NAME} {OWN}\n")
    for host in (lab.node, lab.cache):
        file = host.etc / "containers" / "registries.conf.d" / "local.conf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f'[[registry]]\nlocation = "{name}"\ninsecure = true\n' for name in INSECURE))
    yield lab
    hosts.write_text(before)
    for host in (lab.node, lab.cache):
        (host.etc / "containers" / "registries.conf.d" / "local.conf").unlink()
        shutil.rmtree(host.etc / CONTAINERD / f"{OWN}:{MIRROR}", ignore_errors=True)
        shutil.rmtree(host.etc / CONTAINERD / LOCALHOST, ignore_errors=True)


@pytest.fixture
def product(place: Lab, serve: Serve) -> Product:
    """A product with a local registry that everybody may push to."""
    return start(place, serve)


def start(lab: Lab, serve: Serve, **more: Section) -> Product:
    product = serve(sections=sections(**more))
    folder = lab.node.etc / CONTAINERD / f"{OWN}:{MIRROR}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(_hosts_toml(f"http://{OWN}:{MIRROR}"))
    return product


def client(lab: Lab, kind: str, host: Host) -> Client:
    """A client of this kind with nothing in it."""
    if kind == "docker":
        return lab.docker(host, insecure=INSECURE)
    makers: Mapping[str, Callable[[Lab, Host], Client]] = CLIENTS  # type: ignore[assignment]
    return makers[kind](lab, host)


def push_skopeo(lab: Lab, host: Host, image: images.Image, target: str, creds: str = "") -> None:
    assert lab.skopeo(host).push(image.source, target, creds=creds) == image.digest


def push_podman(lab: Lab, host: Host, image: images.Image, target: str, creds: str = "") -> None:
    lab.podman(host).push(image.source, target, creds=creds)


def push_buildah(lab: Lab, host: Host, image: images.Image, target: str, creds: str = "") -> None:
    lab.buildah(host).push(image.source, target, creds=creds)


def push_docker(lab: Lab, host: Host, image: images.Image, target: str, creds: str = "") -> None:
    loaded(lab, host, image).push("loaded:1", target, creds=creds)


def loaded(lab: Lab, host: Host, image: images.Image) -> Docker:
    """A dockerd that has an image from a file, as `loaded:1`."""
    file, docker = lab.fresh("loaded", ".tar"), lab.docker(host, insecure=INSECURE)
    host.run("skopeo", "copy", "--quiet", image.source, f"docker-archive:{file}:loaded:1")
    docker.load(file)
    return docker


def push_ctr(lab: Lab, host: Host, image: images.Image, target: str, creds: str = "") -> None:
    file, ctr = lab.fresh("layout", ".tar"), lab.ctr(host)
    with tarfile.open(file, "w") as tar:
        tar.add(image.source.split(":")[1], ".")
    base, _, tag = target.rpartition(":")
    assert tag == "it", "the name within the layout"
    ctr.load(file, target, "--all-platforms", "--base-name", base)
    ctr.push(target, creds=creds)


PUSHERS: dict[str, Callable[[Lab, Host, images.Image, str, str], None]] = {
    "skopeo": push_skopeo,
    "podman": push_podman,
    "buildah": push_buildah,
    "docker": push_docker,
    "ctr": push_ctr,
}
WHOLE = {"skopeo", "ctr"}
"""Those that push all platforms, each byte as it was."""
PULLERS = ("skopeo", "podman", "buildah", "docker", "ctr", "cri")


def made(lab: Lab, recipe: images.Recipe = images.TINY) -> images.Image:
    return images.make(recipe, lab.fresh("image"))


def _pairs(quick: set[tuple[str, str]]) -> Iterator[object]:
    for kind in PUSHERS:
        for way in WAYS:
            marks = [NEEDS[kind], *([] if (kind, way) in quick else [pytest.mark.slow])]
            yield pytest.param(kind, way, marks=marks, id=f"{kind} {way}")


QUICK = {("podman", "tls"), ("docker", "localhost"), ("skopeo", "prefix"), ("ctr", "tls")}


@pytest.mark.parametrize(("kind", "way"), list(_pairs(QUICK)))
def test_round_trip(place: Lab, product: Product, kind: str, way: str) -> None:
    """What a client pushes, a fresh one of its kind pulls by the same name, with the same digests."""
    image, at, mark = made(place), WAYS[way], place.internet.log.mark()
    host, target = at.host(place), f"{at.name}/team/app:it"
    PUSHERS[kind](place, host, image, target, "")
    told = at.ask(place, "team/app/manifests/it")
    assert (told.status, told.outcome) == (200, "LOCAL")
    assert told.digest == told.headers["docker-content-digest"]
    assert (told.digest == image.digest) is (kind in WHOLE)
    arrived = client(place, kind, host).pull(target)
    inside = json.loads(told.body)
    assert arrived.digest in {told.digest, *(each["digest"] for each in inside.get("manifests", []))}
    assert arrived.config in {"", image.configs[AMD64]}
    assert place.internet.log.requests(since=mark) == []
    # A mirror's root is Docker Hub for a ping, which has no path; that is answered here.
    assert {event["registry"] for event in product.events() if event["repository"]} == {"local"}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in PULLERS])
def test_everybody_pulls(place: Lab, product: Product, kind: str, way: str) -> None:
    """All clients pull what skopeo has pushed, by each way."""
    image, at = made(place), WAYS[way]
    push_skopeo(place, at.host(place), image, f"{NAME if way == 'tls' else at.name}/team/app:1")
    arrived = client(place, kind, at.host(place)).pull(f"{at.name}/team/app:1")
    assert arrived.digest in {image.digest, image.manifests[AMD64]}
    assert arrived.config in {"", image.configs[AMD64]}


def test_all_ways_are_one_registry(place: Lab, product: Product) -> None:
    """What was pushed by one name is there by each other, all platforms of it, and a tag moves for all at once."""
    for recipe, way in ((images.TINY, "tls"), (images.TINY_DOCKER, "localhost"), (images.MANY, "prefix")):
        image = made(place, recipe)
        push_skopeo(place, WAYS[way].host(place), image, f"{WAYS[way].name}/team/app:1")
        for at in WAYS.values():
            assert at.ask(place, "team/app/manifests/1").digest == image.digest
            for digest in (*image.manifests.values(), *image.blobs[AMD64]):
                kind = "manifests" if digest in image.manifests.values() else "blobs"
                assert at.ask(place, f"team/app/{kind}/{digest}").digest == digest
            assert json.loads(at.ask(place, "team/app/tags/list").body)["tags"] == ["1"]


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in ("ctr", "cri")])
def test_containerd_by_namespace(place: Lab, product: Product, kind: str) -> None:
    """`localhost:5000/…` on a node, whose hosts.toml leads to the cache: `?ns=localhost:5000` in each request."""
    image = made(place)
    push_skopeo(place, place.cache, image, f"{LOCALHOST}/team/app:1")
    folder = place.node.etc / CONTAINERD / LOCALHOST
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(_hosts_toml(f"http://{network.CACHE}:{MIRROR}", push=False))
    arrived = client(place, kind, place.node).pull(f"{LOCALHOST}/team/app:1")
    assert arrived.digest in {image.digest, image.manifests[AMD64]}


@pytest.mark.parametrize("kind", ["skopeo", pytest.param("docker", marks=[NEEDS["docker"], pytest.mark.slow])])
def test_mount(place: Lab, product: Product, kind: str) -> None:
    """Into another repository of the registry no layer is sent again."""
    image = made(place, images.MANY)
    if kind == "docker":
        docker = loaded(place, place.node, image)
        docker.push("loaded:1", f"{NAME}/team/app:1")
        docker.push("loaded:1", f"{NAME}/team/again:1")
    else:
        skopeo = place.skopeo()
        skopeo.push(image.source, f"{NAME}/team/app:1")
        skopeo.push(f"docker://{NAME}/team/app:1", f"{NAME}/team/again:1")

    def again(*methods: str) -> list[Event]:
        events = [event for event in product.events() if event["repository"] == "team/again"]
        return [event for event in events if event["method"] in methods]

    def known() -> set[object]:
        return {event["digest"] for event in again("HEAD") if event["status"] == 200}

    # Who may push is told by HEAD that a layer is here; nobody needs to mount it, or to send it.
    wait_until(lambda: len(known()) >= len(image.blobs[AMD64]), "a line for each layer")
    wait_until(lambda: bool(again("PUT")), "the line of the manifest")
    assert again("POST", "PATCH") == []
    assert TLS_WAY.ask(place, "team/again/manifests/1").digest == TLS_WAY.ask(place, "team/app/manifests/1").digest


def signature(lab: Lab, subject: images.Image) -> str:
    """An artifact about an image, in a folder that skopeo reads."""
    folder = lab.fresh("artifact")
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    about = (Path(subject.source.split(":")[1]) / "blobs" / "sha256" / subject.digest.split(":")[1]).read_bytes()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": SIGNATURE,
        "config": put(b"{}", EMPTY_TYPE),
        "layers": [put(b"signed", "text/plain")],
        "subject": {"mediaType": json.loads(about)["mediaType"], "digest": subject.digest, "size": len(about)},
    }
    top = put(json.dumps(document).encode(), MANIFEST)
    named = {**top, "annotations": {"org.opencontainers.image.ref.name": "it"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}:it"


def test_referrers(place: Lab, product: Product) -> None:
    """An artifact about an image is listed, and so is its copy in another repository."""
    image, skopeo = made(place), place.skopeo()
    skopeo.push(image.source, f"{NAME}/team/app:1")
    digest = skopeo.push(signature(place, image), f"{NAME}/team/app:signed")
    assert referrers(place, "team/app", image.digest) == {digest: SIGNATURE}
    for tag in ("1", "signed"):
        skopeo.push(f"docker://{NAME}/team/app:{tag}", f"{NAME}/team/copy:{tag}")
    assert referrers(place, "team/copy", image.digest) == {digest: SIGNATURE}
    assert referrers(place, "team/copy", image.digest, "?artifactType=text/plain") == {}


def referrers(lab: Lab, repository: str, digest: str, query: str = "") -> dict[str, str]:
    """Digest to artifact type of what is said to refer to a manifest."""
    listed = json.loads(TLS_WAY.ask(lab, f"{repository}/referrers/{digest}{query}").body)["manifests"]
    return {each["digest"]: each["artifactType"] for each in listed}


@pytest.mark.parametrize("way", WAYS)
def test_oras(place: Lab, product: Product, way: str) -> None:
    """oras pushes a file as an artifact about an image, and pulls it."""
    image, at, folder = made(place), WAYS[way], place.fresh("oras")
    (folder / "back").mkdir(parents=True)
    (folder / "file.txt").write_text("attested")
    push_skopeo(place, at.host(place), image, f"{at.name}/team/app:1")
    program = f"""
import oras.client, oras.oci
client = oras.client.OrasClient(insecure={at.port != TLS}, tls_verify=True)
subject = oras.oci.Subject(mediaType="application/vnd.oci.image.index.v1+json", digest="{image.digest}", size=1)
for chunked in (False, True):
    client.push(target="{at.name}/team/app:art", files=["file.txt"], subject=subject, do_chunked=chunked)
client.pull(target="{at.name}/team/app:art", outdir="back")
print(client.get_tags("{at.name}/team/app:1"))
"""
    env = {"REQUESTS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt"}
    inside = ("sh", "-c", f'cd {folder} && exec "$@"', "sh", sys.executable, "-c", program)
    said = at.host(place).run(*inside, env=env)
    assert (folder / "back" / "file.txt").read_text() == "attested"
    assert said.out.split("\n")[-2] == "['1', 'art']"
    assert len(referrers(place, "team/app", image.digest)) == 1


def users(lab: Lab) -> Mapping[str, Section]:
    """Settings with a users file, in which ann is."""
    file = lab.fresh("users")
    file.touch(mode=0o600)
    name, _, password = ANN.partition(":")
    file.write_text(f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n")
    return {"clients": {"users_file": str(file)}}


@pytest.mark.parametrize(("kind", "way"), list(_pairs({("podman", "tls"), ("ctr", "tls"), ("docker", "prefix")})))
def test_who_pushes_is_a_user(place: Lab, serve: Serve, kind: str, way: str) -> None:
    """Where there are users a stranger's push is refused, and a wrong password's; a user's is kept; all may pull."""
    start(place, serve, **users(place))
    image, at = made(place), WAYS[way]
    host, target = at.host(place), f"{at.name}/team/app:it"
    for creds in ("", WRONG):
        with pytest.raises(LabError, match=REFUSED):
            PUSHERS[kind](place, host, image, target, creds)
    assert TLS_WAY.ask(place, "team/app/manifests/it").status == 404
    PUSHERS[kind](place, host, image, target, ANN)
    assert client(place, kind, host).pull(target).config in {"", image.configs[AMD64]}


@pytest.mark.parametrize("kind", ["podman", pytest.param("docker", marks=[NEEDS["docker"], pytest.mark.slow])])
def test_login(place: Lab, serve: Serve, kind: str) -> None:
    """`docker login` and `podman login` take the right password only, and a push then goes by it."""
    start(place, serve, **users(place))
    image, target = made(place), f"{NAME}/team/app:it"
    if kind == "docker":
        docker = loaded(place, place.node, image)
        with pytest.raises(LabError, match=REFUSED):
            docker.login(NAME, WRONG)
        docker.login(NAME, ANN)
        docker.push("loaded:1", target)
    else:
        podman = place.podman()
        with pytest.raises(LabError, match=REFUSED):
            podman.login(NAME, WRONG)
        podman.login(NAME, ANN)
        podman.push(image.source, target)
    assert TLS_WAY.ask(place, "team/app/manifests/it").status == 200


@pytest.mark.parametrize("way", ["tls", "localhost"])
def test_oras_login(place: Lab, serve: Serve, way: str) -> None:
    """oras pulls without a login, and pushes with one alone."""
    start(place, serve, **users(place))
    at, folder = WAYS[way], place.fresh("oras")
    (folder / "back").mkdir(parents=True)
    (folder / "file.txt").write_text("attested")
    name, _, password = ANN.partition(":")
    program = f"""
import oras.client
def client():
    return oras.client.OrasClient(insecure={at.port != TLS}, tls_verify=True)
try:
    client().push(target="{at.name}/team/app:art", files=["file.txt"])
except ValueError as error:
    print("refused:", error)
known = client()
known.login(hostname="{at.name}", username="{name}", password="{password}", config_path="{folder}/cli/config.json")
known.push(target="{at.name}/team/app:art", files=["file.txt"])
client().pull(target="{at.name}/team/app:art", outdir="back")
"""
    env = {"REQUESTS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt", "HOME": str(folder)}
    inside = ("sh", "-c", f'cd {folder} && exec "$@"', "sh", sys.executable, "-c", program)
    said = at.host(place).run(*inside, env=env)
    assert "refused:" in said.out
    assert "needs a login" in said.out
    assert (folder / "back" / "file.txt").read_text() == "attested"


TLS_ALONE = ("syft", "buildkit")
"""Those that take clear text from hosts on the machine itself, or by a configuration of their own."""
QUICK_PULLS = {("docker", "tls"), ("cri", "tls"), ("syft", "tls")}
ASKED = [
    pytest.param(kind, way, marks=[NEEDS[kind], *([] if (kind, way) in QUICK_PULLS else [pytest.mark.slow])])
    for kind in (*PULLERS, *TLS_ALONE)
    for way in WAYS
    if way == "tls" or kind not in TLS_ALONE
]


@pytest.mark.parametrize(("kind", "way"), ASKED)
def test_pulls_beside_users(place: Lab, serve: Serve, kind: str, way: str) -> None:
    """Strangers pull what no row denies them, with no login; what is for a user comes with the user's alone."""
    rows: list[Mapping[str, object]] = [
        {"registry": "local", "repository": "secret/*", "users": ["ann"]},
        {"registry": "local", "repository": "secret/*", "action": "deny"},
    ]
    product = start(place, serve, **users(place), policy=rows)
    image, at = made(place), WAYS[way]
    host = at.host(place)
    for name in ("team", "secret"):
        push_skopeo(place, host, image, f"{at.name}/{name}/app:1", ANN)
    digests = {image.digest, image.manifests[AMD64]}
    assert client(place, kind, host).pull(f"{at.name}/team/app:1").digest in digests
    for creds in ("", WRONG):
        with pytest.raises(LabError, match=REFUSED):
            client(place, kind, host).pull(f"{at.name}/secret/app:1", creds=creds)
    mark = len(product.events())
    assert client(place, kind, host).pull(f"{at.name}/secret/app:1", creds=ANN).digest in digests
    assert product.wait_for(lambda event: event["reference"] == "1", since=mark)


def test_policy(place: Lab, serve: Serve) -> None:
    """`fill` says who pushes, `deny` closes a repository, `freeze` keeps a tag as it is; each says so in words."""
    old, new = made(place), made(place, images.MANY)
    rows: list[Mapping[str, object]] = [
        {"name": "sealed", "registry": "local", "repository": "sealed/*", "action": "deny"},
        {"name": "still", "registry": NAME, "repository": "team/app", "tag": "1", "freeze": old.digest},
        {"name": "team", "registry": "local", "repository": "team/*", "fill": ["ann"]},
        {"name": "node", "registry": "local", "repository": "node/*", "fill": [network.NODE]},
    ]
    start(place, serve, **users(place), policy=rows)
    skopeo = place.skopeo()
    for target, creds, words in (
        ("sealed/app:1", ANN, "sealed"),
        ("team/app:1", "", REFUSED),
        ("team/app:1", "ann:wrong", REFUSED),
        ("team/other:1", "", REFUSED),
    ):
        with pytest.raises(LabError, match=words):
            skopeo.push(old.source, f"{NAME}/{target}", creds=creds)
    assert skopeo.push(old.source, f"{NAME}/team/app:1", creds=ANN) == old.digest
    with pytest.raises(LabError, match="still"):
        skopeo.push(new.source, f"{NAME}/team/app:1", creds=ANN)
    assert skopeo.push(new.source, f"{NAME}/team/app:2", creds=ANN) == new.digest
    assert skopeo.push(new.source, f"{NAME}/node/app:2") == new.digest
    with pytest.raises(LabError, match="node"):
        place.skopeo(place.cache).push(new.source, f"{LOCALHOST}/node/app:3")
    assert TLS_WAY.ask(place, "team/app/manifests/1").digest == old.digest
    assert TLS_WAY.ask(place, "sealed/app/manifests/1").status == 403


@pytest.mark.slow
def test_skopeo_is_killed(place: Lab, product: Product) -> None:
    """In the middle of a layer; the next push is whole, and nothing is damaged."""
    image = made(place, images.Recipe("killed:1", (300 * MIB,)))
    target = f"docker://{NAME}/team/app:1"
    home = {"HOME": str(place.fresh("home"))}
    Path(home["HOME"]).mkdir()
    first = place.node.start(
        "skopeo", "skopeo", "copy", "--quiet", "--preserve-digests", image.source, target, env=home
    )
    uploads = product.data / "uploads"
    wait_until(lambda: any(path.stat().st_size > MIB for path in uploads.iterdir()), "a part of it", tick=0.005)
    first.popen.kill()
    first.popen.wait()
    assert TLS_WAY.ask(place, "team/app/manifests/1").status == 404
    place.skopeo().push(image.source, f"{NAME}/team/app:1")
    assert place.skopeo().pull(f"{NAME}/team/app:1").digest == image.digest
    command(place, product.data, "verify")


HUB_LOGINS = [
    pytest.param("mine/", "", id="a path prefix, no login"),
    pytest.param("mine/", CREDS, id="a path prefix, a login of Docker Hub", marks=pytest.mark.slow),
    pytest.param("", "", id="hosts alone, no login", marks=pytest.mark.slow),
    pytest.param("", CREDS, id="hosts alone, a login of Docker Hub", marks=pytest.mark.slow),
]


@NEEDS["docker"]
@pytest.mark.parametrize(("prefix", "creds"), HUB_LOGINS)
def test_docker_hub_beside_it(place: Lab, serve: Serve, prefix: str, creds: str) -> None:
    """Strangers' dockerd goes on pulling Docker Hub's images by the mirror where there are users and local names."""
    image = place.image(images.TINY_DOCKER)
    names = [NAME, "localhost", *([prefix] if prefix else [])]
    product = serve(sections=sections(**users(place), local={"names": names}))
    place.node.resolve({})
    place.node.trust("none", "")
    docker = place.docker(mirrors=(f"http://{network.CACHE}:{MIRROR}",))
    assert docker.pull("docker.io/library/tiny:docker", creds=creds).config == image.configs[AMD64]
    assert product.wait_for(lambda event: event["reference"] == "docker")["user"] == ""
    assert CREDS.partition(":")[2] not in json.dumps(product.events())
