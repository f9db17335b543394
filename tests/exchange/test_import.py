"""`mitm-cache import`: what other tools write arrives byte for byte, under its name, and all of it or nothing."""

import gzip
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import IO

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.evict import is_old
from mitm_cache.cache.index import Index
from mitm_cache.cache.layout import open_layout
from mitm_cache.cache.links import Links
from mitm_cache.cache.pushed import Pushed
from mitm_cache.cache.spool import Spool
from mitm_cache.config import load
from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.exchange.arriving import Lading
from mitm_cache.exchange.incoming import Import
from tests.exchange.making import (
    CONTAINERD_NAME,
    Files,
    blob,
    cached,
    contents,
    docker_archive,
    done,
    layout,
    links,
    referrer,
    refused,
    run,
    write_folder,
    write_tar,
)
from tests.needs import needs_root

IMAGE = generate(sizes=[3 * KIB, 40 * KIB], seed="one")
OTHER = generate(sizes=[3 * KIB], platforms=["linux/amd64"], seed="other")
NAME, OTHER_NAME = "quay.io/team/app:1", "ghcr.io/team/other:2"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_layout_of_several_images(tmp_path: Path, data: Path, form: str) -> None:
    """Each is there under its own name, with all of its platforms, and every link says that it was imported."""
    files = layout({NAME: IMAGE, OTHER_NAME: OTHER})
    path = write_tar(tmp_path / "a.tar", files) if form == "tar" else write_folder(tmp_path / "a", files)
    said = json.loads(done(data, "import", path, "--json").stdout)
    assert {one["name"]: one["digest"] for one in said["images"]} == {
        NAME: IMAGE.index.digest,
        OTHER_NAME: OTHER.index.digest,
    }
    assert cached(data) == contents(IMAGE) | contents(OTHER)
    assert {"quay.io/team/app/_tags/1/any", "ghcr.io/team/other/_tags/2/any"} <= links(data)
    held = {name.rpartition("/")[2] for name in links(data) if "team/app/_digests" in name}
    assert held == {digest.replace(":", "-") for digest in contents(IMAGE)}
    for name in links(data):
        assert json.loads((data / "links" / name).read_text())["origin"] == "imported"
    assert list((data / "spool").iterdir()) == []


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_one_image_by_several_names(tmp_path: Path, data: Path, form: str) -> None:
    """Tags that are the same image in one repository all arrive, and so does a platform with a tag of its own."""
    files = layout({NAME: IMAGE, "quay.io/team/app:latest": IMAGE})
    index = json.loads(files["index.json"])
    part = json.loads(IMAGE.index.body)["manifests"][0]
    index["manifests"].append(part | {"annotations": {CONTAINERD_NAME: "quay.io/team/app:part"}})
    files["index.json"] = json.dumps(index).encode()
    path = write_tar(tmp_path / "a.tar", files) if form == "tar" else write_folder(tmp_path / "a", files)
    said = json.loads(done(data, "import", path, "--json").stdout)
    assert [(one["name"], one["digest"]) for one in said["images"]] == [
        (NAME, IMAGE.index.digest),
        ("quay.io/team/app:latest", IMAGE.index.digest),
        ("quay.io/team/app:part", part["digest"]),
    ]
    assert {f"quay.io/team/app/_tags/{tag}/any" for tag in ("1", "latest", "part")} <= links(data)


def test_again_writes_nothing(tmp_path: Path, data: Path) -> None:
    """What is here is not written twice."""
    path = write_folder(tmp_path / "a", layout({NAME: IMAGE}))
    done(data, "import", path)
    assert json.loads(done(data, "import", path, "--json").stdout)["blobs"] == 0


