"""Credentials that are none, of somebody else, or for something else: who may have what is upstream's word alone."""

import base64
import json
from collections.abc import Callable

from tests.hostile.case import Case, Refused, wire
from tests.hostile.scene import HUB, PRIVATE, USERS, Scene
from tests.proxy.raw import dial, request

SECRET = "/v2/team/secret/manifests/1"
DENIED = "401 or 404 as upstream says, and no byte of content"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(scene: Scene, target: str, *lines: str, name: str = PRIVATE, listener: str = "clear") -> tuple[int, bytes]:
    with dial(scene.cache, listener, name=name) as raw:
        raw.send(request(target, "Accept: */*", *lines, host=name))
        answer = raw.answer()
    return answer.status, answer.body


def token(scene: Scene, user: str, repository: str) -> str:
    """A token as a client gets it, through the cache."""
    target = f"/token?service=demo&scope=repository:{repository}:pull"
    with scene.cache.client("clear", name=PRIVATE) as client:
        reply = client.get(target, {"Authorization": basic(user, USERS[user])})
    return f"Bearer {json.loads(reply.body)['token']}"


def filled(scene: Scene) -> str:
    """The secret image is in the cache; where its first layer is."""
    right = token(scene, "a", "team/secret")
    assert ask(scene, SECRET, f"Authorization: {right}")[0] == 200
    digest = max(scene.secret.blobs, key=lambda each: scene.secret.blobs[each].size)
    target = f"/v2/team/secret/blobs/{digest}"
    assert ask(scene, target, f"Authorization: {right}")[0] == 200
    return target


def refused(
    name: str, lines: Callable[[Scene], tuple[str, ...]], *, listener: str = "clear", method: str = "GET"
) -> Case:
    """By tag, by digest and as a blob, all of it cached: nothing for whoever comes like this."""

    def run(scene: Scene) -> None:
        blob = filled(scene)
        manifest = f"/v2/team/secret/manifests/{scene.secret.index.digest}"
        for target in (SECRET, manifest, blob):
            status, body = ask(scene, target, *lines(scene), listener=listener)
            assert status in (400, 401, 403, 404, 502), status
            assert body not in (scene.secret.index.body, scene.secret.blobs[blob.rpartition("/")[2]])
            assert len(body) < 2048

    return Case(name, DENIED, run, asks=True)


def fixed(*lines: str) -> Callable[[Scene], tuple[str, ...]]:
    return lambda _: lines


def _other_repository(scene: Scene) -> None:
    blob = filled(scene)
    other = token(scene, "b", "team/other")
    digest = blob.rpartition("/")[2]
    # A digest that is in the cache, asked for in a repository that its client may read and that does not hold it.
    status, body = ask(scene, f"/v2/team/other/blobs/{digest}", f"Authorization: {other}")
    assert status == 404
    assert len(body) < 2048
    status, _ = ask(scene, f"/v2/team/other/manifests/{scene.secret.index.digest}", f"Authorization: {other}")
    assert status == 404


def _other_registry(scene: Scene) -> None:
    blob = filled(scene)
    digest = blob.rpartition("/")[2]
    status, body = ask(scene, f"/v2/team/app/blobs/{digest}", name=HUB)
    assert status == 404
    assert len(body) < 2048


def _told_to_nobody_else(scene: Scene) -> None:
    right = basic("a", USERS["a"])
    scene.upstream.lie("blob", lambda incoming, proceed: proceed(incoming))
    digest = next(iter(scene.image.blobs))
    scene.upstream.requests.clear()
    with dial(scene.cache, "mirror", name=HUB) as raw:
        raw.send(request(f"/v2/team/app/blobs/{digest}", f"Authorization: {right}", host=HUB))
        raw.answer()
    storage = [each for each in scene.upstream.requests if each.kind == "object"]
    assert all("authorization" not in each.headers for each in storage)


def _mirror(scene: Scene) -> None:
    filled(scene)
    with dial(scene.cache, "mirror") as raw:
        raw.send(request(f"{SECRET}?ns={PRIVATE}", "Accept: */*", host="127.0.0.1"))
        answer = raw.answer()
    assert answer.status in (401, 404)
    assert len(answer.body) < 2048


