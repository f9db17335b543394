"""The demo itself: an upstream, a cache before it, two pulls, and what the second one saved."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from mitm_cache.demo import table
from mitm_cache.demo.certificates import authority
from mitm_cache.demo.image import PLATFORMS, SIZES, generate
from mitm_cache.demo.ledger import Ledger
from mitm_cache.demo.puller import Pull, Puller
from mitm_cache.demo.upstream import ADDRESS, NAME, Upstream

REPOSITORY, TAG = "team/app", "1"
_LISTENERS = ("tls", "clear", "connect", "mirror", "admin")


class CacheEndpoint(Protocol):
    """A cache that serves: where, and which CA its clients must trust."""

    def address(self, listener: str) -> tuple[str, int]: ...

    @property
    def ca_file(self) -> Path: ...


type StartCache = Callable[[Path], AbstractContextManager[CacheEndpoint]]
"""Starts a cache with the configuration file of that path, and stops it on the way out."""


@dataclass(frozen=True, slots=True)
class Round:
    """One pull, and what it cost upstream."""

    pull: Pull
    asked: int
    content: int
    sent: int


@dataclass(frozen=True, slots=True)
class Report:
    """Both pulls. `ok` is the promise: the second one fetched no manifest and no blob from upstream."""

    first: Round
    second: Round

    @property
    def ok(self) -> bool:
        return self.second.content == 0 and self.first.pull.digest == self.second.pull.digest

    @property
    def saved(self) -> int:
        return self.first.asked - self.second.asked


def run(
    start_cache: StartCache,
    *,
    show: Callable[[str], None] = print,
    sizes: Sequence[int] = SIZES,
    platforms: Iterable[str] = PLATFORMS,
) -> Report:
    """Pull a generated image twice through a new cache and show what happened.

    Raises:
        UpstreamError, IntegrityError: a pull failed, or brought bytes that do not fit their digest.
    """
    with TemporaryDirectory(prefix="mitm-cache-demo-") as name:
        directory = Path(name)
        ca_file, certify = authority(directory / "upstream-ca", NAME, ADDRESS)
        image = generate(sizes=sizes, platforms=platforms)
        with Upstream(certify=certify) as upstream:
            upstream.registry.put(REPOSITORY, image, TAG)
            show(f"{NAME}/{REPOSITORY}:{TAG}: {len(image.platforms)} platforms, {image.size:,} bytes in layers")
            show(
                f"registry at {upstream.registry.url(name=ADDRESS)}, its blobs at {upstream.storage.url(name=ADDRESS)}"
            )
            path = directory / "config.toml"
            path.write_text(configuration(directory / "data", ca_file=ca_file, upstream=upstream))
            with start_cache(path) as cache:
                host, port = cache.address("tls")
                show(f"cache at {host}:{port}, which answers as {NAME}\n")
                puller = Puller(NAME, connect=(host, port), ca_files=[cache.ca_file])
                report = Report(_pull(puller, upstream.requests), _pull(puller, upstream.requests))
    for line in _lines(report):
        show(line)
    return report


def configuration(data: Path, *, ca_file: Path, upstream: Upstream, listen: Collection[str] = ("tls",)) -> str:
    """What a cache needs to find the demo registry; it listens in these ways only, on any free port of this machine."""
    listeners = "\n".join(f"{name} = {['127.0.0.1:0'] if name in listen else []}" for name in _LISTENERS)
    return f"""\
data_dir = "{data}"
[listen]
{listeners}
[upstream]
ca_file = "{ca_file}"
allow_http = {"false" if upstream.registry.tls else "true"}
proxy = ""
no_proxy = []
[registries."{upstream.registry.name}"]
url = "{upstream.registry.url()}"
resolve = "{upstream.registry.address[0]}"
"""


def _pull(puller: Puller, requests: Ledger) -> Round:
    requests.clear()
    pull = puller.pull(REPOSITORY, TAG)
    asked = requests.select()
    content = [each for each in asked if each.method == "GET" and each.kind in ("manifest", "tag", "blob", "object")]
    return Round(pull, len(asked), len(content), sum(each.sent for each in asked))


def _lines(report: Report) -> list[str]:
    first, second = report.first, report.second
    lines = ["First pull, from an empty cache:", *table.requests(first.pull), ""]
    lines += ["Second pull:", *table.requests(second.pull), ""]
    rows = [("", "requests", "upstream requests", "upstream bytes", "ms")]
    for name, each in [("first pull", first), ("second pull", second)]:
        figures = (len(each.pull.requests), each.asked, each.sent, round(each.pull.seconds * 1000))
        rows.append((name, f"{figures[0]:,}", f"{figures[1]:,}", f"{figures[2]:,}", f"{figures[3]:,}"))
    lines += [*table.aligned(rows, numbers={1, 2, 3, 4}), ""]
    lines.append(
        f"Every digest verified. Upstream requests saved: {report.saved} of {first.asked}; "
        f"manifests and blobs fetched again: {second.content}."
    )
    return lines
