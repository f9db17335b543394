"""Private images are for those whom upstream gives them to: by every way in, as a hit, as a join, in an outage.

What upstream itself says to the same question and credential is asked beside the cache, and is the measure.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_matrix import CONNECT, INSIDE
from tests.e2e.test_pull import AMD64, NEEDS
from tests.lab import images, network, registries
from tests.lab.asker import Question, Reply, ask
from tests.lab.lab import Lab
from tests.lab.process import wait_until
from tests.lab.product import CLEAR, MIRROR, OWN, TLS, Product
from tests.lab.tokens import USERS, basic
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_root(), NEEDS["skopeo"]]

BEARER, BASIC = "ghcr.io", "private.example.com"
PRIVATE, OTHERS = "private/tiny", "others/part"
ALIAS = "alias.example.com"
SECOND = "10.77.0.2"
"""Where another process listens."""
PORTS = {"tls": TLS, "clear": CLEAR, "connect": CONNECT, "mirror": MIRROR}
PART = images.Recipe("tiny:1", images.TINY.layers[:2])
"""An image that shares two layers with the private one, and nothing else."""
FIRST_BYTES = {"Range": "bytes=0-99"}
METHODS: list[tuple[str, dict[str, str]]] = [("GET", {}), ("GET", FIRST_BYTES), ("HEAD", {})]
MAX_WORDS = 4096
"""Bytes of what may be said to somebody who gets nothing."""

WAYS: dict[str, Callable[[str, str], Question]] = {
    "hosts": lambda name, target: Question(name, network.CACHE, TLS, target),
    "clear": lambda name, target: Question(name, network.CACHE, CLEAR, target, tls=False),
    "connect": lambda name, target: Question(name, network.CACHE, CONNECT, target, proxy=True),
    "namespace": lambda name, target: Question(network.CACHE, network.CACHE, MIRROR, f"{target}?ns={name}", tls=False),
    "prefix": lambda name, target: Question(
        network.CACHE, network.CACHE, MIRROR, f"/v2/{name}{target.removeprefix('/v2')}", tls=False
    ),
    "own name": lambda name, target: Question(OWN, network.CACHE, TLS, f"/v2/{name}{target.removeprefix('/v2')}"),
    "alias": lambda _, target: Question(ALIAS, network.CACHE, TLS, target),
}
QUICK = ("hosts", "namespace")


@dataclass(frozen=True)
class Person:
    """Somebody with one credential, or none."""

    name: str
    authorization: str = ""

    def with_credential(self, question: Question) -> Question:
        given = {"Authorization": self.authorization} if self.authorization else {}
        return replace(question, headers={**question.headers, **given})


class Place:
    """A registry with the private image, and the one that shares layers with it."""

    def __init__(self, lab: Lab, registry: str) -> None:
        self.lab, self.registry = lab, registry
        self.private = lab.image(images.TINY)
        self.part = images.make(PART, lab.fresh("image"))
        lab.internet.push(self.part.source, f"{OTHERS}:1", files=registry == BASIC)
        ours, theirs = self.private.blobs[AMD64], self.part.blobs[AMD64]
        self.shared = max(ours & theirs, key=lambda digest: len(self.content(digest)))
        self.own = max(ours - theirs, key=lambda digest: len(self.content(digest)))

    def content(self, digest: str) -> bytes:
        """A blob or manifest as it was made."""
        folder = Path(self.private.source.split(":")[1])
        return (folder / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()

    @property
    def targets(self) -> dict[str, str]:
        """Path to the digest of its content: what of the image is asked for."""
        manifest = self.private.manifests[AMD64]
        return {
            f"/v2/{PRIVATE}/manifests/1": self.private.digest,
            f"/v2/{PRIVATE}/manifests/{manifest}": manifest,
            f"/v2/{PRIVATE}/blobs/{self.own}": self.own,
            f"/v2/{PRIVATE}/blobs/{self.shared}": self.shared,
        }

    def upstream(self, questions: Iterable[Question]) -> list[Reply]:
        """What the registry itself says."""
        address = registries.ADDRESSES[self.registry]
        direct = [replace(each, name=self.registry, address=address, port=443, tls=True) for each in questions]
        return ask(self.lab.direct, direct)

    def token(self, user: str, *repositories: str) -> str:
        """A new token for these, as far as the user may have it."""
        scope = "%20".join(f"repository:{repository}:pull" for repository in repositories)
        target = f"/token?service={self.registry}&scope={scope}"
        [reply] = self.upstream([Question("", "", 0, target, headers={"Authorization": basic(user)})])
        return f"Bearer {reply.body.decode().partition('"token": "')[2].partition('"')[0]}"

    @property
    def owner(self) -> Person:
        """Who may have the image."""
        return Person("owner", basic("lab") if self.registry == BASIC else self.token("lab", PRIVATE))

    @property
    def strangers(self) -> list[Person]:
        """Who may not."""
        nobody = Person("nobody")
        if self.registry == BASIC:
            return [nobody, Person("liar", basic("lab")[:-4] + "AAA="), Person("bearer", self.token_of_others())]
        good = self.token("lab", PRIVATE)
        head, _, signature = good.rpartition(".")
        return [
            nobody,
            Person("liar", "Bearer guessed"),
            Person("forger", f"{head}.{signature[::-1]}"),
            Person("basic", basic("dora")),
            Person("other rights", self.token("lab", OTHERS)),
            self.dora,
        ]

    @property
    def dora(self) -> Person:
        """Who may have the image that shares layers with it, and says that she wants both."""
        return Person("dora", self.token("dora", OTHERS, PRIVATE))

    def token_of_others(self) -> str:
        """A token of another registry's."""
        return Place.token(_As(self, BEARER), "lab", PRIVATE)  # type: ignore[arg-type]


