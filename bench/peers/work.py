"""The work that every cache is given: a cold blob for a herd, the same blob warm, small manifests."""

import hashlib
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

from bench.meter import latency, measured
from bench.peers.caches import Cache
from bench.peers.origin import Origin
from bench.peers.programs import LOOPBACK, Broken, environment
from tests.serving import Client

HERD = 8
FEW = 4
ROUNDS = 3
MANIFESTS = 64
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """What one turn of one cache came to; seconds, megabytes (1e6) and milliseconds."""

    fetches: float
    fetched_mb: float
    first_median_s: float
    first_worst_s: float
    last_s: float
    cold_cpu_s: float
    one_mb_s: float
    one_cpu_s_gb: float
    few_mb_s: float
    few_cpu_s_gb: float
    manifest_ms: float
    manifests_s: float


def work(cache: Cache, origin: Origin) -> Figures:
    """All of it, in one turn on a cache that is empty; raises Broken where an answer is wrong or cut."""
    tls = ssl.create_default_context(cafile=cache.ca_file)
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # a peer's authority lacks what strictness asks for
    with Client((LOOPBACK, cache.port), cache.name, tls, 60) as client:
        _get_manifest(client, origin)  # as a pull begins; it makes the manifest warm
        gets, size = origin.fetched()
        with measured(cache.pid) as cold, ThreadPoolExecutor(HERD) as pool:
            first = [each.result() for each in [pool.submit(_first_byte, cache, origin) for _ in range(HERD)]]
        gets_after, size_after = origin.fetched()
        _check(cache, origin)
        one_speed, one_cpu = _warm(cache, origin, 1)
        few_speed, few_cpu = _warm(cache, origin, FEW)
        p50, rate = _small(client, origin)
    return Figures(
        fetches=gets_after - gets,
        fetched_mb=(size_after - size) / 1e6,
        first_median_s=median(first),
        first_worst_s=max(first),
        last_s=cold.wall,
        cold_cpu_s=cold.cpu,
        one_mb_s=one_speed,
        one_cpu_s_gb=one_cpu,
        few_mb_s=few_speed,
        few_cpu_s_gb=few_cpu,
        manifest_ms=p50,
        manifests_s=rate,
    )


@contextmanager
def _curl(cache: Cache, origin: Origin, output: str) -> Iterator["subprocess.Popen[bytes]"]:
    """curl on the blob, over HTTP/1.1 as every cache speaks it; raises Broken unless all of it came."""
    command = [
        *("curl", "-sSf", "--http1.1", "--cacert", str(cache.ca_file), "-o", output, "-w", "%{stderr}%{size_download}"),
        *("--resolve", f"{cache.name}:{cache.port}:{LOOPBACK}"),
        f"https://{cache.name}:{cache.port}{origin.blob_path}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    with process:
        yield process
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode or said != str(origin.size):
        raise Broken(f"curl ended with {process.returncode}: {said}")


def _first_byte(cache: Cache, origin: Origin) -> float:
    """Seconds from the start of curl to the first byte of the body; the rest is read and thrown away."""
    start = time.perf_counter()
    with _curl(cache, origin, "-") as process, open(os.devnull, "wb") as nowhere:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        os.read(pipe, 1)
        seconds = time.perf_counter() - start
        while os.splice(pipe, nowhere.fileno(), _PIECE):
            pass
    return seconds


def _check(cache: Cache, origin: Origin) -> None:
    with _curl(cache, origin, "-") as process:
        assert process.stdout is not None
        seen = hashlib.sha256()
        while piece := process.stdout.read(_PIECE):
            seen.update(piece)
    if f"sha256:{seen.hexdigest()}" != origin.digest:
        raise Broken(f"the blob has the digest sha256:{seen.hexdigest()}")


def _read(cache: Cache, origin: Origin) -> None:
    with _curl(cache, origin, os.devnull):
        pass


def _warm(cache: Cache, origin: Origin, clients: int) -> tuple[float, float]:
    """Clients at once, each reading the blob: the most MB/s in all, and the fewest CPU seconds a GB, of some rounds."""
    speeds, cpus = [], []
    for _ in range(ROUNDS):
        with measured(cache.pid) as span, ThreadPoolExecutor(clients) as pool:
            for each in [pool.submit(_read, cache, origin) for _ in range(clients)]:
                each.result()
        size = clients * origin.size
        speeds.append(size / 1e6 / span.wall)
        cpus.append(span.cpu / (size / 1e9))
    return max(speeds), min(cpus)


def _get_manifest(client: Client, origin: Origin) -> None:
    reply = client.get(origin.manifest_path, {"Accept": "application/vnd.oci.image.manifest.v1+json"})
    if f"sha256:{hashlib.sha256(reply.body).hexdigest()}" != origin.manifest:
        raise Broken(f"a manifest came as {reply.status} with {len(reply.body)} bytes")


def _small(client: Client, origin: Origin) -> tuple[float, float]:
    """Manifests by digest on one connection: the best median in milliseconds, and the most a second."""
    client.close()  # peers differ in how long an idle connection is kept
    medians, rates = [], []
    ask = partial(_get_manifest, client, origin)
    ask()
    for _ in range(ROUNDS):
        with measured() as span:
            seen = latency(ask, until=lambda asked: asked >= MANIFESTS)
        medians.append(seen.p50)
        rates.append(seen.count / span.wall)
    return min(medians), max(rates)
