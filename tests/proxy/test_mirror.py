"""Which registry a mirror is asked for: one fixed order, and nothing that is named is answered by another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import ClientError
from mitm_cache.proxy.mirror import Place, is_registry_path, resolve
from mitm_cache.registries import DOCKER_HUB, Known, Registry

QUAY = Registry("quay.io", "quay.io")
PORTED = Registry("registry.corp:5000", "registry.corp:5000")
SHORT = Registry("registry.gitlab.com", "registry.gitlab.com", prefix="gitlab")
KNOWN = Known([DOCKER_HUB, QUAY, PORTED, SHORT])
DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("target", "by_host", "registry", "there", "given", "chosen"),
    [
        ("/v2/a/b/manifests/1?ns=quay.io", None, QUAY, "/v2/a/b/manifests/1", "", True),
        ("/v2/a/b/manifests/1?ns=quay.io", DOCKER_HUB, QUAY, "/v2/a/b/manifests/1", "", True),
        ("/v2/a/tags/list?n=5&ns=quay.io&last=x", None, QUAY, "/v2/a/tags/list?n=5&last=x", "", True),
        ("/v2/a/manifests/1?ns=registry.corp%3A5000", None, PORTED, "/v2/a/manifests/1", "", True),
        ("/v2/a/manifests/1?ns=docker.io", None, DOCKER_HUB, "/v2/library/a/manifests/1", "", True),
        ("/v2/a/manifests/1?ns=registry-1.docker.io", QUAY, DOCKER_HUB, "/v2/library/a/manifests/1", "", True),
        ("/v2/quay.io/a/manifests/1?ns=quay.io", None, QUAY, "/v2/a/manifests/1", "quay.io/", True),
        ("/v2/ghcr.io/a/manifests/1?ns=quay.io", None, QUAY, "/v2/ghcr.io/a/manifests/1", "", True),
        ("/v2/?ns=quay.io", None, QUAY, "/v2/", "", True),
        ("/v2/quay.io/a/b/manifests/1", None, QUAY, "/v2/a/b/manifests/1", "quay.io/", True),
        ("/v2/quay.io/a/b/manifests/1", DOCKER_HUB, QUAY, "/v2/a/b/manifests/1", "quay.io/", True),
        ("/v2/registry.corp:5000/a/manifests/1", None, PORTED, "/v2/a/manifests/1", "registry.corp:5000/", True),
        ("/v2/gitlab/a/b/manifests/1", None, SHORT, "/v2/a/b/manifests/1", "gitlab/", True),
        ("/v2/docker.io/a/manifests/1", None, DOCKER_HUB, "/v2/library/a/manifests/1", "docker.io/", True),
        ("/v2/index.docker.io/a/b/manifests/1", None, DOCKER_HUB, "/v2/a/b/manifests/1", "index.docker.io/", True),
        ("/v2/quay.io/", None, QUAY, "/v2/", "quay.io/", True),
        ("/v2/quay.io", None, QUAY, "/v2/", "", True),
        ("/v2/quay.io/_catalog?n=1", None, QUAY, "/v2/_catalog?n=1", "quay.io/", True),
        (f"/v2/a/blobs/{DIGEST}", QUAY, QUAY, f"/v2/a/blobs/{DIGEST}", "", True),
        (f"/v2/a/blobs/{DIGEST}", None, DOCKER_HUB, f"/v2/library/a/blobs/{DIGEST}", "", False),
        ("/v2/a/b/tags/list?n=1", None, DOCKER_HUB, "/v2/a/b/tags/list?n=1", "", False),
        ("/v2/library/a/manifests/1", None, DOCKER_HUB, "/v2/library/a/manifests/1", "", False),
        ("/v2/", None, DOCKER_HUB, "/v2/", "", False),
        ("/v2", None, DOCKER_HUB, "/v2", "", False),
        ("/v2/_catalog", None, DOCKER_HUB, "/v2/_catalog", "", False),
    ],
)  # fmt: skip
def test_order(target: str, by_host: Registry | None, registry: Registry, there: str, given: str, chosen: bool) -> None:
    """`?ns=`, then the first path part, then the Host, then Docker Hub, whose library is implied."""
    assert resolve(target, by_host, KNOWN) == Place(registry, there, mirror=True, given=given, chosen=chosen)


@pytest.mark.parametrize("space", ["evil.example", "", "quay.io.evil.example", "quay.io/..", "%00", "gitlab"])
def test_unknown_namespace(space: str) -> None:
    """A registry that is named and not known is no other one: 404, which sends containerd on to the origin."""
    for target in ("/v2/a/b/manifests/1", "/v2/quay.io/a/manifests/1", "/v2/"):
        with pytest.raises(ClientError) as caught:
            resolve(f"{target}?ns={space}", QUAY, KNOWN)
        assert (caught.value.status, caught.value.code) == (404, "NAME_UNKNOWN")
        assert "[registries]" in caught.value.message


def test_two_namespaces() -> None:
    """Two answers to one question are none."""
    with pytest.raises(ClientError) as caught:
        resolve("/v2/a/manifests/1?ns=quay.io&ns=docker.io", None, KNOWN)
    assert caught.value.status == 400


@given(st.text(alphabet="/v2ns=?&%.:quayio_-AZ\0é", max_size=60), st.sampled_from([None, QUAY]))
def test_any_target(tail: str, by_host: Registry | None) -> None:
    """Anything has one place or is refused; what goes upstream names no namespace."""
    target = f"/v2/{tail}"
    assert is_registry_path(target)
    place, refusal = None, None
    try:
        place = resolve(target, by_host, KNOWN)
    except ClientError as error:
        refusal = error
    if place is None:
        assert refusal is not None
        assert 400 <= refusal.status < 500
        return
    assert place.registry in list(KNOWN)
    query = place.target.partition("?")[2]
    assert not [field for field in query.split("&") if field.partition("=")[0] == "ns"]


@pytest.mark.parametrize("target", ["/", "/v2x", "/v1/", "", "/V2/", "/ca.crt?x=/v2/"])
def test_other_paths(target: str) -> None:
    """Only the registry API is a mirror's."""
    assert not is_registry_path(target)


@pytest.mark.parametrize(
    ("space", "found"),
    [("localhost", True), ("localhost:5000", True), ("localhost:5001", False), ("quay.io:5000", False)],
)
def test_a_local_name_with_the_mirrors_own_port(space: str, found: bool) -> None:
    """Images at a mirror that is not on a usual port have its port in their names; other registries' names do not."""
    local = Registry("local", "localhost")
    known = Known([DOCKER_HUB, QUAY, local])
    if found:
        assert resolve(f"/v2/a/manifests/1?ns={space}", None, known, 5000).registry == local
    else:
        with pytest.raises(ClientError, match=space):
            resolve(f"/v2/a/manifests/1?ns={space}", None, known, 5000)