class _As:
    """The same lab, another registry."""

    def __init__(self, place: Place, registry: str) -> None:
        self.lab, self.registry = place.lab, registry

    upstream = Place.upstream


def _settings(registry: str) -> Mapping[str, Mapping[str, object]]:
    url = f"https://{registry}"
    return {**INSIDE, "registries": {registry: {"url": url, "aliases": [ALIAS]}}}


@pytest.fixture(params=[BEARER, BASIC])
def place(lab: Lab, request: pytest.FixtureRequest) -> Place:
    return Place(lab, request.param)


@pytest.fixture
def product(place: Place, serve: Serve) -> Product:
    return serve(ports=PORTS, sections=_settings(place.registry))


def _fill(place: Place, owner: Person) -> None:
    """The owner pulls all of it."""
    questions = [owner.with_credential(WAYS["hosts"](place.registry, target)) for target in place.targets]
    for target, reply in zip(place.targets, ask(place.lab.node, questions), strict=True):
        assert (reply.status, reply.outcome) == (200, "MISS"), (target, reply)
        assert reply.digest == place.targets[target]


def _nothing(reply: Reply, content: bytes) -> None:
    """Not a byte of it, nor what it is."""
    assert len(reply.body) < MAX_WORDS
    assert not reply.body or reply.body not in content
    assert content[:64] not in reply.body
    assert "docker-content-digest" not in reply.headers


def _judge(place: Place, way: str, people: Iterable[Person], targets: Mapping[str, str]) -> int:
    """Each of them asks for everything by one way; upstream says the same of each. The number of questions."""
    cases = [
        (person, target, person.with_credential(Question(*_WHERE, target, method=method, headers=headers)))
        for person in people
        for target in targets
        for method, headers in METHODS
    ]
    told = place.upstream(question for _, _, question in cases)
    asked = []
    for _, target, question in cases:
        by_way = WAYS[way](place.registry, target)
        asked.append(replace(by_way, method=question.method, headers=question.headers))
    for (person, target, question), theirs, ours in zip(cases, told, ask(place.lab.node, asked), strict=True):
        case = (way, person.name, question.method, question.headers.get("Range", ""), target, theirs.status, ours)
        content = place.content(targets[target])
        if 200 <= theirs.status < 400:
            ranged = question.method == "GET" and "Range" in question.headers
            assert ours.status == (206 if ranged else 200), case
            assert ours.outcome in ("HIT", "REVALIDATED"), case
            wanted = b"" if question.method == "HEAD" else content[:100] if ranged else content
            assert ours.body == wanted, case
        else:
            assert ours.status == theirs.status, case
            assert ours.outcome == "REFUSED", case
            _nothing(ours, content)
    return len(cases)