def test_an_older_idea_of_a_tag_gives_way(tmp_path: Path, data: Path) -> None:
    """What a tag was before, for any client, is forgotten with the import of a newer one."""
    done(data, "import", write_folder(tmp_path / "a", layout({NAME: OTHER})))
    tag = data / "links/quay.io/team/app/_tags/1"
    shutil.copy(tag / "any", tag / "0123456789abcdef")
    done(data, "import", write_folder(tmp_path / "b", layout({NAME: IMAGE})))
    assert [path.name for path in tag.iterdir()] == ["any"]
    assert json.loads((tag / "any").read_text())["digest"] == IMAGE.index.digest


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("alpine:3", "docker.io/library/alpine"),
        ("index.docker.io/team/app:3", "docker.io/team/app"),
        ("k8s.gcr.io/pause:3", "registry.k8s.io/pause"),
        ("localhost:5000/app:3", "localhost:5000/app"),
    ],
)
def test_names_are_as_people_write_them(tmp_path: Path, data: Path, written: str, meant: str) -> None:
    """Short names are Docker Hub's, and aliases lead to their registry."""
    done(data, "import", write_folder(tmp_path / "a", layout({written: OTHER})))
    assert f"{meant}/_tags/3/any" in links(data)


def test_an_image_without_a_name(tmp_path: Path, data: Path) -> None:
    """A tag alone is no name; --name gives one."""
    path = write_folder(tmp_path / "a", layout({"x:latest": OTHER}, bare=True))
    assert "--name REGISTRY/REPOSITORY:TAG" in refused(data, "import", path)
    assert links(data) == set()
    done(data, "import", path, "--name", "quay.io/team/app:9")
    assert "quay.io/team/app/_tags/9/any" in links(data)


def test_one_name_is_not_for_two(tmp_path: Path, data: Path) -> None:
    """--name of an archive with two images without a name is refused."""
    path = write_folder(tmp_path / "a", layout({"x:a": IMAGE, "x:b": OTHER}, bare=True))
    assert "2 have no name" in refused(data, "import", path, "--name", "quay.io/team/app:9")


def test_a_registry_that_is_not_served(tmp_path: Path, data: Path) -> None:
    """Its images arrive, and what is to be configured is said."""
    path = write_folder(tmp_path / "a", layout({"private.example.com/app:1": OTHER}))
    assert '[registries."private.example.com"]' in done(data, "import", path).stderr
    path = write_folder(tmp_path / "b", layout({"local/app:1": OTHER}))
    assert "set names below [local]" in done(data, "import", path).stderr


def test_referrers_come_along(tmp_path: Path, data: Path) -> None:
    """A manifest without a name belongs where what it refers to is: a signature, and one of the signature."""
    first, files = referrer(IMAGE.index.digest, len(IMAGE.index.body))
    second, _ = referrer(f"sha256:{hashlib.sha256(first).hexdigest()}", len(first), "application/vnd.example.more")
    done(data, "import", write_folder(tmp_path / "a", layout({NAME: IMAGE}, referring=(second, first)) | files))
    for content in (first, second):
        assert f"quay.io/team/app/_digests/sha256-{hashlib.sha256(content).hexdigest()}" in links(data)


def _without(image: Image, platform: str, *, layers: bool = False) -> set[str]:
    """The files of one platform: its manifest, or its layers."""
    manifest = image.platforms[platform]
    document = json.loads(manifest.body)
    digests = [layer["digest"] for layer in document["layers"]] if layers else [manifest.digest]
    return {f"blobs/sha256/{digest.partition(':')[2]}" for digest in digests}


@pytest.mark.parametrize("layers", [False, True])
def test_a_platform_that_is_not_there(tmp_path: Path, data: Path, layers: bool) -> None:
    """ctr and Docker write the index and one platform: that one arrives, and the other is named."""
    gone = _without(IMAGE, "linux/arm64", layers=layers)
    files = {name: content for name, content in layout({NAME: IMAGE}).items() if name not in gone}
    result = done(data, "import", write_folder(tmp_path / "a", files))
    assert "not in it: quay.io/team/app:1: linux/arm64 sha256:" in result.stderr
    assert IMAGE.platforms["linux/amd64"].digest in cached(data)


