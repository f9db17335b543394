"""Names of images as people write them."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitm_cache.errors import ClientError
from mitm_cache.oci.image import Image
from mitm_cache.oci.reference import Repository, Tag

DIGEST = f"sha256:{'0123456789abcdef' * 4}"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("library/alpine:3", "docker.io/library/alpine:3"),
        ("team/app", "docker.io/team/app:latest"),
        ("team/deep/app:1", "docker.io/team/deep/app:1"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/team/app", "docker.io/team/app:latest"),
        ("index.docker.io/alpine:3", "docker.io/library/alpine:3"),
        ("INDEX.docker.io/team/app", "docker.io/team/app:latest"),
        ("registry-1.docker.io/library/alpine", "registry-1.docker.io/library/alpine:latest"),
        ("quay.io/a/b", "quay.io/a/b:latest"),
        ("quay.io/app", "quay.io/app:latest"),
        (f"quay.io/a/b@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        (f"quay.io/a/b:1@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("Registry/x", "registry/x:latest"),
        ("Quay.IO/a/b:Tag", "quay.io/a/b:Tag"),
        ("10.0.0.5:5000/x", "10.0.0.5:5000/x:latest"),
        ("[::1]:5000/x:1", "[::1]:5000/x:1"),
        ("cache/x", "docker.io/cache/x:latest"),
    ],
)
def test_names(text: str, whole: str) -> None:
    """What is left out is what docker and containerd take it for."""
    assert str(Image.parse(text)) == whole


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("Alpine", "lower-case"),
        ("alpine:", "a tag is"),
        ("alpine:-1", "a tag is"),
        ("alpine@", "digest algorithm"),
        ("alpine@sha256:12", "64 lower-case hex digits"),
        (f"alpine:-@{DIGEST}", "a tag is"),
        (f"quay.io@{DIGEST}/x", "64 lower-case hex digits"),
        ("0" * 64, "the ID of an image"),
        ("https://quay.io/a", "not with https://"),
        ("docker://alpine", "not with docker://"),
        ("quay.io/", "a repository name is"),
        ("quay.io:port/a", "'quay.io:port' is not a host"),
        ("-x.io/a", "'-x.io' is not a host"),
        ("a b", "a repository name is"),
        ("/alpine", "a repository name is"),
        ("team//app", "a repository name is"),
        ("x" * 300, "at most 255"),
        ("../x", "'..' is not a host"),
    ],
)
def test_no_names(text: str, words: str) -> None:
    """What is no name is shown, cut where it is long, with what is wrong."""
    with pytest.raises(ClientError, match="is not the name of an image: ") as caught:
        Image.parse(text)
    assert words in caught.value.message
    assert caught.value.message.startswith(repr(text[:80])[:-1])
    assert len(caught.value.message) < 300


parts = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=5)
repositories = st.lists(parts, min_size=1, max_size=3).map("/".join)
hosts = st.one_of(
    st.just("localhost"),
    st.lists(parts, min_size=2, max_size=3).map(".".join),
    st.builds("{}:{}".format, parts, st.integers(1, 65535)),
)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,5}", fullmatch=True)


@given(hosts, repositories, tags, st.booleans(), st.booleans())
def test_whole_names(host: str, repository: str, tag: str, tagged: bool, pinned: bool) -> None:
    """A name with a registry is taken apart as it was put together; a digest wins."""
    image = Image.parse(f"{host}/{repository}{f':{tag}' if tagged else ''}{f'@{DIGEST}' if pinned else ''}")
    assert (image.registry, image.repository) == (host, Repository(repository))
    assert str(image.reference) == (DIGEST if pinned else tag if tagged else "latest")


@given(repositories, tags)
@example("localhost", "1")
def test_short_names(name: str, tag: str) -> None:
    """A name without a registry is Docker Hub's, in `library` where it is one word; so it is when that is written."""
    image = Image.parse(f"docker.io/{name}:{tag}" if name.startswith("localhost/") else f"{name}:{tag}")
    assert (image.registry, image.reference) == ("docker.io", Tag(tag))
    assert image.repository.name == (name if "/" in name else f"library/{name}")
    assert Image.parse(f"docker.io/{name}:{tag}") == image == Image.parse(f"index.docker.io/{name}:{tag}")


@given(st.one_of(st.text(max_size=20), st.text("aA0.:/@[]-_", max_size=20)))
@example("[/x")
@example("\n")
@example("a.b/x\n")
def test_any_text(text: str) -> None:
    """Whatever is written, it is a name that means the same when it is written out, or it is told."""
    try:
        image = Image.parse(text)
    except ClientError as error:
        refusal = error
    else:
        assert Image.parse(str(image)) == image
        return
    assert "is not the name of an image" in refusal.message
