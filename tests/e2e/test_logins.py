"""Real logins through the cache: `docker login`, `podman login`, `skopeo login` and what a kubelet hands over.

And the other way: rights are shared, the cache has a login of its own, and clients pull without one.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_pull import AMD64, CREDS, NEEDS, check, is_hit
from tests.lab import images, network
from tests.lab.clients import Client
from tests.lab.lab import Lab
from tests.lab.process import LabError
from tests.lab.product import Product
from tests.lab.tokens import USERS
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_root(), NEEDS["skopeo"]]

BEARER, BASIC = "ghcr.io", "private.example.com"
WRONG = "lab:wrong-passw0rd"
TEN = images.Recipe("ten:1", (64 * images.KIB,) * 10)
REFUSED = r"(?i)unauthorized|no basic auth|authentication required|denied|401|invalid username|access forbidden|403"
SECOND = "10.77.0.2"


class LoginClient(Client, Protocol):
    """A client with a login command."""

    def login(self, registry: str, creds: str) -> None: ...

    def logout(self, registry: str) -> None: ...


LOGINS: dict[str, Callable[[Lab], LoginClient]] = {"docker": Lab.docker, "podman": Lab.podman, "skopeo": Lab.skopeo}
PULLERS: dict[str, Callable[[Lab], Client]] = {**LOGINS, "cri": Lab.cri}


def _cases(kinds: Mapping[str, object], quick: set[tuple[str, str]]) -> Iterator[object]:
    for kind in kinds:
        for registry in (BEARER, BASIC):
            marks = [NEEDS[kind], *([] if (kind, registry) in quick else [pytest.mark.slow])]
            yield pytest.param(kind, registry, marks=marks, id=f"{kind} {registry}")


def _platform(kind: str) -> str:
    """skopeo copies all platforms unless told."""
    return AMD64 if kind == "skopeo" else ""


@pytest.mark.parametrize(("kind", "registry"), list(_cases(LOGINS, {("podman", BEARER), ("docker", BASIC)})))
def test_login(lab: Lab, cache_process: Product, kind: str, registry: str) -> None:
    """A right password logs in and pulls; a wrong one does neither; after the logout the cached image is refused."""
    image, reference = lab.image(images.TINY), f"{registry}/private/tiny:1"
    client, platform = LOGINS[kind](lab), _platform(kind)
    with pytest.raises(LabError, match=REFUSED):
        client.login(registry, WRONG)
    with pytest.raises(LabError, match=REFUSED):
        client.pull(reference, platform=platform)
    client.login(registry, CREDS)
    check(client.pull(reference, platform=platform), image, platform)
    mark = lab.internet.log.mark()
    _forget(client, reference)
    check(client.pull(reference, platform=platform), image, platform)
    assert [row for row in lab.internet.log.content(mark) if row.status == 200] == []
    _forget(client, reference)
    client.logout(registry)
    since = len(cache_process.events())
    with pytest.raises(LabError, match=REFUSED):
        client.pull(reference, platform=platform)
    assert [event for event in cache_process.events(since) if event["outcome"] in ("HIT", "REVALIDATED", "MISS")] == []


def _forget(client: Client, reference: str) -> None:
    """The image, but not the login: a daemon's is gone with its folder."""
    remove = getattr(client, "remove", None)
    if remove is not None:
        remove(reference)
    else:
        client.wipe()


@pytest.mark.parametrize(
    "registry", [pytest.param(BEARER, marks=NEEDS["cri"]), pytest.param(BASIC, marks=[NEEDS["cri"], pytest.mark.slow])]
)
def test_image_pull_secrets(lab: Lab, cache_process: Product, registry: str) -> None:
    """What a kubelet hands over with PullImage is used; a wrong secret, or none, gets nothing of what is cached."""
    image, reference, client = lab.image(images.TINY), f"{registry}/private/tiny:1", lab.cri()
    for creds in (WRONG, ""):
        with pytest.raises(LabError, match=REFUSED):
            client.pull(reference, creds=creds)
    check(client.pull(reference, creds=CREDS), image, "")
    for creds in (WRONG, "", *([f"dora:{USERS['dora']}"] if registry == BEARER else [])):
        client.wipe()
        since = len(cache_process.events())
        with pytest.raises(LabError, match=REFUSED):
            client.pull(reference, creds=creds)
        assert [event for event in cache_process.events(since) if event["outcome"] in ("HIT", "MISS")] == []
    client.wipe()
    check(client.pull(reference, creds=CREDS), image, "")
    for blob in image.blobs[AMD64]:
        cache_process.wait_for(is_hit(blob))


