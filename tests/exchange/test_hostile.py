"""Archives that somebody made to do harm: each is refused in words, and nothing of it is to be seen afterwards."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, generate
from tests.exchange.making import Files, blob, layout, links, refused, write_folder, write_tar

IMAGE = generate(sizes=[3 * KIB, 40 * KIB], platforms=["linux/amd64"], seed="hostile")
NAME = "quay.io/team/app:1"
MANIFEST = IMAGE.platforms["linux/amd64"]
LAYER = f"blobs/sha256/{json.loads(MANIFEST.body)['layers'][-1]['digest'].partition(':')[2]}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def _member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (_member("../../etc/passwd", tarfile.REGTYPE), "outside of it"),
        (_member("/etc/passwd", tarfile.REGTYPE), "outside of it"),
        (_member("a/../../b", tarfile.REGTYPE), "outside of it"),
        (_member("index.json.link", tarfile.SYMTYPE, "/etc/passwd"), "outside of it"),
        (_member("a/link", tarfile.SYMTYPE, "../../etc/passwd"), "outside of it"),
        (_member("a/link", tarfile.LNKTYPE, "../etc/passwd"), "outside of it"),
        (_member("blobs/dev", tarfile.CHRTYPE), "a device"),
        (_member("blobs/dev", tarfile.BLKTYPE), "a device"),
        (_member("blobs/pipe", tarfile.FIFOTYPE), "a pipe"),
        (_member("blobs/sparse", tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (_member("blobs/odd", b"Z"), "unknown type"),
        (_member("index.json", tarfile.REGTYPE), "twice"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
def test_members(tmp_path: Path, data: Path, member: tarfile.TarInfo, words: str) -> None:
    """What has no business in an archive of images is named and refused."""
    path = write_tar(tmp_path / "a.tar", layout({NAME: IMAGE}), member)
    assert words in refused(data, "import", path)
    assert not data.exists()
    assert words in refused(data, "import", "-", stdin=path.read_bytes())
    assert links(data) == set()


def test_links_in_a_circle(tmp_path: Path, data: Path) -> None:
    """Links that lead to each other lead to nothing."""
    files = layout({NAME: IMAGE})
    content = files.pop(LAYER)
    circle = [_member(LAYER, tarfile.SYMTYPE, "b"), _member("blobs/sha256/b", tarfile.SYMTYPE, Path(LAYER).name)]
    assert "is not whole" in refused(data, "import", write_tar(tmp_path / "a.tar", files, *circle))
    assert content
    assert links(data) == set()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _no_end(path: Path) -> None:
    with tarfile.open(path) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    os.truncate(path, end)


def _huge(path: Path) -> None:
    """A member that says it has 8 GB."""
    head = bytearray(path.read_bytes())
    head[124:136] = b"77777777777\0"
    head[148:156] = b"%06o\0 " % (256 + sum(head[:148]) + sum(head[156:512]))
    path.write_bytes(head)


def _negative(path: Path) -> None:
    head = bytearray(path.read_bytes())
    head[124:136] = b"\xff" * 12
    head[148:156] = b"%06o\0 " % (256 + sum(head[:148]) + sum(head[156:512]))
    path.write_bytes(head)


def _endless_name(path: Path) -> None:
    """A PAX header of 100 MB, which would be read into memory."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 100_000_000
    with path.open("wb") as file:
        file.write(head.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(100_010_000)


def _pax(record: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        head = tarfile.TarInfo("x")
        head.type, head.size = tarfile.XHDTYPE, len(record)
        path.write_bytes(head.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + path.read_bytes())

    return write


def _gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_cut, "cut off"),
        (_no_end, "cut off: it has no end"),
        (_huge, "cut off in"),
        (_negative, "as the size of"),
        (_endless_name, "a header of 100,000,000 bytes"),
        (_pax(b"99 path=../x\n"), "damaged PAX header"),
        (_pax(b"x path=1\n"), "damaged PAX header"),
        (_pax(b"13 path=../x\n"), "outside of it"),
        (_pax(b"11 size=-1\n"), "as the size of"),
        (_pax(b"22 GNU.sparse.major=1\n"), "sparse file"),
        (_gzip, "compressed by gzip; unpack it first: gunzip"),
        (lambda path: path.write_bytes(b"x" * 4096), "it is no tar archive"),
        (lambda path: path.write_bytes(b""), "cut off"),
    ],
)
def test_archives(tmp_path: Path, data: Path, spoil: Callable[[Path], None], words: str) -> None:
    """Heads that lie, and what is no archive."""
    path = write_tar(tmp_path / "a.tar", layout({NAME: IMAGE}))
    spoil(path)
    assert words in refused(data, "import", path)
    assert not data.exists()
    told = refused(data, "import", "-", stdin=path.read_bytes())
    assert words in told or (spoil is _huge and "the disk is full" in told)  # a pipe does not say how much there is
    assert links(data) == set()
    assert list((data / "spool").iterdir()) == []


