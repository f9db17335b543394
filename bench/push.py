"""Pushing: a blob goes into the local registry, beside Debian's docker-registry (distribution) doing the same."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.meter import measured
from bench.peers.caches import issue
from bench.peers.programs import LOOPBACK, Missing, find, running
from mitm_cache.demo.image import MIB
from tests.fakes.big import Pattern
from tests.fakes.registry import LyingUpstream
from tests.ports import free_port
from tests.serving import process

NAME = "registry.local"
GIB = 1024 * MIB
ROUNDS = 5
LISTENERS = ("tls", "clear")
WAYS = ("PUT", "PATCH in chunks")

_DISTRIBUTION = """
version: 0.1
log: {{accesslog: {{disabled: true}}, level: error}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http:
  addr: {loopback}:{port}
"""
_TLS = "  tls: {{certificate: {leaf}, key: {leaf}}}\n"


@dataclass(frozen=True, slots=True)
class Registry:
    """Where to push, and whom to measure."""

    who: str
    url: str
    pid: int
    trust: tuple[str | Path, ...]


@contextmanager
def distribution(folder: Path, listener: str) -> Iterator[Registry]:
    """Debian's docker-registry with a folder of its own, by TLS of its own or in clear text."""
    try:
        program = find("docker-registry", package="apt-get install docker-registry")
    except Missing as missing:
        raise SystemExit(f"the benchmark {missing}") from None
    folder.mkdir()
    ca_file, leaf = issue(folder, NAME)
    port = free_port()
    configuration = folder / "config.yml"
    text = _DISTRIBUTION + (_TLS if listener == "tls" else "")
    configuration.write_text(text.format(folder=folder / "data", loopback=LOOPBACK, port=port, leaf=leaf))
    with running([program, "serve", configuration], log=folder / "log", address=(LOOPBACK, port)) as pid:
        yield registry("distribution", listener, port, pid, ca_file)


def registry(who: str, listener: str, port: int, pid: int, ca_file: Path) -> Registry:
    """What curl has to be told of it."""
    scheme = "https" if listener == "tls" else "http"
    trust = ("--cacert", ca_file, "--resolve", f"{NAME}:{port}:{LOOPBACK}")
    return Registry(who, f"{scheme}://{NAME}:{port}", pid, trust)


def push(folder: Path, upstream: LyingUpstream) -> Iterator[str]:
    """1 GiB by PUT and by PATCH in chunks, over TLS and without: best and median of five, in turn."""
    pattern = Pattern(GIB, "pushed")
    content = folder / "content"
    with content.open("wb") as file:
        file.writelines(pattern.chunks(0, GIB))
    with ExitStack() as stack:
        more = f'[local]\nnames = ["{NAME}"]\nmax_size = "100%"\n'
        cache = stack.enter_context(process(folder / "ours", upstream, more=more))
        for listener in LISTENERS:
            ours = registry("mitm-cache", listener, cache.address(listener)[1], cache.pid, cache.ca_file)
            theirs = stack.enter_context(distribution(folder / f"theirs-{listener}", listener))
            for way in WAYS:
                yield from compare(listener, way, [theirs, ours], content, pattern.digest)


def compare(listener: str, way: str, registries: list[Registry], content: Path, digest: str) -> Iterator[str]:
    """The rows of one way to push."""
    figures: dict[str, list[tuple[float, float]]] = {each.who: [] for each in registries}
    for _ in range(ROUNDS):
        for each in registries:
            os.sync()  # what the one has written is not the other's to wait for
            with measured(each.pid) as span:
                upload(each, way, content, digest)
            figures[each.who].append((GIB / 1e6 / span.wall, span.cpu / (GIB / 1e9)))
    speeds = {}
    for who, rounds in figures.items():
        speeds[who] = sorted(speed for speed, _ in rounds)
        costs = sorted(cost for _, cost in rounds)
        speed = f"{speeds[who][-1]:.0f}, median {median(speeds[who]):.0f} MB/s"
        cost = f"{costs[0]:.2f}, median {median(costs):.2f} CPU s/GB"
        yield f"| 1 GiB pushed, {listener}, {way} | {who} | {speed} | {cost} |"
    theirs, ours = speeds.values()
    yield f"| | ratio | {ours[-1] / theirs[-1]:.2f}×, median {median(ours) / median(theirs):.2f}× | |"


def upload(registry: Registry, way: str, content: Path, digest: str) -> None:
    """One upload from its beginning to its end; raises where it was not taken."""
    where = location(curl(registry, "-X", "POST", f"{registry.url}/v2/bench/one/blobs/uploads/", "-d", ""), registry)
    if way == "PUT":
        end = ["-T", str(content)]
    else:
        streamed = ["-X", "PATCH", "-H", "Transfer-Encoding: chunked", "-T", str(content)]
        where = location(curl(registry, *streamed, where), registry)
        end = ["-X", "PUT", "-d", ""]
    mark = "&" if "?" in where else "?"
    said = curl(registry, *end, f"{where}{mark}digest={digest}")
    assert " 201 " in said, said


def location(said: str, registry: Registry) -> str:
    """Where an answer says to go on."""
    found = re.search(r"(?im)^location: (\S+)", said)
    assert found, said
    return found[1] if "://" in found[1] else registry.url + found[1]


def curl(registry: Registry, *arguments: str) -> str:
    """The heads of the answers."""
    command = ["curl", "-sS", "--http1.1", "-o", "/dev/null", "-D", "-", *registry.trust]
    fields = ["-H", "Content-Type: application/octet-stream"]
    return subprocess.run([*command, *fields, *arguments], check=True, capture_output=True, text=True).stdout