def test_no_platform_is_whole(tmp_path: Path, data: Path) -> None:
    """An image that nobody could run is refused, and the first thing that is missing named."""
    gone = _without(IMAGE, "linux/arm64") | _without(IMAGE, "linux/amd64", layers=True)
    files = {name: content for name, content in layout({NAME: IMAGE}).items() if name not in gone}
    assert "is not whole: quay.io/team/app:1: linux/amd64 sha256:" in refused(
        data, "import", write_folder(tmp_path / "a", files)
    )
    assert links(data) == set()
    assert cached(data) == {}


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_of_docker_save(tmp_path: Path, data: Path, packed: bool) -> None:
    """The manifest that is made has the configuration as it was, and layers that unpack to its diff IDs."""
    files = docker_archive(IMAGE, ["app:1", "quay.io/team/app:1"], packed=packed)
    path = write_tar(tmp_path / "a.tar", files)
    said = json.loads(done(data, "import", path, "--json").stdout)
    assert [one["name"] for one in said["images"]] == ["docker.io/library/app:1", "quay.io/team/app:1"]
    (digest,) = {one["digest"] for one in said["images"]}
    made = json.loads(cached(data)[digest])
    original = json.loads(IMAGE.platforms["linux/amd64"].body)
    assert made["config"]["digest"] == original["config"]["digest"]
    config = json.loads(cached(data)[made["config"]["digest"]])
    layers = [cached(data)[layer["digest"]] for layer in made["layers"]]
    unpacked = [gzip.decompress(layer) if packed else layer for layer in layers]
    assert [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in unpacked] == config["rootfs"]["diff_ids"]
    assert all(layer["mediaType"].endswith("tar+gzip" if packed else "v1.tar") for layer in made["layers"])

    again = tmp_path / "again"
    done(again, "import", path)
    assert cached(again).keys() == cached(data).keys()  # always the same manifest


def test_layers_by_links(tmp_path: Path, data: Path) -> None:
    """A layer that occurs twice is a link in archives of docker and podman: another name, and no path."""
    files = docker_archive(IMAGE, ["quay.io/team/app:1"])
    files["x/real.tar"] = files.pop("1/layer.tar")
    link = tarfile.TarInfo("1/layer.tar")
    link.type, link.linkname = tarfile.SYMTYPE, "../x/real.tar"
    done(data, "import", write_tar(tmp_path / "a.tar", files, link))
    assert "quay.io/team/app/_tags/1/any" in links(data)


def _dir(image: Image) -> Files:
    """As skopeo's dir: has it."""
    files = {digest.partition(":")[2]: content for digest, content in contents(image).items()}
    top = image.index.digest.partition(":")[2]
    files["manifest.json"] = files.pop(top)
    for manifest in image.platforms.values():
        name = manifest.digest.partition(":")[2]
        files[f"{name}.manifest.json"] = files.pop(name)
    return files | {"version": b"Directory Transport Version: 1.1\n"}


def test_a_folder_of_skopeo(tmp_path: Path, data: Path) -> None:
    """One image, which has no name of its own."""
    path = write_folder(tmp_path / "a", _dir(IMAGE))
    assert "nothing says the name" in refused(data, "import", path)
    done(data, "import", path, "--name", NAME)
    assert cached(data) == contents(IMAGE)


def test_a_tree_of_skopeo_sync(tmp_path: Path, data: Path) -> None:
    """With --scoped each folder's place is its image's name; several folders may be given."""
    write_folder(tmp_path / "a" / "quay.io/team/app:1", _dir(IMAGE))
    write_folder(tmp_path / "a" / "localhost:5000/other:2", _dir(OTHER))
    write_folder(tmp_path / "b" / f"ghcr.io/other@{OTHER.index.digest}", _dir(OTHER))
    done(data, "import", tmp_path / "a", tmp_path / "b")
    assert {"quay.io/team/app/_tags/1/any", "localhost:5000/other/_tags/2/any"} <= links(data)
    assert f"ghcr.io/other/_digests/{OTHER.index.digest.replace(':', '-')}" in links(data)


