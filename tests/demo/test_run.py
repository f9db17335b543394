"""The demo, with the registry itself in the place of the cache: everything about it that is not the cache."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mitm_cache.config import Config, load
from mitm_cache.demo.image import KIB
from mitm_cache.demo.puller import Fetched, Pull
from mitm_cache.demo.run import CacheEndpoint, run
from mitm_cache.demo.table import aligned, requests
from mitm_cache.errors import UpstreamError


@dataclass(frozen=True)
class Straight:
    """No cache: clients are sent to the registry."""

    port: int
    ca_file: Path

    def address(self, listener: str) -> tuple[str, int]:
        assert listener == "tls"
        return "127.0.0.1", self.port


@contextmanager
def no_cache(configuration: Path) -> Iterator[CacheEndpoint]:
    settings = tomllib.loads(configuration.read_text())
    port = urlsplit(settings["registries"]["registry.demo"]["url"]).port
    assert port is not None
    assert not Path(settings["data_dir"]).exists()
    yield Straight(port, Path(settings["upstream"]["ca_file"]))


def test_without_a_cache_nothing_is_saved() -> None:
    """Both pulls are complete and verified, and the report admits that the second one cost as much as the first."""
    shown: list[str] = []
    report = run(no_cache, show=shown.append, sizes=[4 * KIB, 40 * KIB])
    blobs = 2 * (2 + 1)
    assert not report.ok
    assert report.saved == 0
    assert len(report.first.pull.requests) == 4 + blobs
    assert report.first.asked == 4 + 2 * blobs
    assert report.second.content == 3 + 2 * blobs
    assert report.second.sent == report.second.pull.size
    text = "\n".join(shown)
    assert "First pull" in text
    assert f"saved: 0 of {4 + 2 * blobs}" in text


def test_a_failing_cache_fails_the_demo() -> None:
    """An endpoint where nobody listens ends in one error that names the image."""

    @contextmanager
    def nobody(configuration: Path) -> Iterator[CacheEndpoint]:
        with no_cache(configuration) as cache:
            yield Straight(1, cache.ca_file)

    with pytest.raises(UpstreamError, match=r"registry\.demo/team/app:1"):
        run(nobody, show=lambda _: None, sizes=[KIB])


def test_table() -> None:
    """Names begin at the left, numbers end at the right, and the last line adds up."""
    pull = Pull(
        "sha256:0",
        (Fetched("HEAD", "tag 1", 200, 0, 1.25, "MISS"), Fetched("GET", "layer 12", 200, 1234567, 10.0, "HIT")),
        0.0123,
    )
    assert requests(pull) == [
        "request       status      bytes    ms  outcome",
        "HEAD tag 1       200          0   1.2  MISS",
        "GET layer 12     200  1,234,567  10.0  HIT",
        "all                   1,234,567  12.3  1 MISS, 1 HIT",
    ]


def test_columns_fit_their_widest_cell() -> None:
    assert aligned([("a", "1"), ("long", "22")], numbers={1}) == ["a      1", "long  22"]


def test_configuration_is_one_that_the_cache_reads() -> None:
    """What the demo writes for the cache is accepted by it, and points to the demo registry."""
    seen: list[Config] = []

    @contextmanager
    def read(configuration: Path) -> Iterator[CacheEndpoint]:
        seen.append(load(file=configuration, environ={}))
        with no_cache(configuration) as cache:
            yield cache

    run(read, show=lambda _: None, sizes=[KIB])
    [config] = seen
    assert config.upstreams["registry.demo"].resolve == ("127.0.0.1",)
    ways = {name: len(endpoints) for name, endpoints in config.listen.items()}
    assert ways == {"tls": 1, "clear": 0, "connect": 0, "mirror": 0, "admin": 0}
