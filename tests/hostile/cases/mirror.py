"""Asking a mirror for one registry's images under another's name."""

from collections.abc import Callable

from tests.hostile.case import Case, Refused, wire
from tests.hostile.host import reply
from tests.hostile.scene import HUB, SCRIPTED, Scene
from tests.proxy.raw import Raw, request

TAG = "/v2/team/app/manifests/1"


def space(name: str, query: str, statuses: tuple[int, ...] = (400, 404)) -> Case:
    return wire(f"?ns= {name}", request(f"{TAG}?{query}", host="127.0.0.1"), Refused(statuses), listener="mirror")


def first(name: str, part: str) -> Case:
    """A first part of a path that is nearly a registry's: a repository of Docker Hub, or refused; never dialled."""

    def run(scene: Scene) -> None:
        with Raw(scene.cache.address("mirror")) as raw:
            raw.send(request(f"/v2/{part}/team/app/manifests/1", host="127.0.0.1"))
            assert raw.answer().status in (400, 404)
        assert list(scene.private.requests) == []
        assert scene.script.asked == []

    return Case(
        f"a path that begins with {name}", "400, or Docker Hub's 404; no other registry is asked", run, asks=True
    )


def case(name: str, must: str, run: Callable[[Scene], None], *, asks: bool = True) -> Case:
    return Case(name, must, run, asks=asks)


def _namespace_header(scene: Scene) -> None:
    with Raw(scene.cache.address("mirror")) as raw:
        raw.send(request(TAG, f"OCI-Namespace: {SCRIPTED}", "Accept: */*", host="127.0.0.1"))
        answer = raw.answer()
    assert answer.status == 200
    assert answer.headers["oci-namespace"] == HUB
    assert scene.script.asked == []


def _disagreement(scene: Scene) -> None:
    """?ns= counts before the path and the Host, as the specification has it."""
    with Raw(scene.cache.address("mirror")) as raw:
        raw.send(request(f"/v2/{HUB}/team/app/manifests/1?ns={SCRIPTED}", host=HUB))
        assert raw.answer().status in (400, 404)
    assert list(scene.upstream.requests) == []
    assert list(scene.private.requests) == []


def _lies_of_upstream(scene: Scene) -> None:
    scene.script.say = lambda _: [reply(404, "OCI-Namespace: docker.io", body=b"{}")]
    with Raw(scene.cache.address("mirror")) as raw:
        raw.send(request(f"/v2/x/y/manifests/1?ns={SCRIPTED}", host="127.0.0.1"))
        assert raw.answer().headers["oci-namespace"] == SCRIPTED


CASES: tuple[Case, ...] = (
    space("twice", f"ns={HUB}&ns={HUB}"),
    space("twice, of different registries", f"ns={HUB}&ns={SCRIPTED}"),
    space("a hundred times", "&".join([f"ns={HUB}"] * 100)),
    space("empty", "ns="),
    space("without a value", "ns"),
    space("unknown", "ns=evil.example"),
    space("a private address", "ns=10.0.0.1"),
    space("loopback", "ns=127.0.0.1:443"),
    space("a metadata service", "ns=169.254.169.254"),
    space("localhost", "ns=localhost:5000"),
    space("the cache itself", "ns=docker.proxy"),
    space("a URL", f"ns=https://{HUB}"),
    space("a path", f"ns={HUB}/team"),
    space("user information", f"ns=user@{HUB}"),
    space("another port", f"ns={HUB}:22"),
    space("with a NUL", f"ns={HUB}%00"),
    space("with CR LF", f"ns={HUB}%0d%0aX:%20y"),
    space("with a tab", f"ns={HUB}%09"),
    space("twice encoded", "ns=docker%252eio"),
    space("a homograph", "ns=d%D0%BEcker.io"),
    space("bytes that are no text", "ns=%ff%fe"),
    space("of 1500 characters", f"ns={'a' * 1500}"),
    space("a registry and a comma", f"ns={HUB},{SCRIPTED}"),
    space("a dot", "ns=."),
    first("a registry in upper case and a port", "SCRIPT.DEMO:99"),
    first("a registry with an encoded dot", "script%2edemo"),
    first("a registry as a prefix", "script.demo.evil"),
    first("a registry with a dash", "script-demo"),
    first("an address", "127.0.0.1"),
    first("..", ".."),
    case("OCI-Namespace of a client", "does not choose: Docker Hub answers", _namespace_header),
    case("?ns=, a path and a Host of different registries", "?ns= alone counts", _disagreement),
    case("OCI-Namespace of a registry that says it is another", "is not passed on", _lies_of_upstream),
    wire(
        "an upload to a mirror",
        request("/v2/team/app/blobs/uploads/", "Content-Length: 3", method="POST", host="127.0.0.1") + b"abc",
        Refused((405,)),
        listener="mirror",
    ),
    wire("a deletion at a mirror", request(TAG, method="DELETE", host="127.0.0.1"), Refused((405,)), listener="mirror"),
)
