"""A body of a gigabyte costs no memory, however slowly it is taken."""

from pathlib import Path

import pytest

from mitm_cache.demo.image import KIB, MIB
from tests.fakes.big import Pattern, big_image
from tests.fakes.registry import LyingUpstream
from tests.proxy.raw import LISTENERS, dial, request
from tests.serving import Process, process

pytestmark = pytest.mark.slow

HUB = "docker.io"
SIZE = 1024 * MIB
ALLOWED = 32 * MIB


def _memory(cache: Process, what: str) -> int:
    status = Path(f"/proc/{cache.pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * KIB


def test_three_clients_of_a_gigabyte(tmp_path: Path) -> None:
    """One client at each listener stalls, another one takes it all: memory grows by less than 32 MiB."""
    content = Pattern(SIZE, "big 0")
    ask = request(f"/v2/team/app/blobs/{content.digest}", host=HUB)
    with LyingUpstream(tmp_path, name=HUB) as upstream, process(tmp_path / "data", upstream) as cache:
        upstream.registry.put("team/app", big_image(SIZE), "1")
        with cache.client() as client:
            client.get("/v2/")
        idle = _memory(cache, "VmRSS")
        with cache.client() as client:
            response = client.open(f"/v2/team/app/blobs/{content.digest}")
            while response.read(MIB):
                pass
        missed = _memory(cache, "VmHWM")
        stalled = [dial(cache, listener, receive_buffer=64 * KIB) for listener in LISTENERS]
        try:
            for wire in stalled:
                wire.send(ask)
                assert wire.head()[0] == 200
                wire.read(MIB)
            for listener in LISTENERS:
                with dial(cache, listener) as wire:
                    wire.send(ask)
                    assert wire.head()[0] == 200
                    for number in range(SIZE // MIB):
                        assert wire.read(MIB)[:8] == number.to_bytes(8)
            for wire in stalled:
                wire.read(MIB)
            hit = _memory(cache, "VmHWM")
        finally:
            for wire in stalled:
                wire.close()
        figures = [f"{(each - idle) / MIB:.1f}" for each in (missed, hit)]
        print(f"idle {idle / MIB:.0f} MiB; peak of the miss +{figures[0]}, of everything +{figures[1]}")  # noqa: T201
        assert missed - idle < ALLOWED
        assert hit - idle < ALLOWED