_WHERE = ("", "", 0)
"""Name, address and port: filled in by who asks."""


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way in QUICK else pytest.mark.slow) for way in WAYS])
def test_hits(place: Place, product: Product, way: str) -> None:
    """All of it is cached; whoever asks, by whatever way, gets what upstream would give and not a byte more."""
    owner = place.owner
    _fill(place, owner)
    mark = place.lab.internet.log.mark()
    strangers = place.strangers
    assert _judge(place, way, strangers, place.targets) == len(strangers) * len(place.targets) * len(METHODS)
    assert _judge(place, way, [owner], place.targets) == len(place.targets) * len(METHODS)
    if way == "hosts":
        # The lie of one, and the no to it, change nothing for others.
        again = Person("owner again", place.token("lab", PRIVATE)) if place.registry == BEARER else owner
        _judge(place, way, [again], place.targets)
    fetched = [row for row in place.lab.internet.log.content(mark) if row.client == network.CACHE_OUTSIDE]
    assert [row for row in fetched if row.status == 200 and row.kind != "manifest by digest"] == []


@pytest.mark.parametrize("place", [BEARER], indirect=True)
@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way in QUICK else pytest.mark.slow) for way in WAYS])
def test_the_same_layer_elsewhere(place: Place, product: Product, way: str) -> None:
    """Rights to another repository with the same layer give that layer there, and there nothing else."""
    _fill(place, place.owner)
    dora, other = place.dora, place.part.manifests[AMD64]
    there = {
        f"/v2/{OTHERS}/blobs/{place.shared}": place.shared,  # upstream has it there as well
        f"/v2/{OTHERS}/blobs/{place.own}": place.own,
        f"/v2/{OTHERS}/manifests/{place.private.manifests[AMD64]}": place.private.manifests[AMD64],
    }
    _judge(place, way, [dora, Person("nobody")], there)
    _judge(place, way, [dora], place.targets)
    # Her own image, by which her right is known and all that it holds.
    questions = [
        dora.with_credential(WAYS[way](place.registry, f"/v2/{OTHERS}/manifests/{reference}"))
        for reference in ("1", other)
    ]
    for reply in ask(place.lab.node, questions):
        assert (reply.status, reply.digest) == (200, other)
    _judge(place, way, [dora], {**there, **place.targets})


@pytest.mark.parametrize("place", [BEARER], indirect=True)
def test_a_redirecting_registry_opens_nothing(place: Place, product: Product) -> None:
    """registry.k8s.io redirects whatever is asked for: it is no way to a private layer whose digest is known."""
    _fill(place, place.owner)
    questions = [
        replace(WAYS["hosts"]("registry.k8s.io", f"/v2/any/thing/{room}/{digest}"), method=method, headers=headers)
        for room, digest in (("blobs", place.own), ("manifests", place.private.manifests[AMD64]))
        for method, headers in METHODS
    ]
    for question, reply in zip(questions, ask(place.lab.node, questions), strict=True):
        assert (reply.status, reply.outcome) == (404, "REFUSED"), (question, reply)
        _nothing(reply, place.content(place.own))


@pytest.mark.parametrize("place", [BEARER], indirect=True)
@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way in QUICK else pytest.mark.slow) for way in WAYS])
def test_joins(place: Place, product: Product, way: str) -> None:
    """The layer is arriving slowly: strangers are refused at once, who may reads along, and it is fetched once."""
    owner, dora, strangers = place.owner, place.dora, place.strangers
    content, mark = place.content(place.shared), place.lab.internet.log.mark()
    target = f"/v2/{PRIVATE}/blobs/{place.shared}"
    place.lab.internet.front.set_faults({"pkg-containers.githubusercontent.com": f"limit_rate {len(content) // 6};"})
    try:
        with ThreadPoolExecutor(2) as pool:
            leader = pool.submit(ask, place.lab.node, [owner.with_credential(WAYS["hosts"](place.registry, target))])
            spool = product.data / "spool"
            wait_until(lambda: any(path.stat().st_size for path in spool.glob("*.part")), "the download")
            refused = [person.with_credential(WAYS[way](place.registry, target)) for person in strangers]
            replies = ask(place.lab.node, refused)
            assert not leader.done(), "the download was over before the strangers were answered"
            joined = pool.submit(
                ask,
                place.lab.node,
                [dora.with_credential(WAYS[way](place.registry, f"/v2/{OTHERS}/blobs/{place.shared}"))],
            )
            for person, reply in zip(strangers, replies, strict=True):
                assert (reply.outcome, reply.status in (401, 403)) == ("REFUSED", True), (person, reply)
                _nothing(reply, content)
            [first], [second] = leader.result(), joined.result()
    finally:
        place.lab.internet.front.set_faults({})
    assert (first.status, first.outcome, first.body == content) == (200, "MISS", True)
    assert (second.status, second.outcome, second.body == content) == (200, "JOINED", True)
    objects = [row for row in place.lab.internet.log.requests(since=mark) if row.kind == "object"]
    assert len([row for row in objects if row.method == "GET" and row.range != "bytes=0-0"]) == 1