def _catalog(scene: Scene) -> None:
    filled(scene)
    for target in (f"/v2/_catalog?ns={PRIVATE}", "/v2/_catalog", f"/v2/team/secret/tags/list?ns={PRIVATE}"):
        with dial(scene.cache, "mirror") as raw:
            raw.send(request(target, host="127.0.0.1"))
            answer = raw.answer()
        assert b'secret"' not in answer.body or answer.status >= 400


CASES: tuple[Case, ...] = (
    refused("no credential", fixed()),
    refused("a wrong password", fixed(f"Authorization: {basic('a', 'wrong')}")),
    refused("another user's password", fixed(f"Authorization: {basic('a', USERS['b'])}")),
    refused("Basic with a NUL", fixed(f"Authorization: {basic('a', USERS['a'] + chr(0))}")),
    refused("Basic with a NUL in the name", fixed(f"Authorization: {basic('a' + chr(0), USERS['a'])}")),
    refused("Basic that is no base64", fixed("Authorization: Basic ===%%%")),
    refused("Basic without a colon", fixed("Authorization: Basic YQ==")),
    refused("Basic of nothing", fixed("Authorization: Basic")),
    refused("an empty Authorization", fixed("Authorization: ")),
    refused("Bearer of nothing", fixed("Authorization: Bearer ")),
    refused("a Bearer of 50 kB", fixed(f"Authorization: Bearer {'a' * 50_000}")),
    refused("a Bearer that nobody issued", fixed("Authorization: Bearer eyJhbGciOiJub25lIn0.e30.")),
    refused("a scheme of its own", fixed("Authorization: Negotiate YTpi")),
    refused(
        "two credentials, the second one right",
        lambda scene: ("Authorization: Bearer x", f"Authorization: {token(scene, 'a', 'team/secret')}"),
    ),
    refused(
        "two credentials, the first one right",
        lambda scene: (f"Authorization: {token(scene, 'a', 'team/secret')}", "Authorization: Bearer x"),
    ),
    refused(
        "a right credential in another case",
        lambda scene: (f"Authorization: {token(scene, 'a', 'team/secret').swapcase()}",),
    ),
    refused(
        "a right credential with a word behind it",
        lambda scene: (f"Authorization: {token(scene, 'a', 'team/secret')} x",),
    ),
    refused(
        "a right token of another user's repository",
        lambda scene: (f"Authorization: {token(scene, 'b', 'team/other')}",),
    ),
    refused(
        "the right user's token for another repository",
        lambda scene: (f"Authorization: {token(scene, 'a', 'team/other')}",),
    ),
    refused(
        "a right credential in Proxy-Authorization",
        lambda scene: (f"Proxy-Authorization: {token(scene, 'a', 'team/secret')}",),
    ),
    refused(
        "a right credential in Cookie", lambda scene: (f"Cookie: Authorization={token(scene, 'a', 'team/secret')}",)
    ),
    refused(
        "a right credential that Connection takes out", fixed("Authorization: Bearer x", "Connection: authorization")
    ),
    refused("no credential, by TLS", fixed(), listener="tls"),
    Case(
        "a private digest in a repository that the client may read",
        "404 as upstream says",
        _other_repository,
        asks=True,
    ),
    Case(
        "a private digest in a public repository of another registry",
        "404 as upstream says",
        _other_registry,
        asks=True,
    ),
    Case(
        "a credential, and a registry that redirects to storage", "storage is not told", _told_to_nobody_else, asks=True
    ),
    Case("a private tag by ?ns= at a mirror", "401 or 404", _mirror, asks=True),
    Case("the names of private repositories and tags at a mirror", "are in no list", _catalog, asks=True),
    wire(
        "an Authorization with a bare CR", request("/v2/", "Authorization: Bearer a\rX: y", host=HUB), Refused((400,))
    ),
    wire(
        "an Authorization of 70 kB", request("/v2/", f"Authorization: Bearer {'a' * 70_000}", host=HUB), Refused((431,))
    ),
)