def _edit(name: str, content: bytes | None) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        if content is None:
            del files[name]
        else:
            files[name] = content

    return edit


def _top(change: Callable[[dict[str, object]], object], *, digest: bool = True) -> Callable[[Files], None]:
    """Another manifest in the index's place, changed and named as it should be."""

    def edit(files: Files) -> None:
        document = json.loads(MANIFEST.body)
        change(document)
        path, content = blob(json.dumps(document).encode())
        files[path] = content
        entry = {"mediaType": MANIFEST.media_type, "size": len(content), "annotations": {_REF: NAME}}
        name = f"sha256:{path.rpartition('/')[2]}"
        entry["digest"] = name if digest else MANIFEST.digest
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()

    return edit


_REF = "io.containerd.image.name"
_WRONG = b"x" * 41_000


def _nested(files: Files) -> None:
    """Twenty indexes within each other."""
    digest, size, kind = MANIFEST.digest, len(MANIFEST.body), MANIFEST.media_type
    for _ in range(20):
        document = {"schemaVersion": 2, "manifests": [{"mediaType": kind, "digest": digest, "size": size}]}
        path, content = blob(json.dumps(document).encode())
        files[path] = content
        digest, size, kind = f"sha256:{path.rpartition('/')[2]}", len(content), IMAGE.index.media_type
    entry = {"mediaType": kind, "digest": digest, "size": size, "annotations": {_REF: NAME}}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()


def _big_manifest(files: Files) -> None:
    path, content = blob(b"{}" + b" " * (5 << 20))
    files[path] = content
    entry = {"digest": f"sha256:{path.rpartition('/')[2]}", "size": 2, "annotations": {_REF: NAME}}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()


def _named(name: str) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        document = json.loads(files["index.json"])
        document["manifests"][0]["annotations"] = {_REF: name}
        files["index.json"] = json.dumps(document).encode()

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_edit(LAYER, _WRONG), "its manifest says"),
        (_edit(LAYER, None), "is not whole"),
        (_edit(f"blobs/sha256/{MANIFEST.digest[7:]}", MANIFEST.body + b" "), "is something else, or damaged"),
        (_top(lambda document: document["layers"][0].update(size=7)), "its manifest says 7"),  # type: ignore[index]
        (_top(lambda document: document.update(manifests=[])), "an index and an image at once"),
        (_top(lambda document: document.update(mediaType=IMAGE.index.media_type)), "is said to be"),
        (_top(lambda document: document.update(schemaVersion=1)), "schema 1"),
        (_top(lambda document: document.update(mediaType=7)), "refused"),
        (_edit("index.json", b"[" * 100_000), "index.json is no JSON document"),
        (_edit("index.json", b'{"manifests": 3}'), "no list of manifests"),
        (_edit("index.json", b'{"manifests": [{"digest": "md5:1"}]}'), "without a digest"),
        (_edit("index.json", b"{" + b" " * (65 << 20)), "67,108,864 are allowed"),
        (_edit("oci-layout", b'{"imageLayoutVersion": "9"}'), "says version '9'"),
        (_edit("oci-layout", b"[]"), "says version None"),
        (_edit("mitm-cache.json", b"{}"), "inventory, mitm-cache.json, is damaged"),
        (_edit("mitm-cache.json", b'{"format": 7}'), "format 7"),
        (_nested, "indexes within indexes"),
        (_big_manifest, "4,194,304 are allowed"),
        (_named("quay.io/../../etc:1"), "is not the name of an image"),
        (_named("quay.io/team/app:../../../x"), "is not the name of an image"),
        (_named("../../app:1"), "is not the name of an image"),
        (_named("quay.io/team/app@sha256:" + "0" * 64), "is not that"),
    ],
)
@pytest.mark.parametrize("form", ["tar", "folder", "stream"])
def test_layouts(tmp_path: Path, data: Path, edit: Callable[[Files], None], words: str, form: str) -> None:
    """Digests, sizes, types, names and documents that are not what they should be."""
    files = layout({NAME: IMAGE})
    edit(files)
    path = write_folder(tmp_path / "a", files) if form == "folder" else write_tar(tmp_path / "a.tar", files)
    if form == "stream":
        told = refused(data, "import", "-", stdin=path.read_bytes())
        assert words in told or "is something else, or damaged" in told  # which is seen before anything is put together
        assert list((data / "spool").iterdir()) == []
    else:
        assert words in refused(data, "import", path)
    assert links(data) == set()


def test_a_wrong_layer_of_the_right_size(tmp_path: Path, data: Path) -> None:
    """Which only its hash tells; the image before it in the archive is not to be seen either."""
    other = generate(sizes=[KIB], seed="good")
    files = layout({"quay.io/team/good:1": other, NAME: IMAGE})
    files[LAYER] = bytes(len(files[LAYER]))
    assert "is something else, or damaged" in refused(data, "import", write_tar(tmp_path / "a.tar", files))
    assert links(data) == set()
    assert not list((data / "blobs").rglob(LAYER.rpartition("/")[2]))
    assert list((data / "spool").glob("*.part")) == []


