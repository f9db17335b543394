"""Files of images: skopeo's YAML, plain lists, and what is wrong with either."""

from pathlib import Path

import pytest

from mitm_cache.errors import ConfigError
from mitm_cache.filling.listed import Source, parse_list, read_list

YAML = """
registry.example.com:
    images:
        busybox: []
        redis:
            - "1.0"
            - 1.10
            - sha256:0000000000000000000000000000000000000000000000000000000000000000
        team/none:
    images-by-tag-regex:
        nginx: ^1\\.13\\.[12]-alpine-perl$
    credentials:
        username: john
        password: this is a secret
    tls-verify: true
    cert-dir: {folder}
quay.io:
    tls-verify: false
    images:
        coreos/etcd:
            - latest
docker.io:
    images-by-semver:
        alpine: ">= 3.12.0"
"""
ZEROS = f"sha256:{64 * '0'}"


def test_yaml(tmp_path: Path) -> None:
    """What each key means; a tag that looks like a number stays what was written."""
    found = parse_list(YAML.format(folder=tmp_path))
    assert [str(image) for image in found.images] == [
        "registry.example.com/redis:1.0",
        "registry.example.com/redis:1.10",
        f"registry.example.com/redis@{ZEROS}",
        "quay.io/coreos/etcd:latest",
    ]
    assert [(choice.registry, str(choice.repository)) for choice in found.choices] == [
        ("registry.example.com", "busybox"),
        ("registry.example.com", "team/none"),
        ("registry.example.com", "nginx"),
        ("docker.io", "library/alpine"),
    ]
    tags = ["latest", "1.13.1-alpine-perl", "11.13.1-alpine-perl", "3.11", "3.20"]
    taken = [[tag for tag in tags if choice.takes(tag)] for choice in found.choices]
    assert taken == [tags, tags, ["1.13.1-alpine-perl"], ["3.20"]]
    assert found.sources == {
        "registry.example.com": Source(("john", "this is a secret"), True, tmp_path),
        "quay.io": Source(verify=False),
        "docker.io": Source(),
    }
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        f"# comment\n\nalpine\n  quay.io/a/b:1 # why\nlocalhost:5000/c@{ZEROS}\n",
        f"- alpine\n- quay.io/a/b:1\n- localhost:5000/c@{ZEROS}\n",
    ],
)
def test_plain(text: str) -> None:
    """One image a line, or a list of them."""
    images = [str(image) for image in parse_list(text).images]
    assert images == ["docker.io/library/alpine:latest", "quay.io/a/b:1", f"localhost:5000/c@{ZEROS}"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpine\nQuay.io/Team/App", "the list, line 2: 'Quay.io/Team/App' is not the name of an image"),
        ("quay.io:\n  image: {}", "the list: quay.io: image is not a key; allowed here: images, "),
        ("quay.io:\n  images: [a]", "the list: quay.io.images is a mapping"),
        ("quay.io:\n  images: {a: b}", "the list: quay.io.images.a is a list of tags and digests"),
        ("quay.io:\n  images: {a: ['b c']}", "'b c' is neither a tag nor a digest"),
        ("quay.io:\n  images: {'a:1': ['2']}", "'a:1' is a repository"),
        ("quay.io:\n  images: {A: ['2']}", "quay.io.images.A: 'quay.io/A' is not the name of an image"),
        ("team:\n  images: {a: ['2']}", "the list: team is not a registry's host"),
        ("quay.io:\n  images-by-tag-regex: {a: '('}", "'(' is not a regular expression"),
        ("quay.io:\n  images-by-semver: {a: 'new'}", "'new' is no condition on versions"),
        ("quay.io:\n  tls-verify: maybe", "quay.io.tls-verify is true or false"),
        ("quay.io: {}\nQuay.io: {}", "Quay.io is quay.io, which is there already"),
        ("docker.io: {}\nindex.docker.io: {}", "index.docker.io is docker.io, which is there already"),
        ("quay.io:\n  cert-dir: [a]", "quay.io.cert-dir: ['a'] is not a directory"),
        ('quay.io:\n  cert-dir: "a\\0b"', "quay.io.cert-dir: 'a\\x00b' is not a directory"),
        ("quay.io:\n  cert-dir: /nowhere", "quay.io.cert-dir: '/nowhere' is not a directory"),
        ("quay.io:\n  credentials: {username: john, passwort: s3cret}", "a username and a password"),
        ("quay.io: [", "is neither YAML as skopeo sync reads it nor one image a line"),
        ("a b\nc", "the list is a mapping"),
    ],
)
def test_wrong(text: str, words: str) -> None:
    """Each error names the place, and shows no password."""
    with pytest.raises(ConfigError) as error:
        parse_list(text)
    assert words in error.value.message
    assert "s3cret" not in error.value.message


def test_files(tmp_path: Path) -> None:
    """A file that is not there, is no text, or is too large."""
    with pytest.raises(ConfigError, match=r"absent cannot be read: No such file"):
        read_list(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        read_list(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"#" * (5 << 20))
    with pytest.raises(ConfigError, match="is larger than 4 MiB"):
        read_list(tmp_path / "huge")
    (tmp_path / "empty").write_text("# nothing\n")
    assert read_list(tmp_path / "empty").images == ()


@pytest.mark.parametrize("text", ["alpine:3\r\n# why\r\n", "docker.io:\r\n  images:\r\n    alpine: ['3']\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_of_other_systems(tmp_path: Path, text: str, mark: str) -> None:
    """Ends of lines and a mark at the beginning, as editors elsewhere write them, say nothing."""
    path = tmp_path / "images"
    path.write_bytes(f"{mark}{text}".encode())
    assert [str(image) for image in read_list(path).images] == ["docker.io/library/alpine:3"]


def test_no_warning_shows_a_password() -> None:
    """Of an anchor that is there twice YAML's reader would show the lines."""
    text = "quay.io:\n  images: &a {x: ['1']}\n  credentials:\n    username: &a ann\n    password: s3cret-word\n"
    assert parse_list(text).sources["quay.io"].login == ("ann", "s3cret-word")  # a warning would be an error