@pytest.mark.parametrize("place", [BEARER], indirect=True)
def test_a_stranger_comes_first(place: Place, product: Product) -> None:
    """Who may not asks first, and often; each no is its own, and the owner has the content."""
    owner = place.owner
    target = f"/v2/{PRIVATE}/blobs/{place.own}"
    with ThreadPoolExecutor(4) as pool:
        rounds = [
            pool.submit(
                ask,
                place.lab.node,
                [person.with_credential(WAYS["hosts"](place.registry, target)) for person in [*place.strangers, owner]],
            )
            for _ in range(4)
        ]
        for each in rounds:
            *refused, given = each.result()
            assert given.body == place.content(place.own)
            for reply in refused:
                assert reply.status in (401, 403)
                _nothing(reply, place.content(place.own))


@pytest.fixture
def outage(lab: Lab) -> Iterator[Callable[[], None]]:
    """Takes the internet away from the cache host; back afterwards."""
    yield lambda: lab.cache.space.configure("link set internet down")
    lab.cache.space.configure("link set internet up")


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way == "hosts" else pytest.mark.slow) for way in WAYS])
def test_upstream_is_down(place: Place, product: Product, outage: Callable[[], None], way: str) -> None:
    """Who was let in a moment ago has content by digest; everybody else is told an error, and never a byte."""
    owner, strangers = place.owner, place.strangers
    if place.registry == BEARER:
        # An old right of the same person: another token, about which upstream was never asked.
        strangers.append(Person("owner's other token", place.token("lab", PRIVATE)))
    _fill(place, owner)
    outage()
    for target, digest in place.targets.items():
        by_tag = target.endswith("/1")
        for person in [*strangers, owner]:
            questions = [
                replace(person.with_credential(WAYS[way](place.registry, target)), method=method)
                for method, _ in METHODS
            ]
            for reply in ask(place.lab.node, questions):
                case = (way, person.name, target, reply)
                if person is owner and not by_tag:
                    assert (reply.status, reply.outcome) == (200, "HIT"), case
                    assert reply.digest in (digest, place_of_nothing()), case
                elif person is not owner:
                    assert reply.status >= 400, case
                    _nothing(reply, place.content(digest))


def place_of_nothing() -> str:
    """The digest of an answer to HEAD."""
    return Reply(200, {}, "").digest


@pytest.fixture
def two(place: Place, serve: Serve) -> Iterator[tuple[Product, Product]]:
    """Two processes on one data directory, each with an address."""
    place.lab.cache.space.configure(f"addr add {SECOND}/24 dev node")
    try:
        one = serve(sections=_settings(place.registry))
        yield one, serve(data=one.data, address=SECOND, sections=_settings(place.registry))
    finally:
        place.lab.cache.space.configure(f"addr del {SECOND}/24 dev node")


def test_two_processes(place: Place, two: tuple[Product, Product]) -> None:
    """What one process fetched and knows, the other shares with the same people; nobody is asked about twice."""
    owner, strangers = place.owner, place.strangers
    _fill(place, owner)
    mark = place.lab.internet.log.mark()

    def by_second(person: Person, target: str) -> Question:
        return replace(person.with_credential(WAYS["hosts"](place.registry, target)), address=SECOND)

    by_digest = {target: digest for target, digest in place.targets.items() if not target.endswith("/1")}
    for reply, digest in zip(
        ask(place.lab.node, [by_second(owner, target) for target in by_digest]), by_digest.values(), strict=True
    ):
        assert (reply.outcome, reply.digest) == ("HIT", digest)
    assert place.lab.internet.log.requests(since=mark) == []
    for person in strangers:
        for target, digest in place.targets.items():
            [reply] = ask(place.lab.node, [by_second(person, target)])
            assert (reply.outcome, reply.status in (401, 403, 404)) == ("REFUSED", True), (person, target, reply)
            _nothing(reply, place.content(digest))


