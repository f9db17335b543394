"""The lab proves itself: pulls past the cache, straight from the internet's side."""

import json

import pytest

from tests.lab import images
from tests.lab.lab import Lab
from tests.lab.process import LabError
from tests.needs import needs_root, needs_tool

pytestmark = [pytest.mark.e2e, needs_root(), needs_tool("skopeo", package="skopeo")]


def test_blobs_come_from_the_store(lab: Lab) -> None:
    """quay.io redirects each blob to its store's name, and what arrives has the digest that was pushed."""
    image, mark = lab.image(images.TINY), lab.internet.log.mark()
    arrived = lab.skopeo(lab.direct).pull("quay.io/lab/tiny:1")
    assert arrived.digest == image.digest
    blobs = frozenset[str]().union(*image.blobs.values())
    counts = lab.internet.log.counts(since=mark)
    assert counts["quay.io", "GET", "blob"] == len(blobs)
    assert counts["cdn01.quay.io", "GET", "object"] == len(blobs)
    assert {row.status for row in lab.internet.log.requests("quay.io", mark) if row.kind == "blob"} == {307}
    assert len(lab.internet.log.content(mark)) == 2 * len(blobs) + len(image.manifests)


def test_a_token_is_asked_for(lab: Lab) -> None:
    """ghcr.io hands an anonymous token for a public repository, and only credentials open a private one."""
    image, mark = lab.image(images.TINY), lab.internet.log.mark()
    client = lab.skopeo(lab.direct)
    assert client.pull("ghcr.io/lab/tiny:1").digest == image.digest
    assert lab.internet.log.counts("ghcr.io", mark)["ghcr.io", "GET", "token"] > 0
    with pytest.raises(LabError, match="denied"):
        client.pull("ghcr.io/private/tiny:1")
    assert client.pull("ghcr.io/private/tiny:1", creds="lab:secret").digest == image.digest


def test_basic_credentials_and_no_redirect(lab: Lab) -> None:
    """private.example.com wants Basic credentials and sends blobs itself."""
    image, mark = lab.image(images.TINY), lab.internet.log.mark()
    client = lab.skopeo(lab.direct)
    with pytest.raises(LabError, match=r"(?i)unauthorized|authentication required"):
        client.pull("private.example.com/private/tiny:1")
    assert client.pull("private.example.com/private/tiny:1", creds="lab:secret").digest == image.digest
    served = [row for row in lab.internet.log.requests("private.example.com", mark) if row.kind == "blob"]
    assert {(row.status, row.authorization) for row in served} == {(200, "basic")}


def test_a_relative_redirect(lab: Lab) -> None:
    """gcr.io checks the token, then sends a client from each blob to another path of its own."""
    image, mark = lab.image(images.TINY), lab.internet.log.mark()
    assert lab.skopeo(lab.direct).pull("gcr.io/lab/tiny:1").digest == image.digest
    seen = lab.internet.log.requests("gcr.io", mark)
    blobs = frozenset[str]().union(*image.blobs.values())
    assert sum(row.status == 302 for row in seen if row.kind == "blob") == len(blobs)
    assert sum(row.status == 200 for row in seen if row.kind == "object") == len(blobs)

    (blob, *_) = sorted(blobs)
    ask = ("curl", "-s", "-o", "/dev/null", "-w", "%header{location} %{http_code}")
    asked = lab.direct.run("curl", "-s", "https://gcr.io/v2/token?service=gcr.io&scope=repository:lab/tiny:pull").out
    bearer = ("-H", f"Authorization: Bearer {json.loads(asked)['token']}")
    assert lab.direct.run(*ask, *bearer, f"https://gcr.io/v2/lab/tiny/blobs/{blob}").out.startswith("/artifacts-down")
    assert lab.direct.run(*ask, *bearer, f"https://gcr.io/v2/private/tiny/blobs/{blob}").out == " 401"


def test_manifests_elsewhere(lab: Lab) -> None:
    """registry.k8s.io asks for nothing and has nothing: another host sends every manifest and blob."""
    image, mark = lab.image(images.TINY), lab.internet.log.mark()
    assert lab.skopeo(lab.direct).pull("registry.k8s.io/tiny:1").digest == image.digest
    asked = [row for row in lab.internet.log.requests("registry.k8s.io", mark) if row.kind != "ping"]
    assert {row.status for row in asked} == {307}
    assert {row.kind for row in asked} == {"manifest by tag", "manifest by digest", "blob"}
    sent = lab.internet.log.requests("us-west1-docker.pkg.dev", mark)
    assert {row.status for row in sent} == {200}
    assert len(sent) == len(asked)


def test_faults_on_demand(lab: Lab) -> None:
    """A fault holds for its host until it is taken back."""
    lab.image(images.TINY)
    client = lab.skopeo(lab.direct)
    lab.internet.front.set_faults({"cdn01.quay.io": "return 503;"})
    try:
        with pytest.raises(LabError, match="503"):
            client.pull("quay.io/lab/tiny:1")
    finally:
        lab.internet.front.set_faults({})
    client.pull("quay.io/lab/tiny:1")


def test_a_node_cannot_pass_the_cache(lab: Lab) -> None:
    """No route leads from a node to the internet: without a cache nothing is pulled."""
    lab.image(images.TINY)
    mark = lab.internet.log.mark()
    with pytest.raises(LabError, match="connection refused"):
        lab.skopeo().pull("quay.io/lab/tiny:1")
    with pytest.raises(LabError, match="exit status 7"):
        lab.node.run("curl", "-sS", "-m", "5", "--connect-to", "::10.78.0.10:", "https://quay.io/v2/")
    assert lab.internet.log.requests(since=mark) == []
