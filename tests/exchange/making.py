"""Images as files for tests: written by the standard library, in every form that an import knows."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner, Result

from mitm_cache.cli import main
from mitm_cache.demo.image import Image

REF_NAME, CONTAINERD_NAME = "org.opencontainers.image.ref.name", "io.containerd.image.name"

type Files = dict[str, bytes]


def run(data: Path, *arguments: object, stdin: bytes = b"") -> Result:
    """The command line over a data directory."""
    return CliRunner().invoke(main, ["--data-dir", str(data), *map(str, arguments)], input=stdin)


def done(data: Path, *arguments: object, stdin: bytes = b"") -> Result:
    """The same, which has to go well."""
    result = run(data, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output + result.stderr
    return result


def refused(data: Path, *arguments: object, stdin: bytes = b"") -> str:
    """What is said of a command that is refused; nobody sees a traceback, nor any content in the cache."""
    result = run(data, *arguments, stdin=stdin)
    assert result.exit_code != 0, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    return result.output + result.stderr


def blob(content: bytes) -> tuple[str, bytes]:
    return f"blobs/sha256/{hashlib.sha256(content).hexdigest()}", content


def contents(image: Image) -> dict[str, bytes]:
    """Every content of an image by its digest."""
    found = {digest: b"".join(map(bytes, one.chunks(0, one.size))) for digest, one in image.blobs.items()}
    return found | {digest: manifest.body for digest, manifest in image.manifests.items()}


def layout(images: Mapping[str, Image], *, referring: tuple[bytes, ...] = (), bare: bool = False) -> Files:
    """An OCI image layout; `bare`: the names are tags alone, as skopeo writes them."""
    files: Files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    entries: list[dict[str, object]] = []
    for name, image in images.items():
        files |= dict(blob(content) for content in contents(image).values())
        notes = {REF_NAME: name.rpartition(":")[2]} if bare else {REF_NAME: name, CONTAINERD_NAME: name}
        entries.append(image.index.descriptor(annotations=notes))
    for content in referring:
        path, _ = blob(content)
        files[path] = content
        digest = f"sha256:{path.rpartition('/')[2]}"
        kind = json.loads(content)["mediaType"]
        entries.append({"mediaType": kind, "digest": digest, "size": len(content)})
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return files


def referrer(subject: str, size: int, kind: str = "application/vnd.example.signature") -> tuple[bytes, Files]:
    """A manifest that refers to another, and the one blob that it has."""
    empty_path, empty = blob(b"{}")
    described = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": f"sha256:{empty_path.rpartition('/')[2]}",
        "size": 2,
    }
    media_type = "application/vnd.oci.image.manifest.v1+json"
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "artifactType": kind,
        "config": described,
        "layers": [described],
        "subject": {"mediaType": media_type, "digest": subject, "size": size},
    }
    return json.dumps(document).encode(), {empty_path: empty}


def write_folder(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_tar(path: Path, files: Files, *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in more:
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def read_tar(path: Path) -> Files:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def read_folder(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cached(data: Path) -> dict[str, bytes]:
    """Every blob of a data directory by its digest."""
    return {f"sha256:{path.name}": path.read_bytes() for path in (data / "blobs").glob("*/*/*")}


def links(data: Path) -> set[str]:
    """Everything that is visible to clients."""
    return {str(path.relative_to(data / "links")) for path in (data / "links").rglob("*") if path.is_file()}


def docker_archive(image: Image, names: list[str], *, packed: bool = False) -> Files:
    """As docker save has written it; `packed`: as crane does, with compressed layers."""
    document = json.loads(image.platforms["linux/amd64"].body)
    found = contents(image)
    config = found[document["config"]["digest"]]
    files = {f"{hashlib.sha256(config).hexdigest()}.json": config}
    layers = []
    for number, described in enumerate(document["layers"]):
        compressed = found[described["digest"]]
        layers.append(f"{number}.tar.gz" if packed else f"{number}/layer.tar")
        files[layers[-1]] = compressed if packed else gzip.decompress(compressed)
    entry = {"Config": next(iter(files)), "RepoTags": names, "Layers": layers}
    files["manifest.json"] = json.dumps([entry]).encode()
    return files