@pytest.mark.parametrize("place", [BEARER], indirect=True)
def test_a_join_in_another_process(place: Place, two: tuple[Product, Product]) -> None:
    """One process downloads; the other refuses strangers and lets in who may, and asks upstream for no byte."""
    owner, strangers = place.owner, place.strangers
    again = Person("owner again", place.token("lab", PRIVATE))
    content, mark = place.content(place.own), place.lab.internet.log.mark()
    question = WAYS["hosts"](place.registry, f"/v2/{PRIVATE}/blobs/{place.own}")
    there = replace(question, address=SECOND)
    place.lab.internet.front.set_faults({"pkg-containers.githubusercontent.com": f"limit_rate {len(content) // 6};"})
    try:
        with ThreadPoolExecutor(2) as pool:
            leader = pool.submit(ask, place.lab.node, [owner.with_credential(question)])
            spool = two[0].data / "spool"
            wait_until(lambda: any(path.stat().st_size for path in spool.glob("*.part")), "the download")
            replies = ask(place.lab.node, [person.with_credential(there) for person in strangers])
            elsewhere = replace(there, target=f"/v2/{OTHERS}/blobs/{place.own}")
            [absent] = ask(place.lab.node, [place.dora.with_credential(elsewhere)])
            assert (absent.status, absent.outcome) == (404, "REFUSED")
            _nothing(absent, content)
            assert not leader.done(), "the download was over before the strangers were answered"
            joined = pool.submit(ask, place.lab.node, [again.with_credential(there)])
            for person, reply in zip(strangers, replies, strict=True):
                assert (reply.outcome, reply.status in (401, 403)) == ("REFUSED", True), (person, reply)
                _nothing(reply, content)
            [first], [second] = leader.result(), joined.result()
    finally:
        place.lab.internet.front.set_faults({})
    assert (first.outcome, first.body == content) == ("MISS", True)
    assert (second.outcome, second.body == content) == ("JOINED", True)
    objects = [row for row in place.lab.internet.log.requests(since=mark) if row.kind == "object"]
    assert len([row for row in objects if row.method == "GET" and row.range != "bytes=0-0"]) == 1


def test_no_secret_stays(place: Place, serve: Serve, outage: Callable[[], None]) -> None:
    """Data, logs, metrics and status after all kinds of answers: no password, no token, no signature."""
    admin = 9500
    sections = {**_settings(place.registry), "listen": {"admin": [f"127.0.0.1:{admin}"]}}
    product = serve(ports=PORTS, sections=sections)
    owner, strangers = place.owner, place.strangers
    _fill(place, owner)
    for way in WAYS:
        _judge(place, way, [owner, *strangers], place.targets)
    planted = f"/v2/{PRIVATE}/manifests/1?token=planted-in-a-query&X-Amz-Signature=planted-signature"
    ask(place.lab.node, [owner.with_credential(WAYS["hosts"](place.registry, planted))])
    said = [
        place.lab.cache.run("curl", "-s", f"http://127.0.0.1:{admin}{path}").out
        for path in ("/metrics", "/status", "/readyz", "/healthz", "/")
    ]
    assert any("mitm_cache" in text for text in said)
    outage()
    for person in [*strangers, owner]:
        ask(place.lab.node, [person.with_credential(WAYS["hosts"](place.registry, f"/v2/{PRIVATE}/manifests/1"))])
    product.stop()
    secrets = {USERS["dora"], "planted-in-a-query", "planted-signature", basic("lab")[6:], basic("dora")[6:]}
    secrets |= {person.authorization.partition(" ")[2] for person in [owner, *strangers]} - {""}
    # The head of every token, and of every address that storage has signed.
    secrets |= {"eyJ0eXAi", "X-Amz-Signature=0", *(f"X-Amz-Signature={digit}" for digit in "123456789abcdef")}
    assert product.process is not None
    files = [path for path in product.data.rglob("*") if path.is_file() and product.data / "blobs" not in path.parents]
    files += [product.process.out, product.process.err]
    assert len(files) > 10
    texts = {str(path): path.read_bytes() for path in files} | {text[:40]: text.encode() for text in said}
    assert [(name, secret) for name, text in texts.items() for secret in secrets if secret.encode() in text] == []
