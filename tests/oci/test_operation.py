"""What a path asks for."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitm_cache.errors import ClientError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.operation import (
    MAX_PATH,
    Blob,
    Catalog,
    Manifest,
    Operation,
    Other,
    Ping,
    Referrers,
    TagList,
    Upload,
    classify,
    repository_of,
)
from mitm_cache.oci.reference import Repository, Tag

DIGEST = Digest.of(b"")
APP = Repository("team/app")

PATHS: dict[str, Operation] = {
    "/v2": Ping(),
    "/v2/": Ping(),
    "/v2/_catalog": Catalog(),
    "/v2/team/app/manifests/1.0": Manifest(APP, Tag("1.0")),
    f"/v2/team/app/manifests/{DIGEST}": Manifest(APP, DIGEST),
    f"/v2/team/app/blobs/{DIGEST}": Blob(APP, DIGEST),
    "/v2/team/app/tags/list": TagList(APP),
    f"/v2/team/app/referrers/{DIGEST}": Referrers(APP, DIGEST),
    "/v2/team/app/blobs/uploads": Upload(APP),
    "/v2/team/app/blobs/uploads/": Upload(APP),
    "/v2/team/app/blobs/uploads/8f2c-11": Upload(APP),
    "/v2/team/app/blobs/upload/8f2c%2b11": Upload(APP),  # some registries' own form
    "/v2/a": Other(),
    "/v2/a/tags/lists": Other(),
    # The keywords are names too: the last ones count.
    "/v2/manifests/manifests/manifests": Manifest(Repository("manifests"), Tag("manifests")),
    "/v2/tags/list/tags/list": TagList(Repository("tags/list")),
    f"/v2/blobs/uploads/blobs/{DIGEST}": Blob(Repository("blobs/uploads"), DIGEST),
    "/": Other(),
    "/token": Other(),
    "/v2/auth": Other(),
    "/v1/_ping": Other(),
    "/v2x": Other(),
    "/login%2f": Other(),
    "//v2/": Other(),
}


@pytest.mark.parametrize(("path", "operation"), PATHS.items(), ids=[path or "(empty)" for path in PATHS])
def test_paths(path: str, operation: Operation) -> None:
    """Each endpoint of the specification is known, and what is below no registry path is something else."""
    assert classify(path) == operation
    assert repository_of(operation) == getattr(operation, "repository", None)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        pytest.param("/v2/team%2fapp/manifests/1", 400, "NAME_INVALID", id="encoded slash"),
        pytest.param("/v2/team/app/manifests/%2e%2e", 400, "NAME_INVALID", id="encoded dots"),
        pytest.param("/v2/%00", 400, "NAME_INVALID", id="encoded nul"),
        pytest.param("/v2/../../etc/manifests/1", 400, "NAME_INVALID", id="traversal"),
        pytest.param("/v2/a/../b/blobs/uploads/", 400, "NAME_INVALID", id="traversal in an upload"),
        pytest.param("/v2//manifests/1", 400, "NAME_INVALID", id="no name"),
        pytest.param("/v2/Team/manifests/1", 400, "NAME_INVALID", id="upper case"),
        pytest.param(f"/v2/{'a' * 256}/manifests/1", 400, "NAME_INVALID", id="over-long name"),
        pytest.param(f"/v2/a/manifests/{'x' * 129}", 400, "MANIFEST_INVALID", id="over-long tag"),
        pytest.param("/v2/a/manifests/.hidden", 400, "MANIFEST_INVALID", id="bad tag"),
        pytest.param("/v2/a/manifests/md5:00", 400, "DIGEST_INVALID", id="manifest, unknown algorithm"),
        pytest.param("/v2/a/blobs/md5:00", 400, "DIGEST_INVALID", id="blob, unknown algorithm"),
        pytest.param("/v2/a/blobs/latest", 400, "DIGEST_INVALID", id="blob by tag"),
        pytest.param("/v2/a/referrers/latest", 400, "DIGEST_INVALID", id="referrers by tag"),
        pytest.param("/v2/..", 400, "NAME_INVALID", id="up and away"),
        pytest.param("/pages/../v2/a/manifests/1", 400, "NAME_INVALID", id="around"),
        pytest.param("", 405, "UNSUPPORTED", id="no path"),
        pytest.param("*", 405, "UNSUPPORTED", id="asterisk"),
        pytest.param("/" + "a" * MAX_PATH, 414, "UNSUPPORTED", id="over-long path"),
    ],
)
def test_refusals(path: str, status: int, code: str) -> None:
    """A registry path with an invalid part is answered with the specification's error for that part."""
    with pytest.raises(ClientError) as caught:
        classify(path)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_the_longest_path() -> None:
    """The limit itself is allowed."""
    assert classify("/" + "a" * (MAX_PATH - 1)) == Other()


parts = st.sampled_from(
    ["v2", "manifests", "blobs", "uploads", "tags", "list", "referrers", "_catalog", "..", ".", "", "%2f", "%2e%2e",
     "app", "latest", "A", "_tags", "_digests", "\0", "\n", "ü", "\ud800", str(DIGEST), "sha256:", "x" * 300]
)  # fmt: skip
names = st.lists(st.sampled_from(["app", "team", "blobs", "tags", "manifests", ".."]), min_size=1).map("/".join)
ends = st.sampled_from(["manifests/1", f"blobs/{DIGEST}", "tags/list", f"referrers/{DIGEST}", "blobs/uploads/1"])
paths = st.one_of(
    st.text(),
    st.lists(parts).map("/".join),
    st.lists(parts).map(lambda found: "/v2/" + "/".join(found)),
    st.tuples(names, ends).map(lambda pair: f"/v2/{pair[0]}/{pair[1]}"),
)


@given(paths)
@example("/v2/a/blobs/uploads\n")
def test_any_path(path: str) -> None:
    """Any path is an operation or a ClientError with a 4xx; a name it holds is made of safe parts of the path."""
    try:
        operation = classify(path)
    except ClientError as error:
        refusal = error
    else:
        _check(path, operation)
        return
    assert 400 <= refusal.status < 500
    assert refusal.message


def _check(path: str, operation: Operation) -> None:
    repository = repository_of(operation)
    if repository is None:
        assert isinstance(operation, Ping | Catalog | Other)
    else:
        assert path.startswith(f"/v2/{repository}/")
        assert Repository.parse(repository.name) == repository
        assert not {"..", ".", "", "_tags", "_digests"} & set(repository.name.split("/"))