def test_a_download_that_somebody_has_left(tmp_path: Path, data: Path) -> None:
    """A part file of a process that was killed is carried on where it is right, and thrown away where it is not."""
    path = write_folder(tmp_path / "a", layout({NAME: IMAGE}))
    done(data, "import", write_folder(tmp_path / "b", layout({OTHER_NAME: OTHER})))
    good, bad, *_ = sorted(digest for digest in IMAGE.blobs)
    for digest, start in ((good, contents(IMAGE)[good][:100]), (bad, b"wrong")):
        part = data / "spool" / f"{digest.replace(':', '-')}.part"
        part.write_bytes(start)
        part.chmod(0o600)
    done(data, "import", path)
    assert cached(data) == contents(IMAGE) | contents(OTHER)
    assert list((data / "spool").iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for it: nothing is visible, and the message says why."""
    monkeypatch.setenv("MITM_CACHE_CACHE_MIN_FREE", "100%")
    path = write_folder(tmp_path / "a", layout({NAME: IMAGE}))
    assert "the disk is full" in refused(data, "import", path)
    assert links(data) == set()


def test_nothing_is_evicted_while_it_is_named(tmp_path: Path, data: Path) -> None:
    """What was brought long ago, in an import that takes its time, is young when it is linked: no sweep takes it."""
    path = write_folder(tmp_path / "a", layout({NAME: IMAGE}))
    layout_ = open_layout(data)
    index = Index(layout_.index)
    blobs = Blobs(layout_.blobs)
    taking = Import(
        blobs=blobs,
        links=Links(layout_.links, index),
        spool=Spool(layout_.spool, blobs),
        pushed=Pushed(index),
        drafts=layout_.spool,
    )
    lading = Lading([path])
    try:
        arrivals = lading.arrivals(load(file=Path("/dev/null")).known, taking.own)
        taking.take(taking.missing(arrivals), "a")
        before = time.time() - 2400
        for blob_ in (data / "blobs").glob("*/*/*"):
            os.utime(blob_, (before, before))
        taking.publish(arrivals)
    finally:
        lading.close()
        index.close()
    assert not any(is_old(blob_.stat().st_mtime, time.time()) for blob_ in (data / "blobs").glob("*/*/*"))


def test_a_manifest_that_is_none(tmp_path: Path, data: Path) -> None:
    """An index that lists a layer which is here, of any size, as a manifest does not have it read into memory."""
    big = b"x" * ((4 << 20) + 1)
    path, _ = blob(big)
    files = layout({NAME: IMAGE}) | {path: big}
    found = json.loads(files["index.json"])
    manifest = json.loads(IMAGE.platforms["linux/amd64"].body)
    kind = "application/vnd.oci.image.layer.v1.tar"
    digest = f"sha256:{path.rpartition('/')[2]}"
    manifest["layers"].append({"mediaType": kind, "digest": digest, "size": len(big)})
    name, content = blob(json.dumps(manifest).encode())
    described = {"mediaType": manifest["mediaType"], "digest": f"sha256:{name[-64:]}", "size": len(content)}
    found["manifests"] = [described | {"annotations": {CONTAINERD_NAME: NAME}}]
    files |= {name: content, "index.json": json.dumps(found).encode()}
    done(data, "import", write_folder(tmp_path / "a", files))
    lie = {"mediaType": manifest["mediaType"], "digest": digest, "size": 10}
    found["manifests"] = [lie | {"annotations": {CONTAINERD_NAME: "quay.io/team/app:2"}}]
    del files[path]
    files["index.json"] = json.dumps(found).encode()
    assert "4,194,304 are allowed" in refused(data, "import", write_folder(tmp_path / "b", files))


def test_a_tree_of_many_images(tmp_path: Path, data: Path) -> None:
    """It takes as many descriptors as one image does."""
    for number in range(80):
        write_folder(tmp_path / "tree" / f"quay.io/team/app:{number}", _dir(OTHER))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        said = json.loads(done(data, "import", tmp_path / "tree", "--json").stdout)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(said["images"]) == 80


def test_private_content_is_not_lent(tmp_path: Path, data: Path) -> None:
    """What clients have pulled into another repository is not given to an archive that merely names it."""
    done(data, "import", write_folder(tmp_path / "a", layout({NAME: IMAGE})))
    for name in links(data):  # as clients' pulls would have it
        path = data / "links" / name
        path.write_text(path.read_text().replace('"imported"', '"pulled"'))
    shutil.rmtree(data / "index")
    manifests = {blob(manifest.body)[0] for manifest in IMAGE.manifests.values()}
    files = layout({"docker.io/mallory/app:1": IMAGE})
    thief = {name: content for name, content in files.items() if not name.startswith("blobs") or name in manifests}
    assert "is not whole" in refused(data, "import", write_folder(tmp_path / "b", thief))
    files |= {name: bytes(len(content)) for name, content in files.items() if name not in thief}
    for path in (write_folder(tmp_path / "lies", files), write_tar(tmp_path / "lies.tar", files)):
        assert "is something else, or damaged" in refused(data, "import", path)
    assert "is something else, or damaged" in refused(data, "import", "-", stdin=path.read_bytes())
    assert not any(name.startswith("docker.io/") for name in links(data))
    assert cached(data) == contents(IMAGE)
    assert '"blobs": 0' in done(data, "import", write_folder(tmp_path / "c", layout({NAME: IMAGE})), "--json").stdout
    done(data, "import", tmp_path / "b")  # now the operator has brought it


def test_memory_does_not_grow_with_the_image(tmp_path: Path, data: Path) -> None:
    """A layer of 300 MB goes in and out with less than 100 MB of memory."""
    files = docker_archive(IMAGE, [NAME])
    size = 300_000_000
    archive = tmp_path / "a.tar"
    zeros = hashlib.sha256()
    for _ in range(300):
        zeros.update(bytes(1_000_000))
    config = json.loads(files[json.loads(files["manifest.json"])[0]["Config"]])
    config["rootfs"]["diff_ids"] = [f"sha256:{zeros.hexdigest()}"]
    text = json.dumps(config).encode()
    entry = {"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}
    write_tar(archive, {"config.json": text, "manifest.json": json.dumps([entry]).encode()})
    with tarfile.open(archive, "a") as tar, Path("/dev/zero").open("rb") as source:
        member = tarfile.TarInfo("layer.tar")
        member.size = size
        tar.addfile(member, source)
    with archive.open("rb") as stream:
        assert _peak(tmp_path / "other", "import", "-", stdin=stream) < 100 << 20
    assert list((tmp_path / "other" / "spool").iterdir()) == []
    assert _peak(data, "import", archive) < 100 << 20
    assert _peak(data, "export", NAME, "-o", tmp_path / "b.tar") < 100 << 20
    assert (tmp_path / "b.tar").stat().st_size > size


def _peak(data: Path, *arguments: object, stdin: IO[bytes] | None = None) -> int:
    """The most memory, in bytes, that a command has had in a process of its own."""
    # Not what wait4 says: that counts the memory of the process which started it.
    program = (
        "import re, sys; from mitm_cache.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", program, "--data-dir", str(data), *map(str, arguments)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, stdin=stdin).stdout
    return int(said.splitlines()[-1]) * 1024


@needs_root()
def test_another_users_directory(tmp_path: Path, data: Path) -> None:
    """Files that the service could not use are not written."""
    done(data, "import", write_folder(tmp_path / "a", layout({NAME: IMAGE})))
    os.chown(data, 12345, 12345)
    assert "run it as its user, sudo -u '#12345'" in refused(data, "import", tmp_path / "a")
    assert run(data, "export", "--all", "-o", tmp_path / "out").exit_code == 0  # which only reads


@pytest.mark.parametrize("rootfs", [{"type": "layers"}, {"type": "layers", "diff_ids": None}])
def test_an_image_without_layers(tmp_path: Path, data: Path, rootfs: dict[str, object]) -> None:
    """FROM scratch and nothing more: docker leaves out the list of layers where it is empty."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    entry = {"Config": name, "RepoTags": ["empty:1"], "Layers": None}
    done(data, "import", write_tar(tmp_path / "a.tar", {"manifest.json": json.dumps([entry]).encode(), name: config}))
    assert config in cached(data).values()
