"""`make bench`: the figures of bench/README.md, made anew on this machine, beside nginx in the same run.

python -m bench [stream] [small] [miss] [bulk] [herd] [late] [push]   all of them if none is named
python -m bench peers [CACHE ...]                                  beside other caches; --help says more
"""

import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.meter import cpu_seconds, latency, measured, peak, resident
from bench.nginx import Nginx, nginx
from bench.peers.run import main as compare
from bench.push import push
from mitm_cache.ca import CertificateAuthority
from mitm_cache.demo.image import KIB, MIB, Image, generate
from tests.fakes.big import Pattern, big_image
from tests.fakes.registry import LyingUpstream
from tests.serving import Client, Process, process

NAME = "registry.demo"
GIB = 1024 * MIB
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Bench:
    """What every scenario needs: an upstream, a folder, and a way to start caches over it."""

    upstream: LyingUpstream
    folder: Path

    @contextmanager
    def cache(self, name: str) -> Iterator[Process]:
        with process(self.folder / name, self.upstream) as cache:
            yield cache


def blob(pattern: Pattern) -> str:
    return f"/v2/big/one/blobs/{pattern.digest}"


def download(port: int, path: str, ca_file: Path) -> None:
    """Fetch by curl and throw away; raises where it was not complete."""
    url = f"https://{NAME}:{port}{path}"
    resolve = f"{NAME}:{port}:127.0.0.1"
    subprocess.run(["curl", "-sSf", "--cacert", ca_file, "--resolve", resolve, "-o", "/dev/null", url], check=True)


def stream(bench: Bench) -> Iterator[str]:
    """One TLS stream of a 1 GiB hit, beside nginx serving the same file; the best of five each, in turn."""
    pattern = Pattern(GIB, "big 0")
    bench.upstream.registry.put("big/one", big_image(GIB), "1")
    with bench.cache("stream") as cache, peer(bench, cache) as beside:
        port = cache.address("tls")[1]
        download(port, blob(pattern), cache.ca_file)
        (beside.files / "blob").hardlink_to(cache.data / "blobs" / "sha256" / pattern.digest[7:9] / pattern.digest[7:])
        figures: dict[str, list[tuple[float, float]]] = {"nginx": [], "mitm-cache": []}
        for _ in range(ROUNDS):
            for who, pid, where, path in (
                ("nginx", beside.pid, beside.port, "/blob"),
                ("mitm-cache", cache.pid, port, blob(pattern)),
            ):
                with measured(pid) as span:
                    download(where, path, cache.ca_file)
                figures[who].append((GIB / 1e6 / span.wall, span.cpu / (GIB / 1e9)))
    for who, rounds in figures.items():
        speed, cpu = max(m for m, _ in rounds), min(c for _, c in rounds)
        yield f"| 1 GiB hit, 1 TLS stream | {who} | {speed:.0f} MB/s | {cpu:.2f} CPU s/GB |"
    ours, theirs = (max(m for m, _ in figures[who]) for who in ("mitm-cache", "nginx"))
    our_cpu, their_cpu = (min(c for _, c in figures[who]) for who in ("mitm-cache", "nginx"))
    yield f"| | ratio to nginx | {ours / theirs:.2f}× | {our_cpu / their_cpu:.2f}× |"


@contextmanager
def peer(bench: Bench, cache: Process) -> Iterator[Nginx]:
    authority = CertificateAuthority.load(cache.data / "ca")
    leaf = authority.mint(NAME, now=datetime.now(UTC))
    with nginx(bench.folder / "nginx", chain=leaf.certificate_chain_pem, key=leaf.private_key_pem) as beside:
        yield beside


def small(bench: Bench) -> Iterator[str]:
    """Small hits on one keep-alive connection, beside nginx serving the same file."""
    image = generate(sizes=[3 * KIB], platforms=["linux/amd64"])
    bench.upstream.registry.put("team/app", image, "1")
    with bench.cache("small") as cache, peer(bench, cache) as beside:
        target = prepared(cache)
        digest = target.rpartition("/")[2]
        (beside.files / "blob").hardlink_to(cache.data / "blobs" / "sha256" / digest[7:9] / digest[7:])
        context = ssl.create_default_context(cafile=cache.ca_file)
        for who, pid, address, path in (
            ("nginx", beside.pid, ("127.0.0.1", beside.port), "/blob"),
            ("mitm-cache", cache.pid, cache.address("tls"), target),
        ):
            with Client(address, NAME, context, 30) as client:
                client.get(path)
                before = cpu_seconds([pid])
                seen = latency(partial(client.get, path), until=lambda asked: asked >= 2000)
                cpu = (cpu_seconds([pid]) - before) / seen.count * 1000
            times = f"p50 {seen.p50:.2f} ms, p99 {seen.p99:.2f} ms"
            yield f"| small hits, 1 connection | {who} | {times} | {cpu:.2f} CPU ms each |"


def prepared(cache: Process) -> str:
    """The path of a small blob that is cached now."""
    cache.puller().pull("team/app", "1")
    folder = cache.data / "blobs" / "sha256"
    smallest = min((path for path in folder.glob("*/*") if path.stat().st_size > 2000), key=lambda p: p.stat().st_size)
    return f"/v2/team/app/blobs/sha256:{smallest.name}"


