"""A thousand tags of a real registry in one run, beside `skopeo sync` with the same file."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, assemble, layer
from tests.fakes.trust import Trust
from tests.faults.registry import registry
from tests.needs import needs_tool

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    needs_tool("skopeo", package="skopeo"),
    needs_tool("docker-registry", package="docker-registry"),
]
TAGS = 1000
SHARED = 20
"""So many base layers there are; each image has one of them and one of its own."""
_BASES = [layer(f"base {number}", 60 * KIB) for number in range(SHARED)]
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that has ended: seconds by the wall, and of CPU."""

    wall: float
    cpu: float


def run(command: Sequence[str | Path], output: Path) -> Ran:
    """Run to the end; what it writes goes to a file."""
    began = time.monotonic()
    with output.open("wb") as file, output.with_suffix(".err").open("wb") as errors:
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output.with_suffix(".err").read_text(errors="replace")[-2000:]
    return Ran(time.monotonic() - began, usage.ru_utime + usage.ru_stime)


def test_a_thousand_tags(tmp_path: Path) -> None:
    """All of them are here, each layer once; a second run fetches nothing."""
    images = {
        f"1.{number}.0": assemble({"linux/amd64": [_BASES[number % SHARED], layer(f"own {number}", 4 * KIB)]})
        for number in range(TAGS)
    }
    blobs = {digest: content for image in images.values() for digest, content in image.blobs.items()}
    manifests = {digest for image in images.values() for digest in image.manifests}
    with registry(tmp_path / "registry", Trust(tmp_path), "registry.demo", {"team/app": images}) as doors:
        host = f"{doors.clear[0]}:{doors.clear[1]}"
        listed = tmp_path / "images.yaml"
        listed.write_text(f"{host}:\n  tls-verify: false\n  images-by-tag-regex: {{team/app: '^1[.]'}}\n")
        data = tmp_path / "data"
        sync: list[str | Path] = [
            sys.executable,
            "-m",
            "mitm_cache",
            "--data-dir",
            data,
            "sync",
            "-f",
            listed,
            "--json",
        ]
        first = run(sync, tmp_path / "first.json")
        report = json.loads((tmp_path / "first.json").read_text())
        assert (len(report["images"]), report["failures"]) == (TAGS, [])
        found = {f"{path.parent.parent.name}:{path.name}" for path in (data / "blobs").glob("*/*/*")}
        assert found == {*blobs, *manifests}
        assert report["contents"]["fetched"] == len(found)
        second = run(sync, tmp_path / "second.json")
        again = json.loads((tmp_path / "second.json").read_text())
        assert again["bytes"]["fetched"] == again["contents"]["fetched"] == 0
        print(f"\n{first}\n{second}", flush=True)  # noqa: T201
        policy = tmp_path / "policy.json"
        policy.write_text(json.dumps(_POLICY))
        theirs: list[str | Path] = ["skopeo", "--policy", policy, "sync", "--all", "--scoped", "--src", "yaml"]
        peer = run([*theirs, "--dest", "dir", listed, tmp_path / "skopeo"], tmp_path / "skopeo.out")
        assert len(list((tmp_path / "skopeo").rglob("manifest.json"))) >= TAGS
    size = sum(blob.size for blob in blobs.values())
    print(f"\n{TAGS} tags, {len(found)} contents, {size} bytes of blobs")  # noqa: T201
    for name, ran in (("mitm-cache sync", first), ("mitm-cache sync, again", second), ("skopeo sync", peer)):
        print(f"{name:<24}{ran.wall:8.1f} s wall {ran.cpu:8.1f} s CPU")  # noqa: T201