@pytest.mark.parametrize(
    ("kind", "registry"), list(_cases(PULLERS, {("podman", BASIC), ("cri", BEARER), ("docker", BEARER)}))
)
def test_shared_rights(lab: Lab, serve: Serve, kind: str, registry: str) -> None:
    """The cache has the login, and clients pull with none; one that brings a wrong one is still refused."""
    secret = lab.fresh("secret")
    secret.touch(mode=0o600)
    secret.write_text(CREDS)
    shared = {"url": f"https://{registry}", "rights": "shared", "credentials": {"file": str(secret)}}
    product = serve(sections={"registries": {registry: shared}})
    image, reference = lab.image(images.TINY), f"{registry}/private/tiny:1"
    client, platform = PULLERS[kind](lab), _platform(kind)
    for number in range(2):
        since = lab.internet.log.mark()
        check(client.pull(reference, platform=platform), image, platform)
        assert (lab.internet.log.content(since) == []) is bool(number)
        client.wipe()
    for blob in image.blobs[AMD64]:
        product.wait_for(is_hit(blob))
    # The ping asks nobody to log in, so a login that a client has is never sent: not a wrong one either.
    check(client.pull(reference, creds=WRONG, platform=platform), image, platform)


Costs = Counter[str]


def _cost(lab: Lab, since: int) -> Costs:
    """What reached the registry and its store from the cache, by method and kind; 401s apart."""
    rows = [row for row in lab.internet.log.requests(since=since) if row.client == network.CACHE_OUTSIDE]
    return Counter(f"{row.method} {row.kind}{' 401' if row.status == 401 else ''}" for row in rows)


@pytest.fixture
def two(lab: Lab, serve: Serve) -> Iterator[tuple[Product, Product]]:
    """Two processes on one data directory, each with an address."""
    lab.cache.space.configure(f"addr add {SECOND}/24 dev node")
    before = (lab.node.etc / "hosts").read_text()
    try:
        one = serve()
        yield one, serve(data=one.data, address=SECOND)
    finally:
        (lab.node.etc / "hosts").write_text(before)
        lab.cache.space.configure(f"addr del {SECOND}/24 dev node")


def _use(lab: Lab, address: str) -> None:
    hosts = lab.node.etc / "hosts"
    lines = hosts.read_text().splitlines()
    hosts.write_text("\n".join(line.replace(network.CACHE if address == SECOND else SECOND, address) for line in lines))


COSTS = [
    pytest.param(kind, reference, marks=[NEEDS[kind], *([] if quick else [pytest.mark.slow])], id=f"{kind} {reference}")
    for kind, reference, quick in [
        *((kind, f"{BEARER}/private/ten:1", kind == "podman") for kind in PULLERS),
        *((kind, f"{BASIC}/private/ten:1", False) for kind in PULLERS),
        *((kind, f"{BEARER}/lab/ten:1", False) for kind in PULLERS),
        *((kind, "quay.io/lab/ten:1", False) for kind in PULLERS),
    ]
]


@pytest.mark.parametrize(("kind", "reference"), COSTS)
def test_what_a_second_pull_costs(lab: Lab, two: tuple[Product, Product], kind: str, reference: str) -> None:
    """Ten layers, pulled by one process, by it again, then by the other: few questions, and no content."""
    image = lab.image(TEN)
    creds = CREDS if "/private/" in reference else ""
    client, told = PULLERS[kind](lab), []
    for address in (network.CACHE, network.CACHE, SECOND):
        _use(lab, address)
        since = lab.internet.log.mark()
        check(client.pull(reference, creds=creds, platform=_platform(kind)), image, "")
        told.append(_cost(lab, since))
        client.wipe()
    print(f"{kind} {reference}", *(dict(sorted(cost.items())) for cost in told), sep="\n  ")  # noqa: T201
    yes = [sum(cost[name] for name in ("HEAD blob", "HEAD manifest by digest")) for cost in told]
    for cost in told[1:]:
        assert [name for name in cost if name.startswith("GET") and name.split()[1] in ("blob", "object")] == []
    if "/private/" not in reference:
        # What strangers may have is learned once for everybody.
        assert yes[1] <= (reference.startswith(BEARER))
        assert yes[2] == 0
    elif reference.startswith(BASIC):
        assert yes[1:] == [0, 0]
    else:
        # Each pull has a token of its own, which is a credential of its own; containerd has two.
        assert max(yes[1:]) <= (2 if kind == "cri" else 1)
