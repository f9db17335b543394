"""`mitm-cache export`: what is cached leaves byte for byte, with names that other tools read, and never by halves."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import override

import pytest

from mitm_cache.cache.entry import Link
from mitm_cache.demo.image import KIB, MIB, Image, assemble, generate, layer
from mitm_cache.exchange.outgoing import Form, gather, write
from mitm_cache.exchange.shelf import Shelf
from mitm_cache.exchange.target import open_target
from mitm_cache.oci.image import Image as Name
from mitm_cache.oci.reference import Repository, Tag
from tests.exchange.making import (
    CONTAINERD_NAME,
    REF_NAME,
    cached,
    contents,
    done,
    layout,
    links,
    read_folder,
    read_tar,
    referrer,
    refused,
    write_folder,
)
from tests.fakes.registry import LyingUpstream
from tests.needs import needs_root
from tests.serving import in_thread

IMAGE = generate(sizes=[3 * KIB, 40 * KIB], seed="one")
OTHER = generate(sizes=[3 * KIB], platforms=["linux/amd64"], seed="other")
NAME, OTHER_NAME = "quay.io/team/app:1", "ghcr.io/team/other:2"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A cache with two images."""
    data = tmp_path / "data"
    done(data, "import", write_folder(tmp_path / "in", layout({NAME: IMAGE, OTHER_NAME: OTHER})))
    return data


def _index(files: dict[str, bytes]) -> dict[str, str]:
    """The names of an index.json with their digests."""
    found = {}
    for entry in json.loads(files["index.json"])["manifests"]:
        notes = entry.get("annotations", {})
        assert notes.get(REF_NAME) == notes.get(CONTAINERD_NAME)
        found[notes.get(REF_NAME, entry["digest"])] = entry["digest"]
    return found


def _blobs(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name[6:].replace("/", ":"): content for name, content in files.items() if name.startswith("blobs/")}


@pytest.mark.parametrize("form", ["folder", "tar", "stream"])
def test_a_layout(tmp_path: Path, data: Path, form: str) -> None:
    """Every blob, an index with the whole names in both annotations, and an inventory with every size."""
    out = tmp_path / ("out.tar" if form == "tar" else "out")
    result = done(data, "export", "--all", "-o", "-" if form == "stream" else out)
    if form == "stream":
        out.write_bytes(result.stdout_bytes)
    files = read_folder(out) if form == "folder" else read_tar(out)
    assert _index(files) == {NAME: IMAGE.index.digest, OTHER_NAME: OTHER.index.digest}
    assert _blobs(files) == contents(IMAGE) | contents(OTHER)
    listed = json.loads(files["mitm-cache.json"])
    assert listed["blobs"] == {digest: len(content) for digest, content in _blobs(files).items()}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    done(tmp_path / "back", "import", out)
    assert cached(tmp_path / "back") == cached(data)
    assert links(tmp_path / "back") == links(data)


