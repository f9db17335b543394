"""The scripts together: each does its job for all, in whatever order they are named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, MIB
from tests.addons.conftest import Put
from tests.addons.mitmdump import NAMES, Mitmdump, mitmdump
from tests.fakes.big import Pattern, big_image
from tests.fakes.registry import LyingUpstream
from tests.fakes.registry import Witness as Elsewhere

NAME, OTHER = "registry.demo", "elsewhere.demo"
SIZE, ALLOWED = 256 * MIB, 64 * MIB

type Start = Callable[..., Mitmdump]

orders = pytest.mark.parametrize("names", [NAMES, NAMES[::-1]], ids=["in order", "reversed"])


@orders
def test_a_pull_through_all(names: tuple[str, ...], start: Start, upstream: LyingUpstream, put: Put) -> None:
    """Our CA, our cache, one line for each request; a HIT needs no upstream."""
    running = start(*names)
    with running.client(NAME, running.own_ca) as client:
        assert client.get(put.tag, Accept=put.image.index.media_type).outcome == "MISS"
        assert client.issuer() == "mitm-cache"
        assert client.get(put.blob).outcome == "MISS"
    upstream.stop()
    try:
        with running.client(NAME, running.own_ca, direct=True) as client:
            reply = client.get(put.blob)
    finally:
        upstream.start()
    assert (reply.status, reply.body, reply.outcome) == (200, put.content, "HIT")
    lines = running.log.wait(3, repository=put.repository)
    assert [(line["outcome"], line["listener"]) for line in lines] == [
        ("MISS", "connect"),
        ("MISS", "connect"),
        ("HIT", "tls"),
    ]
    assert lines[2]["request_id"] == reply.headers["X-Request-Id"]
    assert lines[2]["bytes_out"] == len(put.content)


@orders
def test_tunnels_and_refusals(names: tuple[str, ...], start: Start, upstream: LyingUpstream) -> None:
    """Other hosts are passed on undecrypted; a wrong Host is refused. Each is one line."""
    running = start(*names)
    with running.client(OTHER, upstream.ca_file) as client:
        assert client.get("/any").body == b"elsewhere"
        assert client.issuer() != "mitm-cache"
    [line] = running.log.wait(1, outcome="TUNNEL")
    assert (line["reason"], line["method"]) == ("elsewhere.demo:443, undecrypted", "CONNECT")
    with running.client(NAME, running.own_ca) as client:
        assert client.get("/v2/", Host=OTHER).status == 421
    [line] = running.log.wait(1, outcome="REFUSED")
    assert line["status"] == 421
    assert running.log.count(outcome="RELAY") == 0


def test_behind_another_proxy(tmp_path: Path, start: Start, upstream: LyingUpstream, put: Put) -> None:
    """In upstream mode tunnels go by the other proxy, and registries are answered here."""
    other = start("intercept_registries")
    options = [f"mode=upstream:http://127.0.0.1:{other.port}"]
    with mitmdump(tmp_path, "intercept_registries", "pull_through", upstream=upstream, options=options) as running:
        with running.client(OTHER, upstream.ca_file) as client:
            assert client.get("/any").body == b"elsewhere"
        with running.client(NAME, running.stock_ca) as client:
            assert client.get(put.blob).outcome == "MISS"
            assert client.get(put.blob).outcome == "HIT"
    assert f"CONNECT {OTHER}" not in running.text


@pytest.mark.parametrize(
    ("addon", "expected"),
    [("pull_through", ["MISS", "HIT"]), ("follow_redirects", ["RELAY"])],
    ids=["pull_through", "follow_redirects"],
)
def test_bodies_are_not_held(addon: str, expected: list[str], start: Start, upstream: LyingUpstream, put: Put) -> None:
    """256 MiB, a HIT as well, grow the process by less than 64 MiB, also where a client stops taking them."""
    big = Pattern(SIZE, "big 0")
    upstream.registry.put("team/big", big_image(SIZE), "1")
    path = f"/v2/team/big/blobs/{big.digest}"
    running = start(addon)
    outcomes = []
    with running.client(NAME, running.stock_ca) as client, running.client(NAME, running.stock_ca) as stalled:
        client.get(put.blob)
        idle = running.memory("VmRSS")
        for _ in expected:
            client.request("GET", path)
            response = client.getresponse()
            outcomes.append(response.headers["X-Cache"])
            number = 0
            while piece := response.read(MIB):
                assert piece[:8] == number.to_bytes(8)
                number += 1
            assert number == SIZE // MIB
            stalled.request("GET", path)
            assert len(stalled.getresponse().read(64 * KIB)) == 64 * KIB
            stalled.close()
        grown = running.memory("VmHWM") - idle
    assert outcomes == expected
    assert grown < ALLOWED


def test_the_same_file_is_loaded_again(tmp_path: Path, upstream: LyingUpstream, elsewhere: Elsewhere, put: Put) -> None:
    """A script that is edited while mitmdump runs is loaded anew, and goes on with what is cached."""
    script = tmp_path / "pull_through.py"
    script.write_text((Path(__file__).parents[2] / "addons" / "pull_through.py").read_text())
    with mitmdump(tmp_path, scripts=[script], upstream=upstream) as running:
        with running.client(NAME, running.stock_ca) as client:
            assert client.get(put.blob).outcome == "MISS"
        loaded = running.count("Loading script")
        edited = script.with_suffix(".edited")
        edited.write_text(script.read_text() + "\n")
        edited.replace(script)  # at once: it is loaded whenever it is seen to have changed
        running.wait("Loading script", loaded + 1)
        with running.client(NAME, running.stock_ca) as client:
            assert client.get(put.blob).outcome == "HIT"
        assert "rror" not in running.text
