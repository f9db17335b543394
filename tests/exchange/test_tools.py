"""Exchange with the tools themselves, in both directions: manifests and layers stay what they are, byte for byte."""

import gzip
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, generate
from tests.exchange.making import cached, contents, done, layout, links, read_folder, write_folder
from tests.fakes.registry import LyingUpstream
from tests.needs import needs_root, needs_tool

pytestmark = needs_tool("skopeo", package="skopeo")

IMAGE = generate(sizes=[3 * KIB, 40 * KIB], seed="tools")
NAME = "quay.io/team/app:1"
AMD64 = IMAGE.platforms["linux/amd64"]

type Tool = Callable[..., str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    done(data, "import", write_folder(tmp_path / "in", layout({NAME: IMAGE})))
    return data


def _tool(tmp_path: Path, *command: str) -> Tool:
    (tmp_path / "home").mkdir(exist_ok=True)
    env = os.environ | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "home")}

    def run(*arguments: object) -> str:
        line = [*command, *map(str, arguments)]
        ran = subprocess.run(line, check=False, env=env, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture
def skopeo(tmp_path: Path) -> Tool:
    return _tool(tmp_path, "skopeo", "--insecure-policy")


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Tool]:
    """podman with a storage of its own, at a short path as it wants it."""
    with tempfile.TemporaryDirectory(prefix="podman-") as folder:
        own = ["--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
        yield _tool(tmp_path, "podman", "--events-backend", "none", "--cgroup-manager", "cgroupfs", *own)


def _in_folder(folder: Path) -> dict[str, bytes]:
    """The contents of a `dir:` by their digests."""
    files = {name: content for name, content in read_folder(folder).items() if name != "version"}
    return {f"sha256:{hashlib.sha256(content).hexdigest()}": content for content in files.values()}


@pytest.mark.parametrize("form", ["oci", "tar", "dir"])
def test_skopeo_reads_an_export(tmp_path: Path, data: Path, skopeo: Tool, form: str) -> None:
    """All platforms by the image's own name, out of a layout, an archive and a folder."""
    out = tmp_path / ("out.tar" if form == "tar" else "out")
    done(data, "export", "--all", "--format", "dir" if form == "dir" else "oci", "-o", out)
    source = {"oci": f"oci:{out}:{NAME}", "tar": f"oci-archive:{out}:{NAME}", "dir": f"dir:{out}/{NAME}"}[form]
    skopeo("copy", "--all", "--preserve-digests", source, f"dir:{tmp_path}/copy")
    assert _in_folder(tmp_path / "copy") == contents(IMAGE)


@pytest.mark.parametrize("form", ["oci", "oci-archive", "dir"])
def test_skopeo_writes_for_an_import(tmp_path: Path, data: Path, skopeo: Tool, form: str) -> None:
    """What skopeo copies is here as it was, with its name where skopeo keeps one."""
    done(data, "export", NAME, "-o", tmp_path / "out")
    place = f"{tmp_path}/copied"
    target = f"dir:{place}" if form == "dir" else f"{form}:{place}:{NAME}"
    skopeo("copy", "--all", "--preserve-digests", f"oci:{tmp_path}/out:{NAME}", target)
    named = ["--name", NAME] if form == "dir" else []
    done(tmp_path / "far", "import", place, *named)
    assert cached(tmp_path / "far") == contents(IMAGE)
    assert "quay.io/team/app/_tags/1/any" in links(tmp_path / "far")
    if form == "oci-archive":
        done(tmp_path / "piped", "import", "-", stdin=Path(place).read_bytes())
        assert cached(tmp_path / "piped") == contents(IMAGE)


@needs_root()
@needs_tool("podman", package="podman")
def test_a_part_is_read(tmp_path: Path, skopeo: Tool, podman: Tool) -> None:
    """Of an index with one platform missing skopeo and podman take the other, by the digests that it has upstream."""
    gone = f"blobs/sha256/{IMAGE.platforms['linux/arm64'].digest[7:]}"
    files = {name: content for name, content in layout({NAME: IMAGE}).items() if name != gone}
    done(tmp_path / "data", "import", write_folder(tmp_path / "in", files))
    done(tmp_path / "data", "export", NAME, "--partial", "-o", tmp_path / "out.tar")
    source = f"oci-archive:{tmp_path}/out.tar:{NAME}"
    skopeo("--override-os", "linux", "--override-arch", "amd64", "copy", source, f"dir:{tmp_path}/copy")
    assert (tmp_path / "copy/manifest.json").read_bytes() == AMD64.body
    podman("pull", "--quiet", "--platform", "linux/amd64", source)
    (seen,) = json.loads(podman("image", "inspect", NAME))
    assert f"sha256:{seen['Id']}" == json.loads(AMD64.body)["config"]["digest"]


def test_skopeo_sync(tmp_path: Path, skopeo: Tool) -> None:
    """A tree of `skopeo sync --scoped --all`, from a registry: each folder's place is its name."""
    (tmp_path / "upstream").mkdir()
    with LyingUpstream(tmp_path / "upstream", name="127.0.0.1", storage_name="localhost", clear=True) as upstream:
        upstream.registry.put("team/app", IMAGE, "1")
        upstream.registry.put("team/app", generate(sizes=[KIB], seed="two"), "2")
        place = upstream.registry.url().partition("//")[2]
        flags = ["--src-tls-verify=false", "--src", "docker", "--dest", "dir", "--scoped", "--all"]
        skopeo("sync", *flags, f"{place}/team/app", tmp_path / "tree")
    done(tmp_path / "far", "import", tmp_path / "tree")
    assert {f"{place}/team/app/_tags/1/any", f"{place}/team/app/_tags/2/any"} <= links(tmp_path / "far")
    assert contents(IMAGE).items() <= cached(tmp_path / "far").items()


def _check_made(data: Path, tag: str) -> None:
    """An image of which a manifest was made has its configuration and diff IDs as they were."""
    link = json.loads((data / "links" / tag).read_text())
    made, original = json.loads(cached(data)[link["digest"]]), json.loads(AMD64.body)
    assert made["config"]["digest"] == original["config"]["digest"]
    diff_ids = json.loads(cached(data)[made["config"]["digest"]])["rootfs"]["diff_ids"]
    layers = [cached(data)[layer["digest"]] for layer in made["layers"]]
    assert [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers] == diff_ids
    assert [f"sha256:{hashlib.sha256(gzip.decompress(contents(IMAGE)[one['digest']])).hexdigest()}"
            for one in original["layers"]] == diff_ids  # fmt: skip


def test_skopeos_docker_archive(tmp_path: Path, data: Path, skopeo: Tool) -> None:
    """docker-archive: has no manifest; the image is the same one all the same."""
    done(data, "export", NAME, "-o", tmp_path / "out")
    chosen = ["--override-os", "linux", "--override-arch", "amd64"]
    skopeo(*chosen, "copy", f"oci:{tmp_path}/out:{NAME}", f"docker-archive:{tmp_path}/a.tar:{NAME}")
    done(tmp_path / "far", "import", tmp_path / "a.tar")
    _check_made(tmp_path / "far", "quay.io/team/app/_tags/1/any")
    done(tmp_path / "piped", "import", "-", stdin=(tmp_path / "a.tar").read_bytes())
    assert links(tmp_path / "piped") == links(tmp_path / "far")


@needs_root()
@needs_tool("podman", package="podman")
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "docker-dir", "oci-dir"])
def test_podman(tmp_path: Path, data: Path, podman: Tool, form: str) -> None:
    """podman takes an export by its name and gives it back by `podman save` in each of its forms."""
    done(data, "export", NAME, "-o", tmp_path / "out.tar")
    podman("pull", "--quiet", "--platform", "linux/amd64", f"oci-archive:{tmp_path}/out.tar:{NAME}")
    (seen,) = json.loads(podman("image", "inspect", NAME))
    config = json.loads(AMD64.body)["config"]["digest"]
    assert f"sha256:{seen['Id']}" == config
    saved = tmp_path / ("saved" if form.endswith("dir") else "saved.tar")
    podman("save", "--quiet", "--format", form, "-o", saved, NAME)
    done(tmp_path / "far", "import", saved, *([] if form == "docker-archive" else ["--name", NAME]))
    link = json.loads((tmp_path / "far/links/quay.io/team/app/_tags/1/any").read_text())
    manifest = json.loads(cached(tmp_path / "far")[link["digest"]])
    assert manifest["config"]["digest"] == config
    if form == "docker-archive":
        _check_made(tmp_path / "far", "quay.io/team/app/_tags/1/any")


@needs_root()
@needs_tool("podman", package="podman")
def test_podman_loads_an_export(tmp_path: Path, data: Path, podman: Tool) -> None:
    """`podman load` of an archive with one image, whose name it keeps."""
    done(data, "export", NAME, "-o", tmp_path / "out.tar")
    podman("load", "--quiet", "--input", tmp_path / "out.tar")
    assert NAME in json.loads(podman("image", "inspect", NAME))[0]["RepoTags"]