@pytest.mark.parametrize("place", ["index.json", LAYER, "blobs/sha256", "blobs"])
def test_links_in_a_folder(tmp_path: Path, data: Path, place: str) -> None:
    """A link in a folder that somebody brings could lead anywhere."""
    folder = write_folder(tmp_path / "a", layout({NAME: IMAGE}))
    outside = tmp_path / "outside"
    (folder / place).rename(outside)
    (folder / place).symlink_to(outside)
    assert "links are refused" in refused(data, "import", folder)
    assert links(data) == set()


def test_a_pipe_in_a_folder(tmp_path: Path, data: Path) -> None:
    """Nobody waits for what never comes."""
    folder = write_folder(tmp_path / "a", layout({NAME: IMAGE}))
    (folder / LAYER).unlink()
    os.mkfifo(folder / LAYER)
    assert "is no plain file" in refused(data, "import", folder)


def _archive(layers: list[bytes], diff_ids: list[str], **more: object) -> Files:
    config = json.dumps({"rootfs": {"diff_ids": diff_ids}}).encode()
    files = {"c.json": config} | {f"{number}.tar": layer for number, layer in enumerate(layers)}
    entry = {"Config": "c.json", "RepoTags": [NAME], "Layers": [f"{n}.tar" for n in range(len(layers))]} | more
    return files | {"manifest.json": json.dumps([entry]).encode()}


def _bomb() -> bytes:
    """2 GB of zeros in 2 MB."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=1) as file:
        zeros = bytes(1 << 20)
        for _ in range(1100):
            file.write(zeros)
    return packed.getvalue()


_ID = f"sha256:{hashlib.sha256(b'layer').hexdigest()}"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (lambda: _archive([b"other"], [_ID]), "is something else, or damaged"),
        (lambda: _archive([gzip.compress(b"other")], [_ID]), "is not sha256:"),
        (lambda: _archive([gzip.compress(b"layer")[:-9]], [_ID]), "is damaged: it is cut off"),
        (lambda: _archive([_bomb()], [_ID]), "unpacks to more than 100 times its size"),
        (lambda: _archive([b"layer"], []), "not as many diff_ids"),
        (lambda: _archive([b"layer"], [_ID], Layers=["../../etc/passwd"]), "is not in it"),
        (lambda: _archive([b"layer"], [_ID], Config="/etc/passwd"), "is not in it"),
        (lambda: _archive([b"layer"], [_ID], RepoTags="x"), "without proper Config"),
        (lambda: _archive([b"layer"], ["sha256:../x"]), "lower-case hex digits"),
        (lambda: {"manifest.json": b"{}"}, "no list of images"),
        (lambda: {"manifest.json": b"[" + b"{}," * 10_001 + b"{}]"}, "10,000 are allowed"),
        (lambda: {"manifest.json": b"[0]"}, "without proper Config"),
        (lambda: {"other": b""}, "holds no images"),
    ],
)
def test_docker_archives(tmp_path: Path, data: Path, files: Callable[[], Files], words: str) -> None:
    """Archives of docker save that are not what they say; a bomb is not unpacked to its end."""
    assert words in refused(data, "import", write_tar(tmp_path / "a.tar", files()))
    assert links(data) == set()


def test_one_bad_archive_of_two(tmp_path: Path, data: Path) -> None:
    """Of several that are given at once none is imported where one is bad."""
    good = write_folder(tmp_path / "a", layout({"quay.io/team/good:1": IMAGE}))
    assert "holds no images" in refused(data, "import", good, write_folder(tmp_path / "b", {"x": b""}))
    assert links(data) == set()


def test_two_that_do_not_agree(tmp_path: Path, data: Path) -> None:
    """One name for two images is nobody's to choose between."""
    first = write_folder(tmp_path / "a", layout({NAME: IMAGE}))
    second = write_folder(tmp_path / "b", layout({NAME: generate(sizes=[KIB], seed="second")}))
    assert f"{NAME} is there twice" in refused(data, "import", first, second)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x/" * 3000, "a" * 300, "", ".", "..", "/etc/passwd"])
@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_names_that_are_none(tmp_path: Path, data: Path, name: str, write: Callable[[Path, Files], Path]) -> None:
    """What no file can be named is refused in words, from a folder too."""
    entry = {"Config": name, "RepoTags": ["app:1"], "Layers": []}
    archive = write(tmp_path / "a", {"manifest.json": json.dumps([entry]).encode(), "x": b""})
    told = refused(data, "import", archive)
    assert "is not in it" in told or "is refused as the name of a file" in told or "cannot be read" in told