def test_the_same_images_give_the_same_archive(tmp_path: Path, data: Path) -> None:
    """Nothing in it is of this hour or this machine."""
    for name in ("a.tar", "b.tar"):
        done(data, "export", NAME, "-o", tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_skopeos_folders(tmp_path: Path, data: Path) -> None:
    """--format dir: a folder for each image, named after it."""
    done(data, "export", "--all", "--format", "dir", "-o", tmp_path / "out")
    files = read_folder(tmp_path / "out")
    assert files[f"{NAME}/manifest.json"] == IMAGE.index.body
    child = IMAGE.platforms["linux/arm64"]
    assert files[f"{NAME}/{child.digest[7:]}.manifest.json"] == child.body
    done(tmp_path / "back", "import", tmp_path / "out")
    assert cached(tmp_path / "back") == cached(data)


def test_one_image_of_two(tmp_path: Path, data: Path) -> None:
    """By the name that people write, or by a digest."""
    done(data, "export", NAME, "-o", tmp_path / "a")
    assert _blobs(read_folder(tmp_path / "a")) == contents(IMAGE)
    by_digest = f"ghcr.io/team/other@{OTHER.index.digest}"
    done(data, "export", by_digest, "-o", tmp_path / "b")
    assert _index(read_folder(tmp_path / "b")) == {by_digest: OTHER.index.digest}


def test_what_is_not_cached(tmp_path: Path, data: Path) -> None:
    """Names the image, and leaves no file."""
    assert "quay.io/team/none:1 is not cached" in refused(data, "export", "quay.io/team/none:1", "-o", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_nothing_is_overwritten(tmp_path: Path, data: Path) -> None:
    """A file, or a folder that holds something, is somebody's."""
    (tmp_path / "a.tar").write_bytes(b"mine")
    assert "is there already" in refused(data, "export", "--all", "-o", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == b"mine"
    assert "not empty" in refused(data, "export", "--all", "-o", tmp_path / "in")
    (tmp_path / "empty").mkdir()
    done(data, "export", "--all", "-o", tmp_path / "empty")


def test_a_damaged_blob(tmp_path: Path, data: Path) -> None:
    """Every byte is hashed on its way: what is damaged does not travel, and no file has the final name."""
    victim = next(digest for digest in IMAGE.blobs)
    path = data / "blobs/sha256" / victim[7:9] / victim[7:]
    path.write_bytes(bytes(path.stat().st_size))
    for out in (tmp_path / "a", tmp_path / "a.tar"):
        assert f"the cached {victim} is damaged" in refused(data, "export", "--all", "-o", out)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "in"}


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    (tmp_path / "upstream").mkdir()
    with LyingUpstream(tmp_path / "upstream") as upstream:
        upstream.registry.put("team/app", IMAGE, "1")
        yield upstream


def _pulled(data: Path, upstream: LyingUpstream, *targets: str) -> str:
    """A cache in which a client has pulled these, and the image's name."""
    with in_thread(data, upstream) as cache, cache.client() as client:
        for target in targets:
            assert client.get(f"/v2/team/app/{target}").status == 200
    return f"{upstream.registry.name}/team/app:1"


def _targets(image: Image, platform: str) -> list[str]:
    document = json.loads(image.platforms[platform].body)
    blobs = [document["config"], *document["layers"]]
    return [f"manifests/{image.platforms[platform].digest}", *(f"blobs/{blob['digest']}" for blob in blobs)]


def test_one_platform_was_pulled(tmp_path: Path, upstream: LyingUpstream) -> None:
    """An index of which one image is here is an error that names the others, unless --partial takes what is here."""
    data = tmp_path / "pulled"
    name = _pulled(data, upstream, "manifests/1", *_targets(IMAGE, "linux/amd64"))
    said = refused(data, "export", name, "-o", tmp_path / "a")
    assert f"{name}: linux/arm64 {IMAGE.platforms['linux/arm64'].digest}" in said
    assert "--partial" in said
    assert not (tmp_path / "a").exists()
    result = done(data, "export", name, "--partial", "-o", tmp_path / "a")
    assert "not cached, left out" in result.stderr
    files = read_folder(tmp_path / "a")
    assert _index(files)[name] == IMAGE.index.digest
    assert IMAGE.platforms["linux/arm64"].digest not in _blobs(files)
    assert [one["platform"] for one in json.loads(files["mitm-cache.json"])["missing"]] == ["linux/arm64"]
    assert "not in it" in done(tmp_path / "back", "import", tmp_path / "a").stderr


def test_nothing_is_whole(tmp_path: Path, upstream: LyingUpstream) -> None:
    """Where no platform could be run --partial does not help, and --all leaves the image out."""
    data = tmp_path / "pulled"
    name = _pulled(data, upstream, "manifests/1", *_targets(IMAGE, "linux/amd64")[:-1])
    assert "nothing of it is whole" in refused(data, "export", name, "--partial", "-o", tmp_path / "a")
    assert "there is nothing to export" in refused(data, "export", "--all", "--partial", "-o", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def _updated() -> tuple[Image, Image]:
    """An image, and the next one, of which the last layer is another."""
    base = [layer("base", 2 * MIB), layer("middle", MIB)]
    first, second = ([*base, layer(seed, 100 * KIB)] for seed in ("first", "second"))
    return assemble({"linux/amd64": first}), assemble({"linux/amd64": second})


@pytest.mark.parametrize("since", ["folder", "tar", "inventory", "foreign"])
def test_a_delta(tmp_path: Path, since: str) -> None:
    """--since holds the new layer and the new manifests, and says what it needs; alone it is refused."""
    first, second = _updated()
    data, far = tmp_path / "data", tmp_path / "far"
    done(data, "import", write_folder(tmp_path / "one", layout({NAME: first, OTHER_NAME: OTHER})))
    whole = tmp_path / ("whole.tar" if since == "tar" else "whole")
    done(data, "export", "--all", "-o", whole)
    done(data, "import", write_folder(tmp_path / "two", layout({NAME: second})))

    earlier = {"inventory": whole / "mitm-cache.json", "foreign": tmp_path / "one"}.get(since, whole)
    said = json.loads(done(data, "export", "--all", "--since", earlier, "-o", tmp_path / "delta", "--json").stdout)
    files = _blobs(read_folder(tmp_path / "delta"))
    new = contents(second).keys() - contents(first).keys()
    extra = {OTHER.index.digest, first.index.digest} if since == "foreign" else set()  # it tells no names
    assert files.keys() == new | extra
    assert said["bytes"] == sum(map(len, files.values())) < 120 * KIB
    before = f"quay.io/team/app@{first.index.digest}"
    assert said["unchanged"] == ([] if since == "foreign" else [OTHER_NAME, before])

    assert "import that one first" in refused(far, "import", tmp_path / "delta")
    done(far, "import", whole)
    done(far, "import", tmp_path / "delta")
    tag = json.loads((far / "links/quay.io/team/app/_tags/1/any").read_text())
    assert tag["digest"] == second.index.digest
    assert contents(second).items() <= cached(far).items()


def test_a_delta_of_a_delta(tmp_path: Path) -> None:
    """The third export needs what the two before it hold, and says so."""
    first, second = _updated()
    data, far = tmp_path / "data", tmp_path / "far"
    for number, images in enumerate(({NAME: first}, {NAME: second}, {OTHER_NAME: OTHER})):
        done(data, "import", write_folder(tmp_path / f"in{number}", layout(images)))
        since = ["--since", tmp_path / f"out{number - 1}.tar"] if number else []
        done(data, "export", "--all", *since, "-o", tmp_path / f"out{number}.tar")
    listed = json.loads(read_tar(tmp_path / "out2.tar")["mitm-cache.json"])
    before = f"quay.io/team/app@{first.index.digest}"
    assert listed["known"] == {NAME: second.index.digest, before: first.index.digest, OTHER_NAME: OTHER.index.digest}
    assert listed["blobs"].keys() == contents(OTHER).keys()
    assert listed["needs"].keys() == (contents(first) | contents(second)).keys()
    for number in range(3):
        done(far, "import", tmp_path / f"out{number}.tar")
    assert cached(far) == cached(data)


def test_nothing_new(tmp_path: Path, data: Path) -> None:
    """A delta without anything new is an archive all the same: a script need not look."""
    done(data, "export", "--all", "-o", tmp_path / "a")
    said = json.loads(done(data, "export", "--all", "--since", tmp_path / "a", "-o", tmp_path / "b", "--json").stdout)
    assert said["blobs"] == 0
    assert said["unchanged"] == [OTHER_NAME, NAME]
    done(tmp_path / "back", "import", tmp_path / "b")


def test_since_what_is_no_export(tmp_path: Path, data: Path) -> None:
    """Says what it is not."""
    (tmp_path / "x.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    assert "is damaged" in refused(data, "export", "--all", "--since", tmp_path / "x.json", "-o", tmp_path / "a")
    assert "holds neither" in refused(data, "export", "--all", "--since", tmp_path / "empty", "-o", tmp_path / "a")


def _with_signature(tmp_path: Path, data: Path) -> tuple[str, str]:
    """The digests of a signature by subject, and of one by tag."""
    content, files = referrer(IMAGE.index.digest, len(IMAGE.index.body))
    tagged = generate(sizes=[KIB], platforms=["linux/amd64"], seed="signature")
    name = f"quay.io/team/app:{IMAGE.index.digest.replace(':', '-')}.sig"
    made = layout({NAME: IMAGE, name: tagged}, referring=(content,)) | files
    done(data, "import", write_folder(tmp_path / "signed", made))
    return f"sha256:{hashlib.sha256(content).hexdigest()}", tagged.index.digest


def test_referrers(tmp_path: Path, data: Path) -> None:
    """What refers to an image comes along, by its subject or by its tag; --no-referrers leaves it."""
    by_subject, by_tag = _with_signature(tmp_path, data)
    done(data, "export", NAME, "-o", tmp_path / "a")
    assert {by_subject, by_tag} <= set(_index(read_folder(tmp_path / "a")).values())
    done(tmp_path / "back", "import", tmp_path / "a")
    assert f"quay.io/team/app/_digests/{by_subject.replace(':', '-')}" in links(tmp_path / "back")
    done(data, "export", NAME, "--no-referrers", "-o", tmp_path / "b")
    assert list(_index(read_folder(tmp_path / "b"))) == [NAME]


def test_a_referrer_that_has_left(tmp_path: Path, data: Path) -> None:
    """A signature's tag of which nothing is here any more is no part of the image; one that is named has to be here."""
    _, by_tag = _with_signature(tmp_path, data)
    name = f"quay.io/team/app:{IMAGE.index.digest.replace(':', '-')}.sig"
    done(data, "rm", name)
    assert (data / "links/quay.io/team/app/_tags" / name.rpartition(":")[2]).is_dir()  # a sweep removes it later
    done(data, "export", NAME, "-o", tmp_path / "a")
    assert by_tag not in _index(read_folder(tmp_path / "a")).values()
    assert f"{name} is not cached" in refused(data, "export", NAME, name, "-o", tmp_path / "b")


def test_an_image_that_leaves_meanwhile(data: Path) -> None:
    """All that is here is all that is here when it is looked at."""
    shelf = Shelf(data)
    names = [*shelf.images(), Name.parse("quay.io/team/gone:1")]
    assert [one.name for one in gather(shelf, names, everything=True).images] == [OTHER_NAME, NAME]


def test_an_inventory_through_a_pipe(tmp_path: Path, data: Path) -> None:
    """As `--since <(ssh far cat mitm-cache.json)` gives it."""
    done(data, "export", OTHER_NAME, "-o", tmp_path / "a")
    reading, writing = os.pipe()
    os.write(writing, (tmp_path / "a" / "mitm-cache.json").read_bytes())
    os.close(writing)
    try:
        said = done(data, "export", "--all", "--since", f"/dev/fd/{reading}", "-o", tmp_path / "b", "--json").stdout
    finally:
        os.close(reading)
    assert json.loads(said)["unchanged"] == [OTHER_NAME]


def test_all_has_what_only_a_digest_names(tmp_path: Path, data: Path) -> None:
    """Clusters pull by digest: such images have no tag, and are in --all; parts of others are not by themselves."""
    for path in (data / "links/quay.io/team/app/_tags/1").iterdir():
        path.unlink()
    done(data, "export", "--all", "-o", tmp_path / "a")
    by_digest = f"quay.io/team/app@{IMAGE.index.digest}"
    assert _index(read_folder(tmp_path / "a")) == {by_digest: IMAGE.index.digest, OTHER_NAME: OTHER.index.digest}


def test_an_end_at_any_moment(tmp_path: Path, data: Path) -> None:
    """SIGTERM, SIGINT or SIGKILL while it writes: nothing has the final name."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        # A pipe in a blob's place: the export stands still there until somebody writes.
        other = sorted(layers_in(data))[-1]
        kept = other.read_bytes()
        other.unlink()
        os.mkfifo(other)
        command = [sys.executable, "-m", "mitm_cache", "--data-dir", str(data), "export", "--all", "--partial"]
        process = subprocess.Popen([*command, "-o", str(tmp_path / "out.tar")], stderr=subprocess.DEVNULL)
        with other.open("wb"):  # returns once the export has opened it
            _end(process, number)
        other.unlink()
        other.write_bytes(kept)
        assert process.returncode != 0
        assert not (tmp_path / "out.tar").exists()
    done(data, "export", "--all", "-o", tmp_path / "out.tar")


def _end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """A signal that arrives just before the read of a pipe does not interrupt it, so it is sent until it does."""
    for _ in range(30):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
            return
    process.kill()
    process.wait()
    pytest.fail(f"{number.name} does not end it")


def layers_in(data: Path) -> list[Path]:
    """Layers; manifests are read before anything is written."""
    return [path for path in (data / "blobs").glob("*/*/*") if f"sha256:{path.name}" in IMAGE.blobs]


def test_an_archive_that_a_standard_tar_reads(tmp_path: Path, data: Path) -> None:
    """Plain members in the order inventory, mark, index, blobs."""
    done(data, "export", NAME, "-o", tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
    assert names[:3] == ["mitm-cache.json", "oci-layout", "index.json"]
    assert (tmp_path / "a.tar").stat().st_size % tarfile.RECORDSIZE == 0


def test_a_folder_by_another_name(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder is filled, also where one stands in it, and a link to one stays a link."""
    here, there, link = tmp_path / "here", tmp_path / "there", tmp_path / "link"
    here.mkdir()
    there.mkdir()
    link.symlink_to(there)
    monkeypatch.chdir(here)
    done(data, "export", NAME, "-o", ".")
    assert (here / "oci-layout").is_file()
    done(data, "export", NAME, "-o", link)
    assert link.is_symlink()
    assert read_folder(there).keys() == read_folder(here).keys()


@needs_root()
def test_a_file_system_of_its_own(data: Path, tmp_path: Path) -> None:
    """Nothing is written beside the place where a stick is mounted: a folder in it has to be named."""
    stick = tmp_path / "stick"
    stick.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", stick], check=True)
    try:
        told = refused(data, "export", NAME, "-o", stick)
        assert f"{stick} is a file system of its own; name a new folder in it, such as {stick}/export" in told
        done(data, "export", NAME, "-o", stick / "export")
        assert (stick / "export" / "oci-layout").is_file()
    finally:
        subprocess.run(["umount", stick], check=True)


class Counting(Shelf):
    """Counts how often it reads a folder of links."""

    read = 0

    @override
    def tags(self, registry: str, repository: Repository) -> list[Tag]:
        self.read += 1
        return super().tags(registry, repository)

    @override
    def manifests(self, registry: str, repository: Repository) -> Iterator[Link]:
        self.read += 1
        return super().manifests(registry, repository)


@pytest.mark.parametrize("form", Form)
def test_many_images_of_one_repository(tmp_path: Path, form: Form) -> None:
    """A repository's tags and digests are read as often for twelve of its images as for one."""
    data = tmp_path / "data"
    names = [f"quay.io/team/app:{number}" for number in range(12)]
    images = {name: generate(sizes=[KIB], platforms=["linux/amd64"], seed=name) for name in names}
    done(data, "import", write_folder(tmp_path / "in", layout(images)))
    counts = []
    for some in (names[:1], names):
        shelf = Counting(data)
        found = gather(shelf, map(Name.parse, some))
        with open_target(tmp_path / f"{len(some)}") as target:
            write(found, shelf, target, form)
        counts.append(shelf.read)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_whole_export_and_deltas_at_once(tmp_path: Path, form: Form, order: tuple[int, ...]) -> None:
    """Together they are what they are one after the other, in any order: a tag that has moved is what it was last."""
    data, taken = tmp_path / "data", tmp_path / "taken"
    base = layer("base", 3 * KIB)
    images = [assemble({"linux/amd64": [base, *(layer(f"{n}", KIB) for n in range(number))]}) for number in range(3)]
    exports = [tmp_path / f"export {number}" for number in range(3)]
    for number, image in enumerate(images):
        done(data, "import", write_folder(tmp_path / f"in {number}", layout({NAME: image})))
        since = ["--since", exports[number - 1]] if number else []
        done(data, "export", "--all", *since, "--format", form, "-o", exports[number])
    refused(taken, "import", exports[0], exports[2])
    assert links(taken) == set()
    done(taken, "import", *(exports[number] for number in order))
    assert cached(taken) == cached(data)
    assert links(taken) == links(data)
    listed = json.loads(done(taken, "ls", "--json").stdout)["images"]
    assert [image["digest"] for image in listed if image["tag"]] == [images[-1].index.digest]
    news = tmp_path / "news"
    done(data, "export", "--all", "--since", exports[-1], "--format", form, "-o", news)
    assert "0 images" in done(taken, "import", news).stdout


def test_one_name_for_two_images(tmp_path: Path, data: Path) -> None:
    """Of two archives that know nothing of each other none is believed more."""
    other = write_folder(tmp_path / "other", layout({NAME: OTHER}))
    one = write_folder(tmp_path / "one", layout({NAME: IMAGE}))
    assert f"{NAME} is there twice" in refused(tmp_path / "taken", "import", one, other)


def test_folders_in_an_archive(tmp_path: Path, data: Path) -> None:
    """They are read as those on a disk are."""
    done(data, "export", "--all", "--format", "dir", "-o", tmp_path / "x.tar")
    done(tmp_path / "taken", "import", tmp_path / "x.tar")
    assert cached(tmp_path / "taken") == cached(data)
    assert links(tmp_path / "taken") == links(data)