def miss(bench: Bench) -> Iterator[str]:
    """Small hits while a 1 GiB miss is in flight, beside the same on an idle cache."""
    yield from _beside(bench, "miss", "1 GiB miss", big_image(GIB), [Pattern(GIB, "big 0")], cached=False)


def bulk(bench: Bench) -> Iterator[str]:
    """Small hits beside eight bulk streams of hits."""
    yield from _beside(bench, "bulk", "8 bulk hits", big_image(GIB), [Pattern(GIB, "big 0")] * 8, cached=True)


def _beside(
    bench: Bench, name: str, what: str, image: Image, patterns: list[Pattern], *, cached: bool
) -> Iterator[str]:
    bench.upstream.registry.put("team/app", generate(sizes=[3 * KIB], platforms=["linux/amd64"]), "1")
    bench.upstream.registry.put("big/one", image, "1")
    with bench.cache(name) as cache, cache.client() as client:
        port = cache.address("tls")[1]
        target = prepared(cache)
        if cached:
            download(port, blob(patterns[0]), cache.ca_file)
        client.get(target)
        idle = latency(lambda: client.get(target), until=lambda asked: asked >= 500)
        with ThreadPoolExecutor(len(patterns)) as pool:
            running = [pool.submit(download, port, blob(pattern), cache.ca_file) for pattern in patterns]
            busy = latency(lambda: client.get(target), until=lambda _: any(each.done() for each in running))
            for each in running:
                each.result()
    yield f"| small hits, idle | mitm-cache | p50 {idle.p50:.2f} ms, p99 {idle.p99:.2f} ms | |"
    yield (
        f"| small hits beside {what} | mitm-cache | p50 {busy.p50:.2f} ms, p99 {busy.p99:.2f} ms, {busy.count} asked"
        f" | {busy.p50 / idle.p50:.1f}× idle |"
    )


def herd(bench: Bench) -> Iterator[str]:
    """Sixteen clients on one cold 500 MB blob, over two processes and one data directory."""
    size = 500 * 1000 * 1000
    pattern = Pattern(size, "big 0")
    bench.upstream.registry.put("big/one", big_image(size), "1")
    with bench.cache("herd") as one, bench.cache("herd") as other:
        bench.upstream.requests.clear()
        before = [resident(each.pid) for each in (one, other)]
        with ThreadPoolExecutor(16) as pool, measured(one.pid, other.pid) as span:
            ports = [cache.address("tls")[1] for cache in (one, other)] * 8
            list(pool.map(lambda port: download(port, blob(pattern), one.ca_file), ports))
        grown = [peak(each.pid) - was for each, was in zip((one, other), before, strict=True)]
    gets = bench.upstream.requests.count(kind="object", method="GET")
    yield (
        f"| 16 clients, cold 500 MB, 2 processes | mitm-cache | {gets} upstream GET, {span.wall:.1f} s, "
        f"{16 * size / 1e6 / span.wall:.0f} MB/s in all | at most +{max(grown) / 1e6:.0f} MB a process, "
        f"{span.cpu:.1f} CPU s |"
    )


def late(bench: Bench) -> Iterator[str]:
    """Clients that come while half of a 500 MB blob is here: when do they get what is there already?"""
    size, there = 500 * MIB, 250 * MIB
    pattern = Pattern(size, "big 0")
    bench.upstream.registry.put("big/one", big_image(size), "1")
    gate = bench.upstream.gate()
    bench.upstream.lie("object", gate.hold_after(there))
    with bench.cache("late") as cache, ThreadPoolExecutor(1) as pool:
        first = pool.submit(download, cache.address("tls")[1], blob(pattern), cache.ca_file)
        gate.wait_held()
        whole = first_bytes(cache, blob(pattern), {}, 1)
        part = first_bytes(cache, blob(pattern), {"Range": "bytes=1000000-1999999"}, 1)
        most = first_bytes(cache, blob(pattern), {"Range": "bytes=1000000-1999999"}, 999_999)
        gate.release()
        first.result()
    yield f"| late joiner, half of 500 MB there | mitm-cache | first byte after {whole:.1f} ms | |"
    yield f"| Range of 1 MB in that half | mitm-cache | first byte after {part:.1f} ms, 999,999 after {most:.1f} ms | |"


def first_bytes(cache: Process, path: str, headers: dict[str, str], count: int) -> float:
    """Milliseconds from the request to `count` bytes of its body, on a connection that is open; the median of five."""
    times = []
    for _ in range(ROUNDS):
        with cache.client() as client:
            client.connect()
            start = time.perf_counter()
            response = client.open(path, headers)
            got = 0
            while got < count:
                got += len(response.read1(count - got))
            times.append((time.perf_counter() - start) * 1000)
    return median(times)


SCENARIOS: dict[str, Callable[[Bench], Iterator[str]]] = {
    "stream": stream,
    "small": small,
    "miss": miss,
    "bulk": bulk,
    "herd": herd,
    "late": late,
    "push": lambda bench: push(bench.folder, bench.upstream),
}


def main(names: list[str]) -> None:
    if names[:1] == ["peers"]:
        compare(names[1:])
        return
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise SystemExit(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}, and peers by itself")
    print("| what | who | figure | cost |\n|---|---|---|---|", flush=True)
    for name in names or SCENARIOS:
        with TemporaryDirectory(prefix="mitm-cache-bench-") as folder, LyingUpstream(Path(folder)) as upstream:
            for row in SCENARIOS[name](Bench(upstream, Path(folder))):
                print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
